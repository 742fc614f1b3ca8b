"""A cluster in memory and virtual time: real nodes' work on the memory backends, and clients without sockets.

Everything between the parts takes a moment, so that their steps interleave as they do on machines.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from tests.proof.virtual import Pause
from yanchat.backends.memory import BusView, MemoryBus, MemoryRegistry, MemoryStore, RegistryView
from yanchat.config import LimitSettings, NodeSettings, RedeliverySettings, Settings
from yanchat.model import Node, NodeRecord, OpenId
from yanchat.node.assembly import Assembly, assemble
from yanchat.node.hub import Session
from yanchat.node.lease import LEASE
from yanchat.ports import Clock
from yanchat.protocol import client_frames
from yanchat.protocol.client_frames import AckReceipt, Hello, Message, Receipt, Settled
from yanchat.protocol.records import Push, Record
from yanchat.telemetry import Counters

EPOCH_MS = 1_700_000_000_000
WIRE = 0.001
"""Seconds that a frame is under way."""


class Cluster:
    """`open_cluster` makes it; nodes by name, clients by user."""

    def __init__(self, nursery: trio.Nursery, settings: Settings, seed: int) -> None:
        self.nursery, self.settings = nursery, settings
        self.pace = 1.0
        """How slow everything between the parts is."""
        self.registry = MemoryRegistry(trio.current_time, LEASE)
        self.bus = MemoryBus()
        self.rng = random.Random(seed)
        self.stores: dict[str, MemoryStore] = {}
        self.nodes: dict[str, RunningNode] = {}
        self.skew: dict[str, int] = {}
        """Milliseconds by which a node's clock is ahead."""

    async def start(self, name: str) -> RunningNode:
        """Start a node, also one that was there before: it finds what its last life had committed."""
        if name not in self.stores:
            self.stores[name] = MemoryStore(f"store-{name}")
        node = self.nodes[name] = RunningNode(self, name)
        await self.nursery.start(node.live)
        return node

    def lose(self, what: Callable[[Node, Record], bool]) -> None:
        """The bus loses these records; none any more with `lambda *_: False`."""
        self.bus.fate = lambda node, record: () if what(node, record) else (0.0,)


class RunningNode:
    """One life of a node."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.short, self.name = cluster, name, Node(f"{name}:1")
        self.gone = True
        """Not started yet, or crashed."""
        self.store = cluster.stores[name]
        self.registry: RegistryView = cluster.registry.view()
        self.registry.takes = 0.0005 * cluster.pace
        self.counters = Counters()
        self.clients: list[Client] = []
        self.work: Assembly
        self.bus: BusView
        self.pause = Pause()
        """As SIGSTOP, where the run was begun by `run_virtually`."""
        self._held: list[Callable[[], object]] = []
        self._scope = trio.CancelScope()

    async def live(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self.pause.cover()
        cluster = self.cluster
        clock = Clock(self._wall, trio.current_time, cluster.rng)
        incarnation = f"{self.name}/{cluster.rng.getrandbits(32):x}"
        record = NodeRecord(self.name, incarnation, self.store.store_id, f"ws://{self.name}/ws", clock.wall(), "test")
        with self._scope:
            async with cluster.bus.connect(self.name) as self.bus:
                self.bus.takes = 0.0005 * cluster.pace
                self.work = await assemble(
                    record,
                    cluster.settings,
                    self.store,
                    self.store,
                    self.registry,
                    self.bus,
                    clock,
                    self.counters,
                )
                async with trio.open_nursery() as nursery:
                    await nursery.start(self.work.run)
                    self.gone = False
                    task_status.started()
                    await trio.sleep_forever()

    def _wall(self) -> int:
        return EPOCH_MS + int(trio.current_time() * 1000) + self.cluster.skew.get(self.short, 0)

    def tell(self, say: Callable[[], object]) -> None:
        """Have something done that comes over a connection: at once, or when the node runs again."""
        if self.pause.on:
            self._held.append(say)
        else:
            say()

    def resume(self) -> None:
        """Go on after `pause.begin`."""
        self.pause.end()
        held, self._held = self._held, []
        for say in held:
            say()

    def crash(self) -> None:
        """As kill -9: nothing is said to anybody, nothing is finished; the clients' connections break."""
        self.gone = True
        self._held = []
        self._scope.cancel()
        self.pause.end()
        for client in self.clients:
            client.broken = True
            client.hang_up()

    async def login(self, openid: str, **behaviour: Any) -> Client:
        """A user's client, connected; its hello comes when the registry has been asked."""
        client = Client(self, OpenId(openid), **behaviour)
        self.clients.append(client)
        self.cluster.nursery.start_soon(client.run)
        await trio.lowlevel.checkpoint()
        return client


