"""What comes back to the accepting node: arrived, ack, told, gone. A rank only rises, so repeats do no harm."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from yanchat.model import ACKED, GIVEN_UP, OPEN, Key, Node, Row, Step
from yanchat.node.hub import Session
from yanchat.node.ledger import Ledger
from yanchat.node.mailboxes import Mailboxes
from yanchat.node.serving import Serving
from yanchat.node.tray import Item
from yanchat.ports import Bus, Clock, Outbox
from yanchat.protocol.records import Acked, Arrived, Gone, Record, Told
from yanchat.telemetry import Counters


class Settlement:
    """`serving` serves the bus's topic `ack`; `answered` what sessions here were told; `bury` what has expired.

    `pass_on` takes keys that were acked when some of them settle nothing here.
    """

    def __init__(
        self,
        node: Node,
        outbox: Outbox,
        ledger: Ledger,
        mailboxes: Mailboxes,
        bus: Bus,
        clock: Clock,
        counters: Counters,
        pass_on: Callable[[Sequence[Key]], Awaitable[None]],
    ) -> None:
        self._node, self._outbox, self._ledger, self._mailboxes = node, outbox, ledger, mailboxes
        self._bus, self._clock, self._counters, self._pass_on = bus, clock, counters, pass_on
        self.serving = Serving("ack", self._batch, counters, ledger.flushed)

    async def _batch(self, records: Sequence[Record]) -> None:
        acked: list[Key] = []
        told: list[tuple[Key, int]] = []
        for record in records:
            match record:
                case Arrived():
                    self.arrived(record.keys)
                case Acked():
                    acked += record.keys
                case Told():
                    told += [(key, record.rank) for key in record.keys]
                case Gone():
                    for openid, session_id in record.sessions:
                        self._mailboxes.gone(openid, (record.origin, session_id))
                case _:
                    pass  # belongs to the other topic
        await self.settle(acked, ACKED)
        for rank in (GIVEN_UP, ACKED):
            await self._tell([key for key, known in told if known == rank], rank, self._clock.wall())

    async def hear(self, records: Sequence[Record]) -> None:
        """Settle what came back for a dead node, whose rows are here now. Its sessions' ends are none of ours."""
        await self._batch([record for record in records if isinstance(record, Arrived | Acked | Told)])

    async def learn(self, rows: Sequence[Row]) -> None:
        """Another node knew this of rows that may be here as well."""
        now = self._clock.wall()
        for rank in (GIVEN_UP, ACKED):
            await self.settle([row.envelope.key for row in rows if row.rank == rank], rank)
            await self._tell([row.envelope.key for row in rows if row.told == rank <= row.rank], rank, now)

    async def settle(self, keys: Sequence[Key], rank: int) -> int:
        """Raise rows to a rank: those in memory first there, the others first on disk. How many rose."""
        now = self._clock.wall()
        rose, rest = await self._in_memory(keys, lambda item: self._mailboxes.settled(item, rank, now))
        rows = await self._outbox.settle(rest, rank=rank, told=OPEN, at=now) if rest else []
        for row in rows:
            self._mailboxes.followed(row, rank, now)
        if rank == ACKED and len(rows) < len(rest):
            await self._pass_on(rest)
        return rose + len(rows)

    async def _tell(self, keys: Sequence[Key], rank: int, at: int) -> int:
        """The senders know this rank of these rows since then (0: they never will). Of how many they did not before."""
        items = self._mailboxes.items
        rose, rest = await self._in_memory(keys, lambda item: self._mailboxes.told(item, rank), told_at=at)
        rows = await self._outbox.settle(rest, rank=OPEN, told=rank, at=at) if rest else []
        for row in rows:
            item = items.get(row.envelope.key)
            if item is not None:  # read into memory meanwhile
                self._mailboxes.told(item, rank)
        return rose + len(rows)

    async def _in_memory(
        self, keys: Sequence[Key], rise: Callable[[Item], bool], told_at: int = 0
    ) -> tuple[int, list[Key]]:
        """Let rows in memory rise: how many did, and which are on disk alone, where all is written by then."""
        items, rose = self._mailboxes.items, 0

        def go(keys: Sequence[Key]) -> list[Key]:
            nonlocal rose
            here, rest = [items[key] for key in keys if key in items], [key for key in keys if key not in items]
            steps = [item.step(told_at) for item in here if rise(item)]
            self._ledger.put(steps)
            rose += len(steps)
            return rest

        rest = go(keys)
        if rest:
            await self._ledger.flushed()
            rest = go(rest)  # some may have been read into memory meanwhile
        return rose, rest

    def arrived(self, keys: Sequence[Key]) -> None:
        """A recipient's node has handed these to his sessions."""
        if self._counters.trail is not None:
            self._counters.trail.arrived(keys)
        for key in keys:
            item = self._mailboxes.items.get(key)
            if item is not None:
                item.arrived_at = item.arrived_at or self._clock.wall()

    # -- notices -------------------------------------------------------------------------------------------------------
    def answered(self, session: Session) -> None:
        """A session has answered the ping behind its notices: they are told."""
        now, remote = self._clock.wall(), dict[tuple[Node, int], list[Key]]()
        steps: list[Step] = []
        for (message_id, recipient, rank), origins in session.take_told():
            key = (message_id, recipient)
            for node in origins:
                if node != self._node:
                    remote.setdefault((node, rank), []).append(key)
                    continue
                item = self._mailboxes.items.get(key)
                if item is not None and self._mailboxes.told(item, rank):
                    steps.append(item.step(told_at=now))
        self._ledger.put(steps)
        for (node, rank), keys in remote.items():
            self._bus.publish(node, [Told(self._node, tuple(keys), rank)])

    # -- expiry --------------------------------------------------------------------------------------------------------
    async def bury(self, rows: Sequence[Row]) -> int:
        """Give up open rows, whose senders are then told (410), and notices that nobody came for. How many were."""
        buried = await self.settle([row.envelope.key for row in rows if row.rank == OPEN], GIVEN_UP)
        for rank in (GIVEN_UP, ACKED):
            buried += await self._tell([row.envelope.key for row in rows if row.told < row.rank == rank], rank, at=0)
        await self._ledger.flushed()
        return buried
