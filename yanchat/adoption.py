"""Moving the rows of a dead node to a live one: the run behind `yanchat redeliver --adopt`.

It holds the dead node's directory, so that this one cannot come back meanwhile, and speaks on the bus in its name. A
row is marked moved only when the other node has said that it is on its disk: so a run may end at any instant, and is
repeated without harm. The living side is `node/adoption.py`.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence, Set
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final, NamedTuple

import trio
from msgspec.structs import replace

from yanchat import failpoint
from yanchat.backends import open_backends
from yanchat.backends.sqlite.store import open_store
from yanchat.config import Settings
from yanchat.directory import locked, node_directory
from yanchat.errors import NotFound, RegistryUnavailable, Unreachable
from yanchat.model import ACKED, OPEN, Key, MessageId, Node, NodeRecord, OpenId, Row
from yanchat.names import slug
from yanchat.node.lease import LEASE
from yanchat.ports import CAME_FROM, MOVED_TO, Batch, Bus, Inbox, Outbox, Registry
from yanchat.protocol.records import Acked, Adopt, Adopted, Record, Told
from yanchat.telemetry import Counters

ANSWERED_WITHIN: Final = 30.0
AGAIN_AFTER: Final = 5.0
"""Seconds after which a batch without an answer is sent again: the adopter may have been restarted."""
ROWS_AT_ONCE: Final = 500
BYTES_AT_ONCE: Final = 768 << 10
"""Of one record, at most, unless it is a single row: what every bus carries."""
ACKS_AT_ONCE: Final = 1000


class Moved(NamedTuple):
    """What a run has done, or would do: how many rows it found and moved, of which messages, and to which node."""

    node: Node
    selected: int
    adopted: int
    message_ids: list[MessageId]


async def adopt(
    settings: Settings,
    state: Path,
    dead: Node,
    into: Node | None = None,
    *,
    dry_run: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Moved:
    """Move all that a dead node had accepted and that is not done to a live node: to `into`, else to the least busy.

    `progress` hears after each batch how many rows have moved. Raises NotFound (no such node has its state here, or
    there is no node `into`) and Unreachable (it is not dead, nobody can adopt, or the adopter does not answer in time);
    whatever happens, a repeated call goes on where this one ended.
    """
    failpoint.arm_from(os.environ)
    directory = node_directory(state, dead)
    if not (directory / "node.db").exists():
        raise NotFound(f"No node {dead} has its state in {state}; run this where it has.")
    held = f"{dead} is not dead: a process, or another run of this, holds {directory}; stop it first."
    with locked(directory, held):
        async with (
            open_store(directory / "node.db") as store,
            open_backends(settings, state, dead, LEASE, Counters()) as (registry, bus),
        ):
            adopter = choose_adopter(await registry.nodes(), dead, into)
            if dry_run:
                return await _look(store, adopter)
            return await Run(dead, adopter, store, store, registry, bus, progress).move()


def choose_adopter(nodes: Sequence[NodeRecord], dead: Node, into: Node | None) -> Node:
    """`into`, else the node that is up with the fewest sessions. Unreachable when the dead one is not."""
    others: list[NodeRecord] = []
    for record in nodes:
        if slug(record.node) != slug(dead):
            others.append(record)
        elif record.state != "dead":
            raise Unreachable(
                f"{dead} is not dead: its last heartbeat was {record.age:.0f} s ago. Stop it, and run this again when"
                f" {LEASE:.0f} s have passed without one."
            )
    up = sorted((record for record in others if record.state == "up"), key=lambda one: (one.sessions, one.node))
    names = ", ".join(record.node for record in up) or "none"
    if into is None and not up:
        raise Unreachable("No other node is up that could adopt the messages; start one with `yanchat serve`.")
    if into is None:
        return up[0].node
    if into not in {record.node for record in others}:
        raise NotFound(f"There is no other node {into}; up are: {names}.")
    if into not in {record.node for record in up}:
        raise Unreachable(f"{into} is not up; up are: {names}.")
    return into


class Run:
    """One run, over the dead node's store, and a bus that is opened as that node."""

    def __init__(
        self,
        dead: Node,
        adopter: Node,
        outbox: Outbox,
        inbox: Inbox,
        registry: Registry,
        bus: Bus,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._dead, self._adopter, self._outbox, self._inbox = dead, adopter, outbox, inbox
        self._registry, self._bus, self._progress = registry, bus, progress
        self._name = secrets.token_hex(8)
        self._earlier: tuple[Node, ...] = ()
        self._unanswered: set[Key] = set()
        self._answered = trio.Event()
        self._moved: dict[Key, None] = {}
        bus.incarnation = f"adopt-{self._name}"

    async def move(self) -> Moved:
        """Publish the acks that had not left, then move the rows, batch by batch, each after the one before."""
        await self._publish_acks()
        await self._outbox.mark(MOVED_TO + self._adopter, 1)
        self._earlier = tuple(map(Node, await self._outbox.marks(CAME_FROM)))
        acked, told = await self._heard()
        async with AsyncExitStack() as stack:
            with trio.move_on_after(ANSWERED_WITHIN) as opening:
                answers = await stack.enter_async_context(self._bus.subscribe("ack"))
            if opening.cancelled_caught:
                raise self._too_slow("The bus does not answer")
            nursery = await stack.enter_async_context(trio.open_nursery())
            nursery.start_soon(self._listen, answers)
            after = 0
            while rows := await self._outbox.movable(after, ROWS_AT_ONCE):
                now = time.time_ns() // 1_000_000
                for batch in _parts([_follow(row, acked, told, now) for row in rows]):
                    await self._hand_over(batch)
                    await self._mark(batch)
                after = rows[-1].envelope.order
            nursery.cancel_scope.cancel()
        ids = list(dict.fromkeys(message_id for message_id, _ in self._moved))
        return Moved(self._adopter, len(self._moved), len(self._moved), ids)

    # -- acks of users of the dead node --------------------------------------------------------------------------------
    async def _publish_acks(self) -> None:
        after = 0
        while found := await self._inbox.unsent(after, ACKS_AT_ONCE):
            by_node: dict[Node, list[Key]] = {}
            for _, entry in found:
                for node in entry.origins:
                    by_node.setdefault(node, []).append(entry.key)
            for node, keys in by_node.items():
                await self._store(node, Acked(self._dead, tuple(keys)))
            after = found[-1][0]
            await self._inbox.published(after)

    async def _store(self, node: Node, record: Record) -> None:
        """Publish, until the bus says that it has it."""
        stored = trio.Event()

        def hear(ok: bool) -> None:
            if ok:
                stored.set()

        with trio.move_on_after(ANSWERED_WITHIN):
            while not stored.is_set():
                self._bus.publish(node, [record], hear)
                with trio.move_on_after(AGAIN_AFTER):
                    await stored.wait()
            return
        raise self._too_slow("The bus does not take anything")

    # -- rows ----------------------------------------------------------------------------------------------------------
    async def _heard(self) -> tuple[set[Key], dict[Key, int]]:
        """What has come back for the dead node: what is acked, and of what rank a sender was told. Rows carry it.

        The adopter reads that topic as well, for what comes later; but it may die before it has.
        """
        acked: set[Key] = set()
        told: dict[Key, int] = {}
        for record in await self._bus.read(self._dead, "ack"):
            if isinstance(record, Acked):
                acked.update(record.keys)
            elif isinstance(record, Told):
                told.update({key: max(record.rank, told.get(key, OPEN)) for key in record.keys})
        return acked, told

    async def _listen(self, answers: AsyncIterator[Batch]) -> None:
        """Hear what is answered to this run. Nothing is committed: the rest is for the adopter, and for the node."""
        async for batch in answers:
            for record in batch.records:
                if isinstance(record, Adopted) and record.run == self._name:
                    self._unanswered.difference_update(record.keys)
                    if not self._unanswered:
                        self._answered.set()

    async def _hand_over(self, batch: Sequence[Row]) -> None:
        """Send a batch until the adopter says that it is on its disk."""
        self._unanswered, self._answered = {row.envelope.key for row in batch}, trio.Event()
        record = Adopt(self._dead, self._name, self._dead, tuple(batch), self._earlier)
        with trio.move_on_after(ANSWERED_WITHIN):
            while True:
                self._bus.publish(self._adopter, [record])
                failpoint.hit("adopt-sent")
                with trio.move_on_after(AGAIN_AFTER):
                    await self._answered.wait()
                    return
        raise self._too_slow(f"{self._adopter} has not answered")

    async def _mark(self, batch: Sequence[Row]) -> None:
        failpoint.hit("adopt-answered")
        await self._outbox.moved([row.envelope.key for row in batch], time.time_ns() // 1_000_000)
        failpoint.hit("adopt-moved")
        self._moved.update(dict.fromkeys(row.envelope.key for row in batch))
        self._progress(len(self._moved))
        users = {_waits(row) for row in batch}
        with suppress(RegistryUnavailable):  # then the node leaves by itself, when it comes back and is pulled
            await self._registry.leave_pending(self._dead, sorted(users))

    def _too_slow(self, what: str) -> Unreachable:
        return Unreachable(
            f"{what} within {ANSWERED_WITHIN:.0f} s. Nothing is lost: {len(self._moved)} have moved, all others still"
            f" wait in {self._dead}; run this again."
        )


def _follow(row: Row, acked: Set[Key], told: Mapping[Key, int], now: int) -> Row:
    """The row with what has come back for it."""
    key = row.envelope.key
    if row.rank < ACKED and key in acked:
        row = replace(row, rank=ACKED, settled_at=now)
    rank = min(told.get(key, OPEN), row.rank)
    return replace(row, told=rank, told_at=now) if rank > row.told else row


async def _look(outbox: Outbox, adopter: Node) -> Moved:
    """What a run would move."""
    found: list[Row] = []
    while rows := await outbox.movable(found[-1].envelope.order if found else 0, ROWS_AT_ONCE):
        found += rows
    return Moved(adopter, len(found), 0, list(dict.fromkeys(row.envelope.message_id for row in found)))


def _parts(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Batches that fit into a record each."""
    part: list[Row] = []
    size = 0
    for row in rows:
        most = 6 * (len(row.envelope.text) + len(row.envelope.sender_name)) + 1024  # six bytes: a character in JSON
        if part and size + most > BYTES_AT_ONCE:
            yield part
            part, size = [], 0
        part.append(row)
        size += most
    yield part


def _waits(row: Row) -> OpenId:
    """Whom it is open for."""
    return row.envelope.recipient if row.rank == OPEN else row.envelope.sender