class Client:
    """A user's client: acks what it gets, answers pings, and remembers all. It is its session's outlet as well."""

    congested = False
    """True: it reads nothing now; end that with `read_on`."""

    def __init__(self, node: RunningNode, openid: OpenId, *, acks: bool = True, half_open: bool = False) -> None:
        self.node, self.openid, self.acks, self.half_open = node, openid, acks, half_open
        self.connected, self.broken = True, False
        self.heard: Callable[[client_frames.Frame], None] = lambda frame: None
        self.hung_up: Callable[[], None] = lambda: None
        self.frames: list[client_frames.Frame] = []
        self._wire_in, self._wire_out = trio.open_memory_channel[tuple[float, bytes | str]](10_000)
        self._news = trio.Event()
        self.session: Session = node.work.reception.enter(openid, openid, "test", self)

    # -- node/hub.Outlet -----------------------------------------------------------------------------------------------
    def send(self, frame: bytes) -> None:
        self._wire_in.send_nowait((trio.current_time() + WIRE, frame))

    def ping(self, payload: bytes) -> None:
        self._wire_in.send_nowait((trio.current_time() + WIRE, payload.decode()))

    def close(self, code: int, reason: str) -> None:
        self._wire_in.send_nowait((trio.current_time() + WIRE, f"close {code}"))

    def resume(self) -> None:
        pass

    # -- the client ----------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Take what the wire brings, in order."""
        async for at, frame in self._wire_out:
            await trio.sleep_until(at)
            if self.half_open or not self.connected:
                continue
            if isinstance(frame, bytes):
                self._take(client_frames.decode(frame))
            elif frame.startswith("close"):
                self.leave()
                self.hung_up()
            else:
                await trio.sleep(WIRE)
                self._tell(partial(self.session.pong, frame.encode()))

    def _take(self, frame: client_frames.Frame) -> None:
        self.frames.append(frame)
        self.heard(frame)
        if isinstance(frame, Message) and self.acks:
            self.ack(frame)
        self._news.set()

    def ack(self, message: Message) -> None:
        self._say(client_frames.ack(message))

    def write(self, to: str, text: str, request_id: str | None = None) -> None:
        """Send a message; `to` may name several users, joined by commas."""
        self._say(client_frames.send(tuple(to.split(",")), text, 0, request_id))

    def _say(self, frame: str) -> None:
        if self.connected:
            self._tell(partial(self.session.receive, frame.encode()))

    def _tell(self, say: Callable[[], object]) -> None:
        if not self.broken:
            self.node.tell(say)

    def read_on(self) -> None:
        """There is room in its buffer again."""
        self.congested = False
        if self.connected:
            self._tell(self.session.drained)

    def leave(self) -> None:
        """Close the connection."""
        self.connected = False
        self._tell(self.session.end)

    def hang_up(self) -> None:
        """The node has gone."""
        if self.connected:
            self.connected = False
            self.hung_up()

    # -- what it has seen ----------------------------------------------------------------------------------------------
    @property
    def texts(self) -> list[str]:
        return [frame.text for frame in self.frames if isinstance(frame, Message)]

    @property
    def messages(self) -> list[Message]:
        return [frame for frame in self.frames if isinstance(frame, Message)]

    @property
    def receipts(self) -> list[Receipt]:
        return [frame for frame in self.frames if isinstance(frame, Receipt)]

    @property
    def told(self) -> list[tuple[str, str, int]]:
        """(message id, recipient, status) of each notice."""
        return [(f.message_id, f.recipient, f.status) for f in self.frames if isinstance(f, Settled)]

    @property
    def hello(self) -> Hello | None:
        return next((frame for frame in self.frames if isinstance(frame, Hello)), None)

    @property
    def ack_statuses(self) -> list[int]:
        return [frame.status for frame in self.frames if isinstance(frame, AckReceipt)]

    async def until(self, seen: Callable[[Client], bool], within: float = 5.0) -> None:
        """Wait until it has seen this; fails after so many seconds of virtual time."""
        with trio.move_on_after(within):
            while not seen(self):
                self._news = trio.Event()
                await self._news.wait()
        assert seen(self), f"not within {within} s; {len(self.frames)} frames, the last: {self.frames[-5:]}"


@asynccontextmanager
async def open_cluster(
    *names: str,
    window: int = 8,
    sessions: str = "multi",
    limits: LimitSettings | None = None,
    pace: float = 1.0,
    redelivery: RedeliverySettings | None = None,
    seed: int = 1,
) -> AsyncIterator[Cluster]:
    """A cluster with these nodes up."""
    settings = Settings(
        node=NodeSettings(sessions=sessions),  # type: ignore[arg-type]
        limits=limits or LimitSettings(window=window),
        redelivery=redelivery or RedeliverySettings(),
    )
    async with trio.open_nursery() as nursery:
        cluster = Cluster(nursery, settings, seed)
        cluster.pace = pace
        for name in names:
            await cluster.start(name)
        yield cluster
        nursery.cancel_scope.cancel()


async def greeted(*clients: Client) -> None:
    """Wait until each has its hello."""
    for client in clients:
        await client.until(lambda client: client.hello is not None)


def pushes(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    """The messages that stand in a node's topic."""
    log = cluster.bus.logs[Node(f"{name}:1"), "message"]
    return [json.loads(value) for headers, value in log if headers["kind"] == "message"]


def is_push(record: Record) -> bool:
    return isinstance(record, Push)
