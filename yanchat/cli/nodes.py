"""Which nodes there are: through the registry, and by their directories on this machine."""

from __future__ import annotations

import os
import random
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from yanchat.cli.render import warn
from yanchat.errors import NotAllowed, NotFound, RegistryUnavailable, StoreUnavailable, Unreachable, YanchatError

if TYPE_CHECKING:
    from yanchat.config import Settings
    from yanchat.model import NodeRecord
    from yanchat.ports import Registry

LEASE: Final = 10.0
"""Seconds, as in node/lease.py; a test compares them. To load that file takes longer than all the rest of a call."""


class Here(NamedTuple):
    """A node of this machine: its name when the registry knows it or its directory tells, else its directory's."""

    name: str
    directory: Path

    @property
    def command(self) -> str:
        """What starts it."""
        return "yanchat serve" + (f" --listen {self.name}" if ":" in self.name else f" (its state: {self.directory})")


class Cluster:
    """The nodes that the settings of a call lead to."""

    def __init__(self, settings: Settings, state: Path) -> None:
        self.settings, self.state = settings, state

    def directory(self, node: str) -> Path:
        """Where that node, or the one of that slug, keeps its state, if it is one of this machine."""
        from yanchat.directory import node_directory

        return node_directory(self.state, node)

    def has(self, node: str) -> bool:
        """Whether that node has its state here. What stands in a registry may be no name for a file."""
        from yanchat.names import slug

        try:
            return slug(node) in os.listdir(self.state / "nodes")
        except FileNotFoundError:
            return False

    @property
    def inhabited(self) -> bool:
        """Whether a node has its state in this state directory, running or not, of whatever profile."""
        return any(path.is_dir() for path in (self.state / "nodes").glob("*"))

    @asynccontextmanager
    async def open_registry(self) -> AsyncIterator[Registry]:
        """The registry; a file of nodes that share a directory is not made when it is not there."""
        if self.settings.node.profile == "embedded":
            file = self.state / "cluster.db"
            if not file.exists():
                raise Unreachable(self._without_a_file())
            if not os.access(file, os.R_OK | os.W_OK):
                raise NotAllowed(f"{file} belongs to another user; call this as the user that runs the nodes.")
        else:
            hush()
        from yanchat.backends import open_registry

        async with open_registry(self.settings, self.state, LEASE) as registry:
            yield registry

    def _without_a_file(self) -> str:
        if self.inhabited:
            how = "the --config, or the --profile, --redis and --kafka, that they have"
            return f"The nodes in {self.state} are of the profile cluster, or were stopped: give {how}, or start one."
        return f"No node runs in {self.state}; start one with `yanchat serve`, or say another --state-dir."

    async def records(self) -> list[NodeRecord]:
        """What the registry says of all nodes."""
        async with self.open_registry() as registry:
            return await registry.nodes()

    def finder(self, url: str | None) -> Callable[[], Awaitable[Sequence[str]]]:
        """A call that says where a client may connect now: at this URL, else at the live nodes."""

        async def find() -> Sequence[str]:
            if url is not None:
                return [url]
            urls = [record.url for record in await self.records() if record.state == "up"]
            if not urls:
                raise Unreachable("No node runs now; start one with `yanchat serve`, or say --url.")
            random.shuffle(urls)
            return urls

        return find

    async def nodes_here(self, node: str | None = None) -> list[Here]:
        """The nodes that have a directory in this state directory, running or not; or the one of that name."""
        from yanchat.names import slug

        known: dict[str, str] = {}
        try:
            known = {slug(record.node): record.node for record in await self.records()}
        except (RegistryUnavailable, StoreUnavailable):
            pass  # its directories say enough, on a full disk, too
        except YanchatError:  # Redis refuses us, or the profile is another one: they still do, if there are any
            if not self.inhabited:
                raise
        directories = sorted(path.name for path in (self.state / "nodes").glob("*") if path.is_dir())
        found = [Here(known.get(name) or _address(name), self.state / "nodes" / name) for name in directories]
        if node is None:
            return found
        chosen = [here for here in found if here.directory.name == slug(node)]
        if not chosen:
            names = ", ".join(here.name for here in found) or "none"
            raise NotFound(f"No node {node} has its state in {self.state}; there are: {names}.")
        return [here._replace(name=node) for here in chosen]

    async def ask(
        self,
        node: str | None,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        quiet: bool = False,
    ) -> list[Any]:
        """What each running node of this machine answers, or the one of that name.

        Warns of those that do not run or do not answer, unless `quiet`; Unreachable when none answers.
        """
        import trio

        from yanchat.admin.client import NotRunning, ask_node

        nodes = await self.nodes_here(node)
        heard: list[Any] = [None] * len(nodes)

        async def ask_one(number: int, here: Here) -> None:
            try:
                heard[number] = await ask_node(here.directory / "admin.sock", method, path, query=query, body=body)
            except NotRunning:
                sentence = f"{here.name} does not run; to see what waits there, start it: `{here.command}`."
                heard[number] = NotRunning(sentence)
            except YanchatError as error:
                heard[number] = error

        async with trio.open_nursery() as nursery:  # one that hangs holds up nobody else's answer
            for number, here in enumerate(nodes):
                nursery.start_soon(ask_one, number, here)
        answers, silent = [], []
        for one in heard:
            if isinstance(one, Unreachable):
                silent.append(str(one))
            elif isinstance(one, YanchatError):
                raise one
            else:
                answers.append(one)
        if len(nodes) == 1 and silent:
            raise Unreachable(silent[0])
        if not answers:
            names = ", ".join(here.name for here in nodes) or "none"
            raise Unreachable(f"No node of this machine runs (there are: {names}); start one with `yanchat serve`.")
        for sentence in () if quiet else silent:
            warn(sentence)
        return answers


def _address(directory: str) -> str:
    """The node whose directory that is, where its name tells.

    >>> _address("127-0-0-1-8084"), _address("chat-1-example-org-8084")
    ('127.0.0.1:8084', 'chat-1-example-org-8084')
    """
    host, _, port = directory.rpartition("-")
    return f"{host.replace('-', '.')}:{port}" if re.fullmatch(r"\d+(-\d+){3}", host) else directory


def hush() -> None:
    """Drivers log for a node that lives on; a call ends with the error itself, and its stdout is for data."""
    import structlog

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("critical"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def named(found: Sequence[NodeRecord], node: str | None) -> list[NodeRecord]:
    """All, or the one of that name. NotFound when there is none."""
    chosen = [record for record in found if node in {None, record.node}]
    if node is not None and not chosen:
        names = ", ".join(record.node for record in found) or "none"
        raise NotFound(f"There is no node {node}; there are: {names}.")
    return chosen
