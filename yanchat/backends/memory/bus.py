"""A bus in memory. Nodes reach it through views; a test decides over each record: lost, repeated, late."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager

import trio

from yanchat.errors import BusUnavailable
from yanchat.model import Node
from yanchat.ports import Batch, Bus
from yanchat.protocol import records
from yanchat.protocol.records import Headers, Record, Topic

_Name = tuple[Node, Topic]
_Entry = tuple[Headers, bytes]


class MemoryBus:
    """The topics of all nodes, as bytes, so that nothing passes here that another bus would not carry."""

    def __init__(self) -> None:
        self.up = True
        """False: nothing is stored, for no node."""
        self.fate: Callable[[Node, Record], Sequence[float]] = lambda node, record: (0.0,)
        """Asked of each record before it is stored: the delay in seconds of each of its copies; none: it is lost."""
        self.batch = 500
        """How many records are handed over at once, at most."""
        self.logs: defaultdict[_Name, list[_Entry]] = defaultdict(list)
        self.committed: defaultdict[_Name, int] = defaultdict(int)
        self._late: list[tuple[float, int, _Name, _Entry]] = []
        self._count = 0
        self._news: defaultdict[_Name, trio.Event] = defaultdict(trio.Event)

    @asynccontextmanager
    async def connect(self, node: Node) -> AsyncIterator[BusView]:
        """One node's view. What it has published and the bus has not yet stored is lost when the context ends."""
        view = BusView(self, node)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(view.run)
            yield view
            nursery.cancel_scope.cancel()

    def store(self, node: Node, record: Record, incarnation: str) -> None:
        """Store the copies of a record that its fate grants."""
        name, entry = (node, records.topic_of(record)), records.encode(record, incarnation)
        for delay in self.fate(node, record):
            self._count += 1
            heapq.heappush(self._late, (trio.current_time() + delay, self._count, name, entry))
            self._news[name].set()
        self._arrive()

    def end(self, name: _Name) -> int:
        """The place behind the last record."""
        self._arrive()
        return len(self.logs[name])

    def read(self, name: _Name, place: int) -> list[_Entry]:
        """Up to a batch of records behind this place."""
        self._arrive()
        return self.logs[name][place : place + self.batch]

    async def wait(self, name: _Name) -> None:
        """Wait until something may have come; a late record comes by its time."""
        if self._news[name].is_set():
            self._news[name] = trio.Event()
        next_at = min((at for at, _, late, _ in self._late if late == name), default=float("inf"))
        with trio.move_on_at(next_at):
            await self._news[name].wait()

    def _arrive(self) -> None:
        while self._late and self._late[0][0] <= trio.current_time():
            _, _, name, entry = heapq.heappop(self._late)
            self.logs[name].append(entry)
            self._news[name].set()


class BusView(Bus):
    """Made by `MemoryBus.connect`."""

    def __init__(self, bus: MemoryBus, node: Node) -> None:
        self._it, self._node = bus, node
        self.up = True
        """False: this node's records are not stored, and `stored` hears so."""
        self.answers = True
        """False: they are stored, but `stored` hears that perhaps they are not."""
        self.takes = 0.0
        """Seconds that storing takes."""
        self._queue: list[tuple[Node, Sequence[Record], Callable[[bool], None] | None]] = []
        self._wake, self._idle = trio.Event(), trio.Event()
        self._idle.set()

    def publish(self, node: Node, records: Sequence[Record], stored: Callable[[bool], None] | None = None) -> None:
        self._queue.append((node, tuple(records), stored))
        if self._idle.is_set():
            self._idle = trio.Event()
        self._wake.set()

    async def run(self) -> None:
        """Store what is queued, as long as the node lives."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            await trio.sleep(self.takes)
            queue, self._queue = self._queue, []
            ok = self.up and self._it.up
            for node, batch, stored in queue:
                for record in batch if ok else ():
                    self._it.store(node, record, self.incarnation)
                if stored is not None:
                    stored(ok and self.answers)
            if not self._queue:
                self._idle.set()

    @asynccontextmanager
    async def subscribe(self, topic: Topic) -> AsyncIterator[AsyncIterator[Batch]]:
        await trio.lowlevel.checkpoint()
        async with aclosing(self._batches((self._node, topic))) as batches:
            yield batches

    async def _batches(self, name: _Name) -> AsyncGenerator[Batch, None]:
        place, end, first = self._it.committed[name], self._it.end(name), True
        while True:
            await trio.lowlevel.checkpoint()
            found = self._it.read(name, place)
            if found or first:
                place, first = place + len(found), False
                known = [record for entry in found if (record := records.decode(*entry)) is not None]
                yield MemoryBatch(self._it, name, place, known, place >= end)
            else:
                await self._it.wait(name)

    async def read(self, node: Node, topic: Topic) -> list[Record]:
        await trio.lowlevel.checkpoint()
        if not (self.up and self._it.up):
            raise BusUnavailable("The bus cannot be reached now; try again.")
        name = (node, topic)
        self._it.end(name)  # what is due has arrived
        entries = self._it.logs[name][self._it.committed[name] :]
        return [record for entry in entries if (record := records.decode(*entry)) is not None]

    async def lag(self) -> Mapping[Topic, int]:
        topics: tuple[Topic, ...] = ("message", "ack")
        return {topic: self._it.end((self._node, topic)) - self._it.committed[self._node, topic] for topic in topics}

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()
        await self._idle.wait()


class MemoryBatch(Batch):
    def __init__(self, bus: MemoryBus, name: _Name, place: int, found: Sequence[Record], caught_up: bool) -> None:
        self._it, self._name, self._place = bus, name, place
        self.records, self.caught_up = found, caught_up

    async def commit(self) -> None:
        await trio.lowlevel.checkpoint()
        self._it.committed[self._name] = max(self._it.committed[self._name], self._place)
