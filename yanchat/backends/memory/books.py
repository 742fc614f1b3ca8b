"""The books of a message table in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from yanchat.model import ACKED, GIVEN_UP, OPEN, AckEntry, MessageId, OpenId, Row
from yanchat.ports import Books
from yanchat.protocol.books import Account, ByState, Held, HeldAck, Story, Waits, held
from yanchat.protocol.ids import COUNTER_BITS

if TYPE_CHECKING:
    from yanchat.backends.memory.store import MemoryStore


class MemoryBooks(Books):
    """Of this store, whose numbers cannot but agree with its rows."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def story(self, message_id: MessageId) -> Story:
        rows = [row for row in await self._rows() if row.envelope.message_id == message_id]
        acks = [ack for ack in self._acks() if ack.message_id == message_id]
        without_text = (replace(row, envelope=replace(row.envelope, text="")) for row in rows)
        return Story(tuple(without_text), tuple(acks), self._purged_before())

    async def requested(self, sender: OpenId, request_id: str, limit: int) -> list[MessageId]:
        sent = (row.envelope for row in await self._rows())
        ids = (one.message_id for one in sent if (one.sender, one.request_id) == (sender, request_id))
        return list(dict.fromkeys(ids))[:limit]

    async def account(self, since: int = 0) -> Account:
        rows = [row for row in await self._rows() if row.envelope.order >= since << COUNTER_BITS]
        ranks = Counter(row.rank for row in rows if not row.moved_at)
        moved = sum(row.moved_at > 0 for row in rows)
        there = ByState(ranks[OPEN], ranks[ACKED], ranks[GIVEN_UP], moved)
        if since:
            adopted = sum(row.adopted_at > 0 for row in rows)
            return Account(len(rows) - adopted, adopted, None, there, ByState(), self._purged_before())
        store = self._store
        purged = ByState(0, store.purged[ACKED], store.purged[GIVEN_UP], store.moved_ever - moved)
        counted = ByState(
            there.pending,
            there.delivered + purged.delivered,
            there.expired + purged.expired,
            there.moved + purged.moved,
        )
        adopted = store.adopted_ever
        return Account(counted.all - adopted, adopted, counted, there, purged, self._purged_before())

    async def waits(self) -> Waits:
        rows = [row for row in await self._rows() if not row.moved_at]
        orders = [row.envelope.order for row in rows if row.rank == OPEN]
        untold = sum(row.rank > row.told for row in rows)
        return Waits(len(orders), untold, min(orders) >> COUNTER_BITS if orders else 0)

    async def held(self, after: int, since: int, limit: int) -> list[Held]:
        rows = [row for row in await self._rows() if row.envelope.order > after]
        wanted = [row for row in rows if row.envelope.order >= since << COUNTER_BITS][:limit]
        return [held(row) for row in wanted]

    async def held_acks(self, after: int, since: int, limit: int) -> list[HeldAck]:
        return [ack for ack in self._acks() if ack.place > after and ack.at >= since][:limit]

    async def _rows(self) -> Sequence[Row]:
        return await self._store.all_rows()

    def _acks(self) -> list[HeldAck]:
        found: list[tuple[int, AckEntry]] = sorted(self._store.inbox.values(), key=lambda one: one[0])
        left = self._store.published_to
        return [HeldAck(place, *entry.key, entry.origins, entry.at, place <= left) for place, entry in found]

    def _purged_before(self) -> int:
        last = self._store.last_purged
        return (last >> COUNTER_BITS) + 1 if last else 0
