"""Outbox and inbox in memory. What was committed stays in the object, whatever becomes of the node that used it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import TypeVar

import trio
from msgspec.structs import replace

from yanchat.backends.memory.books import MemoryBooks
from yanchat.errors import StoreUnavailable
from yanchat.model import ACKED, GIVEN_UP, OPEN, AckEntry, Envelope, Key, MessageId, OpenId, Row, Step, Totals
from yanchat.ports import Inbox, Outbox, RowFilter, Tray, Waiting
from yanchat.protocol.ids import order_from_message_id

R = TypeVar("R")


class MemoryStore(Outbox, Inbox):
    """One node's message table; a node that is built again on it finds what its last life had committed."""

    def __init__(self, store_id: str) -> None:
        self.store_id = store_id
        self.before_read = 0.0
        """Seconds that it takes to read."""
        self.after_read = 0.0
        """Seconds that it takes to answer what was read, which may not be so any more by then."""
        self.before_commit = 0.0
        """Seconds that a write takes before its commit; cancelled there, it leaves nothing."""
        self.after_commit = 0.0
        """Seconds that it takes to answer; cancelled there, it has taken effect."""
        self.readable = self.writable = True
        """False: such calls raise StoreUnavailable, as with a full disk or a broken file."""
        self._wrote = True
        self._rows: dict[int, Row] = {}
        self._orders: dict[Key, int] = {}
        self.inbox: dict[Key, tuple[int, AckEntry]] = {}
        self._marks: dict[str, int] = {}
        self.purged: Counter[int] = Counter()
        self.moved_ever = self.adopted_ever = self.last_purged = self.published_to = 0
        self._last_order = self._place = 0
        self.books = MemoryBooks(self)

    async def _write(self, work: Callable[[], R]) -> R:
        await trio.sleep(self.before_commit)
        self._wrote = self.writable
        if not self.writable:
            raise StoreUnavailable("The store takes nothing now; make room on the disk.")
        result = work()
        if self.after_commit:
            await trio.sleep(self.after_commit)
        return result

    async def _read(self, work: Callable[[], R]) -> R:
        await trio.sleep(self.before_read)
        if not self.readable:
            raise StoreUnavailable("The store cannot be read now; check the disk.")
        result = work()
        if self.after_read:
            await trio.sleep(self.after_read)
        return result

    async def _select(self, wanted: Callable[[Row], bool], limit: int) -> list[Row]:
        def work() -> list[Row]:
            return sorted(filter(wanted, self._rows.values()), key=lambda row: row.envelope.order)[:limit]

        return await self._read(work)

    async def all_rows(self) -> list[Row]:
        """In the order of acceptance."""
        return await self._select(lambda _: True, len(self._rows))

    # -- outbox --------------------------------------------------------------------------------------------------------
    async def add(
        self, messages: Sequence[Sequence[Envelope]], *, quiet: Collection[MessageId] = ()
    ) -> list[list[bool]]:
        return await self._write(lambda: self._add(messages, quiet))

    def _add(self, messages: Sequence[Sequence[Envelope]], quiet: Collection[MessageId]) -> list[list[bool]]:
        rows: dict[int, Row] = {}
        orders: dict[Key, int] = {}
        news: list[list[bool]] = []
        for message in messages:
            news.append([])
            for envelope in message:
                if envelope.key in self._orders or envelope.key in orders:
                    news[-1].append(False)
                    continue
                acked = None if order_from_message_id(envelope.message_id) else self.inbox.get(envelope.key)
                news[-1].append(acked is None)
                if envelope.order in self._rows or envelope.order in rows:
                    raise StoreUnavailable(f"The order {envelope.order:x} was given twice; this is a bug of the node.")
                rows[envelope.order] = Row(envelope, told=ACKED if envelope.message_id in quiet else OPEN)
                if acked is not None:
                    rows[envelope.order] = Row(envelope, ACKED, ACKED, settled_at=acked[1].at)
                orders[envelope.key] = envelope.order
        self._rows |= rows
        self._orders |= orders
        self._last_order = max(self._last_order, *rows, 0)
        return news

    async def record(self, steps: Sequence[Step]) -> None:
        def work() -> None:
            for step in steps:
                self._step(step)

        await self._write(work)

    async def settle(self, keys: Sequence[Key], *, rank: int, told: int, at: int) -> list[Row]:
        def work() -> list[Row]:
            rows = [row for key in dict.fromkeys(keys) if (row := self._find(key)) is not None]
            rose = [row for row in rows if not row.moved_at and (rank > row.rank or told > row.told)]
            for row in rose:
                self._step(Step(row.envelope.order, rank, told, settled_at=at, told_at=at))
            return rose

        return await self._write(work)

    def _step(self, step: Step) -> None:
        row = self._rows.get(step.order)
        if row is not None:
            self._rows[step.order] = replace(
                row,
                rank=max(row.rank, step.rank),
                told=max(row.told, step.told),
                attempts=max(row.attempts, step.attempts),
                sent_at=row.sent_at or step.sent_at,
                arrived_at=row.arrived_at or step.arrived_at,
                settled_at=step.settled_at if step.rank > row.rank else row.settled_at,
                told_at=step.told_at if step.told > row.told else row.told_at,
            )

    async def open_rows(self, openid: OpenId, tray: Tray, limit: int, size: int) -> list[Row]:
        if tray == "messages":
            found = await self._select(lambda row: _open(row) and row.envelope.recipient == openid, limit)
        else:
            found = await self._select(lambda row: _untold(row) and row.envelope.sender == openid, limit)
        before = accumulate((len(row.envelope.text) for row in found), initial=0)
        return [row for row, read in zip(found, before, strict=False) if read < size or row is found[0]]

    async def users_with_open_rows(self, after: str, limit: int) -> list[OpenId]:
        def work() -> list[OpenId]:
            rows = self._rows.values()
            users = {row.envelope.recipient for row in rows if _open(row)}
            users |= {row.envelope.sender for row in rows if _untold(row)}
            return sorted(user for user in users if user > after)[:limit]

        return await self._read(work)

    async def waiting(self) -> list[Waiting]:
        def work() -> list[Waiting]:
            pairs = Counter((row.envelope.sender, row.envelope.recipient) for row in self._rows.values() if _open(row))
            return [Waiting(sender, recipient, rows) for (sender, recipient), rows in pairs.items()]

        return await self._read(work)

    async def find(self, keys: Sequence[Key]) -> list[Row | None]:
        return await self._read(lambda: [self._find(key) for key in keys])

    def _find(self, key: Key) -> Row | None:
        order = self._orders.get(key)
        return None if order is None else self._rows[order]

    async def search(self, what: RowFilter) -> list[Row]:
        def wanted(row: Row) -> bool:
            envelope = row.envelope
            return (
                envelope.order > what.after
                and what.recipient in (None, envelope.recipient)
                and what.message_id in (None, envelope.message_id)
                and (what.accepted_before is None or envelope.accepted_at < what.accepted_before)
                and (not what.states or row.state in what.states or ("untold" in what.states and _untold(row)))
            )

        return await self._select(wanted, what.limit)

    async def expired(self, accepted_before: int, settled_before: int, limit: int) -> list[Row]:
        old = await self._select(lambda row: _open(row) and row.envelope.accepted_at < accepted_before, limit)
        untold = await self._select(lambda row: _untold(row) and row.settled_at < settled_before, limit)
        return (old + untold)[:limit]

    async def movable(self, after: int, limit: int) -> list[Row]:
        return await self._select(
            lambda row: row.envelope.order > after and not row.moved_at and (row.rank, row.told) != (ACKED, ACKED),
            limit,
        )

    async def adopt(self, rows: Sequence[Row], at: int) -> list[Row]:
        def work() -> list[Row]:
            came: list[Row] = []
            order = 0
            for row in sorted(rows, key=lambda row: row.envelope.order):
                known = self._find(row.envelope.key)
                if known is None:
                    order = max(order + 1, row.envelope.order)
                    while order in self._rows:
                        order += 1
                    new = replace(row, envelope=replace(row.envelope, order=order), moved_at=0, adopted_at=at)
                    self._rows[order], self._orders[new.envelope.key] = new, order
                    self._last_order = max(self._last_order, order)
                    self.adopted_ever += 1
                    came.append(new)
                    continue
                self._step(_step(known.envelope.order, row))
                if known.moved_at:
                    order_here = known.envelope.order
                    self._rows[order_here] = replace(self._rows[order_here], moved_at=0, adopted_at=at)
                    self.moved_ever -= 1
                    came.append(self._rows[order_here])
            return came

        return await self._write(work)

    async def moved(self, keys: Sequence[Key], at: int) -> None:
        def work() -> None:
            for key in keys:
                row = self._find(key)
                if row is not None and not row.moved_at:
                    self._rows[row.envelope.order] = replace(row, moved_at=at)
                    self.moved_ever += 1

        await self._write(work)

    async def totals(self) -> Totals:
        def work() -> Totals:
            ranks = self.purged + Counter(row.rank for row in self._rows.values() if not row.moved_at)
            untold = sum(map(_untold, self._rows.values()))
            return Totals(ranks[OPEN], ranks[ACKED], ranks[GIVEN_UP], untold, self.moved_ever, self.adopted_ever)

        return await self._read(work)

    async def purge(self, before: int, limit: int) -> int:
        def work() -> int:
            done = sorted(
                order
                for order, row in self._rows.items()
                if row.envelope.accepted_at < before and (OPEN < row.rank <= row.told or row.moved_at)
            )[:limit]
            for order in done:
                row = self._rows.pop(order)
                del self._orders[row.envelope.key]
                self.purged[row.rank] += not row.moved_at
                self.last_purged = max(self.last_purged, order)
            acks = sorted((place, key) for key, (place, entry) in self.inbox.items() if entry.at < before)
            acks = acks[: limit - len(done)]
            for _, key in acks:
                del self.inbox[key]
            return len(done) + len(acks)

        return await self._write(work)

    async def last_order(self) -> int:
        return await self._read(lambda: self._last_order)

    async def mark(self, name: str, value: int) -> int:
        def work() -> int:
            before = self._marks.get(name, 0)
            if value > before:
                self._marks[name] = value
            return before

        return await self._write(work)

    async def marks(self, prefix: str) -> Mapping[str, int]:
        def work() -> dict[str, int]:
            return {name[len(prefix) :]: self._marks[name] for name in self._marks if name.startswith(prefix)}

        return await self._read(work)

    def healthy(self) -> bool:
        return self._wrote

    async def check(self) -> None:
        with suppress(StoreUnavailable):
            await self._write(lambda: None)

    # -- inbox ---------------------------------------------------------------------------------------------------------
    async def known(self, keys: Sequence[Key]) -> list[bool]:
        def acked(key: Key) -> bool:
            row = self._find(key)
            return key in self.inbox or (row is not None and row.rank == ACKED)

        return await self._read(lambda: list(map(acked, keys)))

    async def ack(self, entries: Sequence[AckEntry]) -> list[int]:
        return await self._write(lambda: list(map(self._ack, entries)))

    def _ack(self, entry: AckEntry) -> int:
        self._step(Step(entry.order, ACKED, attempts=entry.attempts, sent_at=entry.sent_at, settled_at=entry.at))
        if not entry.origins:
            return 0
        _, before = self.inbox.get(entry.key, (0, entry))
        origins = tuple(sorted({*entry.origins, *before.origins}))
        self._place += 1
        self.inbox[entry.key] = self._place, AckEntry(entry.key, origins, at=entry.at)
        return self._place

    async def recipients(self, message_id: MessageId) -> tuple[dict[OpenId, int], list[OpenId]]:
        def work() -> tuple[dict[OpenId, int], list[OpenId]]:
            rows = [row for row in self._rows.values() if row.envelope.message_id == message_id and not row.moved_at]
            acked = {row.envelope.recipient for row in rows if row.rank == ACKED}
            acked |= {user for found, user in self.inbox if found == message_id}
            return {row.envelope.recipient: row.envelope.order for row in rows}, sorted(acked)

        return await self._read(work)

    async def unsent(self, after: int, limit: int) -> list[tuple[int, AckEntry]]:
        def work() -> list[tuple[int, AckEntry]]:
            found = [(place, entry) for place, entry in self.inbox.values() if place > max(after, self.published_to)]
            return sorted(found, key=lambda one: one[0])[:limit]

        return await self._read(work)

    async def published(self, place: int) -> None:
        def work() -> None:
            self.published_to = max(self.published_to, place)

        await self._write(work)


def _open(row: Row) -> bool:
    return row.rank == OPEN and not row.moved_at


def _untold(row: Row) -> bool:
    return row.rank > row.told and not row.moved_at


def _step(order: int, row: Row) -> Step:
    """All that another node knew of a row."""
    return Step(order, row.rank, row.told, row.attempts, row.sent_at, row.arrived_at, row.settled_at, row.told_at)
