"""Every node that may know something: asked while it runs, read from its files when it does not.

Nodes of this machine are found by their directories, those of others through the registry, at their admin addresses.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import trio

from yanchat.admin.accounts import NodeBooks, show
from yanchat.admin.client import NotRunning, Remote, ask_node, understood
from yanchat.admin.stories import Told, tell
from yanchat.cli.nodes import Cluster
from yanchat.cli.render import warn
from yanchat.errors import NotFound, StoreUnavailable, Unreachable, YanchatError
from yanchat.model import Node
from yanchat.names import slug
from yanchat.protocol.books import Held, HeldAck, held

if TYPE_CHECKING:
    from yanchat.model import MessageId, NodeRecord, OpenId, SessionRecord
    from yanchat.ports import Books

T = TypeVar("T")
PAGE: Final = 10_000
MOST_IDS: Final = 100
LOOKS_THROUGH: Final = 600.0
"""Seconds that a node may take to look through its whole table."""


class Silent(NamedTuple):
    """A node that could not be asked, and why."""

    node: str
    why: str


class Witness:
    """One node: its admin HTTP, if it runs, and its message table, if that is on this machine."""

    def __init__(self, node: Node, at: Path | Remote | None, file: Path | None, start: str = "") -> None:
        self.node, self.start = node, start
        """`start`: the command that starts it here."""
        self._at, self._file = at, file
        self.runs = at is not None

    async def tell(self, message_id: MessageId) -> Told:
        """The life of one message, as this node knows it."""

        async def read(books: Books) -> Told:
            story = await books.story(message_id)
            return tell(self.node, message_id, story, time.time_ns() // 1_000_000, runs=self.runs)

        return await self._ask(f"/trace/{message_id}", {}, lambda answer: understood(answer, Told), read)

    async def requested(self, sender: OpenId, request_id: str) -> list[MessageId]:
        """The messages that a user sent under a request id."""
        return await self._ask(
            "/trace",
            {"from": sender, "request_id": request_id},
            lambda answer: understood(answer, list[str], "message_ids"),
            lambda books: books.requested(sender, request_id, MOST_IDS),
            through_all=True,
        )

    async def books(self, since: int) -> NodeBooks:
        """Its books, with what is wrong with them."""

        async def read(books: Books) -> NodeBooks:
            return show(self.node, await books.account(since))

        query = {"since": since}
        return await self._ask("/audit", query, lambda answer: understood(answer, NodeBooks), read, through_all=True)

    async def rows(self, after: int, since: int) -> list[Held]:
        """A page of rows behind this order."""
        return await self._ask(
            "/audit/rows",
            {"after": after, "since": since, "limit": PAGE},
            lambda answer: understood(answer, list[Held], "rows"),
            lambda books: books.held(after, since, PAGE),
        )

    async def acks(self, after: int, since: int) -> list[HeldAck]:
        """A page of acks behind this place."""
        return await self._ask(
            "/audit/acks",
            {"after": after, "since": since, "limit": PAGE},
            lambda answer: understood(answer, list[HeldAck], "acks"),
            lambda books: books.held_acks(after, since, PAGE),
        )

    async def entries(self, message_id: MessageId) -> tuple[list[Held], list[HeldAck]]:
        """The rows and acks of one message."""

        async def read(books: Books) -> tuple[list[Held], list[HeldAck]]:
            story = await books.story(message_id)
            return list(map(held, story.rows)), list(story.acks)

        return await self._ask(
            f"/audit/{message_id}",
            {},
            lambda answer: (understood(answer, list[Held], "rows"), understood(answer, list[HeldAck], "acks")),
            read,
        )

    async def _ask(
        self,
        path: str,
        query: Mapping[str, object],
        hear: Callable[[Any], T],
        read: Callable[[Books], Awaitable[T]],
        *,
        through_all: bool = False,
    ) -> T:
        """What the node answers; when it does not, what its table says. YanchatError: neither can be had.

        With `through_all` it may take long, as it looks through the whole table; but it must be there.
        """
        from yanchat.backends.sqlite.books import FileBooks

        if self._at is not None:
            texts = {name: str(value) for name, value in query.items()}
            try:
                if through_all:
                    await ask_node(self._at, "GET", "/healthz")
                within = LOOKS_THROUGH if through_all else None
                return hear(await ask_node(self._at, "GET", path, query=texts, within=within))
            except NotRunning:
                if self._file is None:
                    raise
                self.runs = False
            except (Unreachable, NotFound, StoreUnavailable) as error:  # it hangs, or is of an earlier version
                if self._file is None:
                    raise
                warn(f"{self.node} does not answer ({error}) This is what stands on its disk.")
            self._at = None
        assert self._file is not None
        return await read(FileBooks(self._file))


class Heard(NamedTuple):
    """What all of them answered, and who did not."""

    answers: list[tuple[Witness, Any]]
    silent: list[Silent]


class Witnesses:
    """All nodes of a cluster, as far as they are known."""

    def __init__(self, cluster: Cluster, token: str) -> None:
        self._cluster, self._token = cluster, token
        self.asked: list[Witness] = []
        self.silent: list[Silent] = []
        self.records: list[NodeRecord] = []

    async def find(self) -> None:
        """Look for them. What is wrong with the registry is raised when no node's directory is here, either."""
        registry: YanchatError | None = None
        try:
            self.records = await self._cluster.records()
        except YanchatError as error:
            registry = error
        here = [one for one in await self._cluster.nodes_here() if (one.directory / "node.db").exists()]
        if registry is not None and not here:
            raise registry
        if registry is not None:
            self.silent.append(Silent("", f"Nodes of other machines are not known: {registry}"))
        for one in here:
            self.asked.append(
                Witness(Node(one.name), one.directory / "admin.sock", one.directory / "node.db", one.command)
            )
        slugs = {one.directory.name for one in here}
        for record in self.records:
            if slug(record.node) not in slugs:
                self._elsewhere(record)

    def _elsewhere(self, record: NodeRecord) -> None:
        node = record.node
        if record.admin and self._token:
            self.asked.append(Witness(node, Remote(record.admin, self._token), None))
        elif record.admin:
            why = f"{node} answers at {record.admin}, but only to who has the token: give --admin-token-file."
            self.silent.append(Silent(node, why))
        elif record.state == "dead":
            why = f"{node} is dead, and its files are not in {self._cluster.state}: call this where they are."
            self.silent.append(Silent(node, why))
        else:
            where = f"has no admin address, and its files are not in {self._cluster.state}"
            why = f"{node} {where}: set admin.listen there, or call this where they are."
            self.silent.append(Silent(node, why))

    async def ask(self, question: Callable[[Witness], Awaitable[Any]]) -> Heard:
        """Put it to all at the same time. Who cannot answer is silent from now on."""
        heard: dict[str, Any] = {}

        async def ask_one(witness: Witness) -> None:
            try:
                heard[witness.node] = await question(witness)
            except YanchatError as error:
                heard[witness.node] = error

        async with trio.open_nursery() as nursery:  # one that hangs holds up nobody else's answer
            for witness in self.asked:
                nursery.start_soon(ask_one, witness)
        answers: list[tuple[Witness, Any]] = []
        for witness in self.asked:
            answer = heard[witness.node]
            if isinstance(answer, YanchatError):
                self.silent.append(Silent(witness.node, f"{witness.node} cannot be asked: {answer}"))
            else:
                answers.append((witness, answer))
        self.asked = [witness for witness, _ in answers]
        return Heard(answers, self.silent)

    async def sessions_of(self, openids: Sequence[OpenId]) -> Mapping[OpenId, Sequence[SessionRecord]] | None:
        """Where these users are now; None when nobody knows."""
        with suppress(YanchatError):
            async with self._cluster.open_registry() as registry:
                return await registry.locate(openids)
        return None


def admin_token(cluster: Cluster, file: Path | None) -> str:
    """The token that nodes of other machines ask for; empty when none is set."""
    from msgspec.structs import replace

    from yanchat.admin.tcp import read_token

    settings = cluster.settings.admin
    if file is not None:
        settings = replace(settings, token_file=str(file))
    return read_token(settings).decode() if settings.token_file else ""
