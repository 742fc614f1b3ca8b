"""The memory store, on which the rules of a node are tested, answers as the SQLite store does, which serves people."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.contracts.backends import Store
from tests.contracts.examples import ANN, BOB, CID, HERE, THERE, message
from yanchat.backends.memory import MemoryStore
from yanchat.backends.sqlite.store import open_store
from yanchat.model import AckEntry, Envelope, Key, OpenId, Row, Step
from yanchat.ports import RowFilter
from yanchat.protocol.books import Account, imbalances
from yanchat.protocol.ids import order_from_message_id

USERS = (ANN, BOB, CID)
ranks = st.integers(0, 2)
some = st.integers(0, 30)
"""Which of the rows or keys so far, counted from the last one."""
times = st.integers(0, 5)
limits = st.integers(1, 6)

messages = st.tuples(
    st.lists(st.sampled_from(USERS), min_size=1, max_size=3, unique=True),
    st.sampled_from(USERS),
    st.sampled_from(["", "", "r1", "r2", "r3"]),
)
steps = st.tuples(some, ranks, ranks, times, times, times)
foreign = st.tuples(some, ranks, ranks, times, st.sampled_from([0, 3, 4]))
"""A row as another node may have it: accepted there by the same request it has an order of its own."""
acks = st.tuples(some, st.lists(st.sampled_from([HERE, THERE]), max_size=2, unique=True), st.booleans())
filters = st.builds(
    dict,
    recipient=st.sampled_from([None, *USERS]),
    states=st.lists(
        st.sampled_from(["pending", "delivered", "expired", "untold", "moved"]), max_size=3, unique=True
    ).map(tuple),
    limit=limits,
)
operations = st.one_of(
    st.tuples(st.just("add"), st.lists(messages, min_size=1, max_size=4), st.integers(0, 4)),
    st.tuples(st.just("add"), st.lists(messages, min_size=1, max_size=4), st.just(0)),
    st.tuples(st.just("again"), some),
    st.tuples(st.just("record"), st.lists(steps, max_size=5)),
    st.tuples(st.just("settle"), st.lists(some, max_size=4), ranks, ranks),
    st.tuples(st.just("ack"), st.lists(acks, max_size=4)),
    st.tuples(st.just("pass"), st.integers(1, 20)),
    st.tuples(st.just("published"), st.integers(0, 12)),
    st.tuples(st.just("purge"), st.integers(0, 60), limits),
    st.tuples(st.just("moved"), st.lists(some, max_size=4)),
    st.tuples(st.just("adopt"), st.lists(foreign, max_size=4), st.lists(messages, max_size=2)),
    st.tuples(st.just("mark"), st.sampled_from("ab"), st.integers(0, 9)),
    st.tuples(st.just("search"), filters, some, st.none() | some, st.none() | st.integers(0, 60)),
    st.tuples(st.just("expired"), st.integers(0, 60), st.integers(0, 60), limits),
    st.tuples(st.just("restart")),
)


class Pair:
    """Does everything to both, and compares what they say."""

    def __init__(self, path: Path, stack: AsyncExitStack) -> None:
        self._path, self._stack = path, stack
        self._memory = MemoryStore("memory")
        self._sqlite: Any = None
        self.now = 100
        self.order = 0
        self.rows: list[list[Envelope]] = [message(1)]  # of this one nobody ever hears
        self.keys: list[Key] = [self.rows[0][0].key]

    async def restart(self) -> None:
        await self._stack.aclose()
        self._sqlite = await self._stack.enter_async_context(open_store(self._path))

    async def both(self, ask: Callable[[Store], Any], arrange: Callable[[Any], Any] = lambda answer: answer) -> None:
        memory, sqlite = [arrange(await ask(store)) for store in (self._memory, self._sqlite)]  # type: ignore[arg-type]
        assert memory == sqlite

    async def do(self, operation: tuple[Any, ...]) -> None:
        match operation:
            case ("add", specs, quiet):
                new = [self._message(*spec) for spec in specs]
                ids = {message[0].message_id for message in new[:quiet]}
                await self.both(lambda store: store.add(new, quiet=ids))
            case ("again", which):
                await self.both(lambda store: store.add([self.rows[-1 - which % len(self.rows)]]))
            case ("record", specs):
                written = [self._step(*spec) for spec in specs]
                await self.both(lambda store: store.record(written))
            case ("settle", which, rank, told):
                keys = [self._key(one) for one in which]
                await self.both(
                    lambda store: store.settle(keys, rank=rank, told=told, at=self.now),
                    lambda rows: sorted(rows, key=lambda row: row.envelope.order),
                )
            case ("ack", specs):
                entries = [self._ack(*spec) for spec in specs]
                await self.both(lambda store: store.ack(entries))
            case ("pass", milliseconds):
                self.now += milliseconds
            case ("published", place):
                await self.both(lambda store: store.published(place))
            case ("purge", age, limit):
                await self.both(lambda store: store.purge(self.now - age, limit))
            case ("moved", which):
                keys = [self._key(one) for one in which]
                await self.both(lambda store: store.moved(keys, self.now))
            case ("adopt", specs, others):
                theirs = [self._foreign(*spec) for spec in specs]
                theirs += [Row(one) for spec in others for one in self._message(*spec)]
                await self.both(lambda store: store.adopt(theirs, self.now))
            case ("mark", name, value):
                await self.both(lambda store: store.mark(name, value))
                await self.both(lambda store: store.marks(name[:1]))
            case ("search", fields, after, which, age):
                what = RowFilter(
                    after=self._envelope(after).order - 1,
                    message_id=None if which is None else self._envelope(which).message_id,
                    accepted_before=None if age is None else self.now - age,
                    **fields,
                )
                await self.both(lambda store: store.search(what))
            case ("expired", accepted, settled, limit):
                await self.both(lambda store: store.expired(self.now - accepted, self.now - settled, limit))
            case ("restart",):
                await self.restart()

    async def compare(self) -> None:
        """All that can be asked."""
        await self.both(lambda store: store.totals())
        await self.both(lambda store: store.books.account(), self._balanced)
        await self.both(lambda store: store.books.account(self.now - 10), _without_doubts)
        await self.both(lambda store: store.books.held(self.rows[0][0].order, self.now - 10, 5))
        await self.both(lambda store: store.books.held_acks(2, self.now - 10, 5))
        await self.both(lambda store: store.search(RowFilter()))
        await self.both(lambda store: store.find(self.keys))
        await self.both(lambda store: store.movable(0, 99))
        await self.both(lambda store: store.movable(self.rows[0][0].order, 2))
        await self.both(lambda store: store.known(self.keys))
        await self.both(lambda store: store.unsent(0, 99))
        await self.both(lambda store: store.unsent(3, 2))
        await self.both(lambda store: store.last_order())
        await self.both(lambda store: store.waiting(), sorted)
        await self.both(lambda store: store.users_with_open_rows("", 2))
        await self.both(lambda store: store.users_with_open_rows(ANN, 2))
        for user in USERS:
            for tray in ("messages", "notices"):
                await self.both(lambda store, user=user, tray=tray: store.open_rows(user, tray, 3, 9999))
        for message_id in {message_id for message_id, _ in self.keys}:
            await self.both(
                lambda store, message_id=message_id: store.recipients(message_id),
                lambda answer: (answer[0], sorted(answer[1])),
            )
            await self.both(lambda store, message_id=message_id: store.books.story(message_id))

    def _balanced(self, account: Account) -> Account:
        assert not list(imbalances(account))
        return _without_doubts(account)

    def _message(self, recipients: list[OpenId], sender: OpenId, request: str) -> list[Envelope]:
        self.order += 10  # room for what gives way to one another
        new = message(self.now, *recipients, sender=sender, request=request, n=self.order)
        self.rows.append(new)
        self.keys += [one.key for one in new]
        return new

    def _envelope(self, which: int) -> Envelope:
        return self.rows[-1 - which % len(self.rows)][0]

    def _key(self, which: int) -> Key:
        return self.keys[-1 - which % len(self.keys)]

    def _step(self, which: int, rank: int, told: int, attempts: int, sent_at: int, arrived_at: int) -> Step:
        return Step(self._envelope(which).order, rank, told, attempts, sent_at, arrived_at, self.now, self.now)

    def _foreign(self, which: int, rank: int, told: int, times: int, shift: int) -> Row:
        envelope = self._envelope(which)
        if not order_from_message_id(envelope.message_id):
            envelope = replace(envelope, order=envelope.order + shift)
        return Row(envelope, rank, told, times, times, times, self.now, self.now)

    def _ack(self, which: int, origins: list[Any], own: bool) -> AckEntry:
        envelope = self._envelope(which)
        return AckEntry(envelope.key, tuple(sorted(origins)), envelope.order if own else 0, 1, self.now, self.now)


def _without_doubts(account: Account) -> Account:
    """Steps out of nowhere leave rows as no node does: told more than they are."""
    return replace(account, doubts=())


@settings(max_examples=60)
@given(st.lists(operations, max_size=25))
async def test_whatever_is_done_to_both_they_give_the_same_answers(history: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with AsyncExitStack() as stack:
            pair = Pair(Path(directory) / "node.db", stack)
            await pair.restart()
            for operation in history:
                await pair.do(operation)
            await pair.compare()
