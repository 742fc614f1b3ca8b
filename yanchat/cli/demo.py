"""`yanchat demo`: two nodes in processes of their own, two users, one closed loop, told frame by frame."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from yanchat.cli.call import Call, run_async
from yanchat.errors import Unreachable

if TYPE_CHECKING:
    import trio

    from yanchat.client import Client

READY_WITHIN: Final = 20.0
CLOSED_WITHIN: Final = 10.0
NOT_CLOSED: Final = 1
TEXT: Final = "Hello Bob, tell me when you have this."

STEPS: Final = {
    1: ("Ann", "node 1", "send", "Ann's message to Bob, with her request id."),
    2: ("node 1", "Ann", "receipt", "It is on disk now: from here on it cannot be lost."),
    3: ("node 2", "Bob", "push", "Node 1 has found Bob on node 2, which hands it to him."),
    4: ("Bob", "node 2", "ack", "Bob's client has it."),
    5: ("node 2", "Bob", "receipt of the ack", "The ack is on disk, too."),
    6: ("node 1", "Ann", "notice", "Ann knows that Bob has it: the loop is closed."),
}
"""From, to, name and meaning of the six frames of one message."""


class Step(NamedTuple):
    number: int
    seconds: float
    frame: str


def demo(call: Call) -> int:
    """Show one message on its whole way: two nodes, two users, six frames.

    Everything runs in a temporary directory on free ports, on SQLite alone, and is removed behind.
    """
    with tempfile.TemporaryDirectory(prefix="yanchat-") as directory:
        steps: list[Step] = run_async(_play, call, Path(directory))
    closed = len(steps) == len(STEPS)
    call.out.document(
        {
            "closed": closed,
            "frames": [_as_json(step) for step in steps],
            "latency_ms": round(steps[-1].seconds * 1000, 2) if closed else None,
        },
        "The nodes have stopped, and what they kept is removed."
        if closed
        else f"The loop did not close within {CLOSED_WITHIN:.0f} s.",
    )
    return 0 if closed else NOT_CLOSED


async def _play(call: Call, directory: Path) -> list[Step]:
    import trio

    from yanchat.client import connect

    (directory / "yanchat.toml").write_text("")  # whatever the machine's own settings say
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        processes = [await _start(nursery, directory, number) for number in (1, 2)]
        first, second = [await _ready(process, directory) for process in processes]
        if call.out.form == "person":
            _introduce(call, first, second, trio.current_time() - began)
        async with connect(first, "ann", "Ann") as ann, connect(second, "bob", "Bob") as bob:
            steps = await _close_the_loop(ann, bob)
        if call.out.form == "person":
            _tell(call, steps)
        nursery.cancel_scope.cancel()
    return steps


async def _start(nursery: trio.Nursery, directory: Path, number: int) -> trio.Process:
    import subprocess
    from functools import partial

    import trio

    environment = {name: value for name, value in os.environ.items() if not name.startswith("YANCHAT_")}
    command = [
        *(sys.executable, "-m", "yanchat", "serve", "--json", "--listen", "127.0.0.1:0"),
        *("--config", str(directory / "yanchat.toml"), "--state-dir", str(directory)),
    ]
    with (directory / f"{number}.log").open("wb") as log:
        # when the nursery is cancelled it gets SIGTERM, and SIGKILL should that not help
        process: trio.Process = await nursery.start(
            partial(trio.run_process, command, env=environment, stdout=subprocess.PIPE, stderr=log, check=False)
        )
    return process


async def _ready(process: trio.Process, directory: Path) -> str:
    """The URL of a node that was started."""
    import trio

    line = b""
    assert process.stdout is not None
    with trio.move_on_after(READY_WITHIN):
        while not line.endswith(b"\n"):
            more = await process.stdout.receive_some()
            if not more:
                break
            line += more
    if not line.endswith(b"\n"):
        logs = "".join(log.read_text(errors="replace") for log in sorted(directory.glob("*.log")))
        raise Unreachable(f"A node of the demo does not start; it says: {logs.strip() or 'nothing'}")
    return str(json.loads(line)["url"])


async def _close_the_loop(ann: Client, bob: Client) -> list[Step]:
    """The six frames of one message, as far as they came in time."""
    import trio

    from yanchat.protocol import client_frames
    from yanchat.protocol.client_frames import AckReceipt, Message, Receipt, Settled

    steps: list[Step] = []
    began = trio.current_time()

    def saw(number: int, frame: str) -> None:
        steps.append(Step(number, trio.current_time() - began, frame))

    async def be_ann() -> None:
        frame = client_frames.send(("bob",), TEXT, request_id="demo-1")
        saw(1, frame)
        await ann.send_raw(frame)
        told = False
        while not told:
            data = await ann.receive_raw()
            known = client_frames.decode(data)
            told = isinstance(known, Settled)
            if told or isinstance(known, Receipt):
                saw(6 if told else 2, data)

    async def be_bob() -> None:
        receipted = False
        while not receipted:
            data = await bob.receive_raw()
            known = client_frames.decode(data)
            receipted = isinstance(known, AckReceipt)
            if receipted:
                saw(5, data)
            elif isinstance(known, Message):
                saw(3, data)
                ack = client_frames.ack(known)
                saw(4, ack)
                await bob.send_raw(ack)

    with trio.move_on_after(CLOSED_WITHIN):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(be_bob)
            nursery.start_soon(be_ann)
    return sorted(steps)


def _introduce(call: Call, first: str, second: str, seconds: float) -> None:
    out = call.out
    out.line(f"Two nodes on SQLite alone, each a process of its own, ready in {seconds:.1f} s:", "bold")
    out.line(f"  node 1  {first}   Ann is here")
    out.line(f"  node 2  {second}   Bob is here")
    out.line(f'Ann writes to Bob: "{TEXT}"')


def _tell(call: Call, steps: list[Step]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    out = call.out.lines
    for step in steps:
        sender, receiver, name, meaning = STEPS[step.number]
        head = Text("\n")
        head.append(f"{step.number} ", "bold cyan")
        head.append(f"{step.seconds * 1000:6.1f} ms  ", "dim")
        head.append(f"{sender} → {receiver}".ljust(16), "bold")
        head.append(f"{name} (type {_type(step.frame)})".ljust(30), "cyan")
        head.append(meaning)
        out.print(head, soft_wrap=True)
        out.print(Padding(Text(step.frame, "dim", overflow="fold"), (0, 0, 0, 13), expand=False))
    if len(steps) == len(STEPS):
        call.out.line("")
        call.out.line(f"Closed in {steps[-1].seconds * 1000:.1f} ms, two commits to disk included.", "bold green")


def _type(frame: str) -> int:
    known = json.loads(frame)
    return int(known["type"] if "type" in known else known["msg"]["type"])


def _as_json(step: Step) -> dict[str, Any]:
    sender, receiver, name, _ = STEPS[step.number]
    return {
        "step": step.number,
        "type": _type(step.frame),
        "name": name,
        "from": sender,
        "to": receiver,
        "at_ms": round(step.seconds * 1000, 2),
        "frame": json.loads(step.frame),
    }
