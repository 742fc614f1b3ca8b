"""Nodes that live as long as a call: processes in a temporary directory, gone without a trace behind it."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from yanchat.cli.render import warn
from yanchat.errors import Unreachable, YanchatError

if TYPE_CHECKING:
    from yanchat.config import Settings

READY_WITHIN: Final = 30.0
STOPPED_WITHIN: Final = 20.0


class ThrowAway(NamedTuple):
    url: str
    pid: int


@contextmanager
def throw_away(nodes: int, settings: Settings, limits: Mapping[str, str]) -> Iterator[list[ThrowAway]]:
    """Run so many nodes, joined as `settings` say, with these `[limits]`; they and what they made are removed behind.

    In the profile cluster their keys and topics have a prefix of their own. Unreachable: one does not start.
    """
    with _ended_as_by_ctrl_c(), tempfile.TemporaryDirectory(prefix="yanchat-") as name, ExitStack() as stack:
        directory = Path(name)
        prefix = f"throwaway-{secrets.token_hex(4)}-"
        variables = {f"YANCHAT_LIMITS_{key}".upper(): value for key, value in limits.items()}
        variables["YANCHAT_NODE_PROFILE"] = settings.node.profile
        lines: list[str] = []
        if settings.node.profile == "cluster":
            settings = _apart(settings, prefix)
            stack.callback(_remove_all, settings, directory)
            for section in ("redis", "kafka"):
                values = msgspec.structs.asdict(getattr(settings, section))
                lines += [f"[{section}]", *_toml({k: v for k, v in values.items() if k != "librdkafka"})]
            lines += ["[kafka.librdkafka]", *_toml(settings.kafka.librdkafka)]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("YANCHAT_")}
        (directory / "yanchat.toml").write_text("\n".join(lines))  # whatever the machine's own settings say
        processes = [stack.enter_context(_process(directory, number, {**kept, **variables})) for number in range(nodes)]
        yield [_ready(process, directory) for process in processes]


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP remove nodes as Ctrl-C does; by themselves they would end the call and leave those running."""

    def end(*_: object) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a background job of a shell
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    taken = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is signal.SIG_DFL]  # nohup: not
    for one in taken:
        signal.signal(one, end)
    try:
        yield
    finally:
        for one in taken:
            signal.signal(one, signal.SIG_DFL)


def _end_with_parent() -> None:
    """In the node's process: SIGTERM when the call has ended, also by SIGKILL (PR_SET_PDEATHSIG, prctl(2))."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


@contextmanager
def _process(directory: Path, number: int, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        *(sys.executable, "-m", "yanchat", "serve", "--json", "--listen", "127.0.0.1:0", "--log-level", "warning"),
        *("--config", str(directory / "yanchat.toml"), "--state-dir", str(directory)),
    ]
    with (
        (directory / f"{number}.log").open("wb") as log,
        subprocess.Popen(  # noqa: S603 - this very program
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - there is no thread yet
        ) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOPPED_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()


def _ready(process: subprocess.Popen[bytes], directory: Path) -> ThrowAway:
    line, until = b"", time.monotonic() + READY_WITHIN
    assert process.stdout is not None
    fd = process.stdout.fileno()
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([fd], [], [], max(0.0, until - time.monotonic()))
        more = os.read(fd, 65536) if readable else b""
        if not more:
            logs = "".join(log.read_text(errors="replace") for log in sorted(directory.glob("*.log")))
            raise Unreachable(f"A throw-away node does not start; it says: {logs.strip() or 'nothing'}")
        line += more
    return ThrowAway(str(json.loads(line)["url"]), process.pid)


def _apart(settings: Settings, prefix: str) -> Settings:
    replace = msgspec.structs.replace
    kafka = replace(settings.kafka, topic_prefix=f"{prefix}message-", ack_topic_prefix=f"{prefix}ack-")
    return replace(settings, redis=replace(settings.redis, key_prefix=prefix), kafka=kafka)


def _toml(values: Mapping[str, Any]) -> list[str]:
    """Lines of texts, numbers, truths and lists of texts: TOML writes these as JSON does."""
    return [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in values.items()]


def _remove_all(settings: Settings, directory: Path) -> None:
    """Remove what nodes that have ended left behind, all of it under the prefixes of these settings."""
    import trio

    from yanchat.backends import leftovers_of, open_registry

    async def forget() -> None:
        async with open_registry(settings, directory, 1.0) as registry:
            while found := [one for one in await registry.contradictions() if one.mendable]:
                await registry.mend(found)

    leftovers = leftovers_of(settings)
    assert leftovers is not None
    try:
        for leftover in leftovers.find(()):
            leftovers.remove(leftover, whatever_waits=True)
        trio.run(forget)
    except YanchatError as error:
        warn(f"Keys and topics that begin with {settings.redis.key_prefix} may still be there: {error}")
