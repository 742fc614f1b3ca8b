"""A user of the simulation: logs in somewhere, sends, acks, hops, vanishes; remembers what he was promised and got."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import trio

from tests.node.cluster import Client, RunningNode
from tests.proof import invariants
from yanchat.model import MessageId, Node, OpenId
from yanchat.protocol.client_frames import AckReceipt, Frame, Message, Receipt, Settled

if TYPE_CHECKING:
    from tests.proof.world import World


class User:
    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.clients: list[Client] = []
        self.vanished = False
        """He does not come back before the end."""
        self.unanswered: dict[str, tuple[str, ...]] = {}
        """Text → recipients, not yet receipted; the text is the request's id as well."""
        self.promised: dict[str, float] = {}
        """Texts of which he has the receipt, and since when."""
        self.got: dict[str, float] = {}
        self.arrivals: list[tuple[Client, Message]] = []
        self.told: dict[tuple[str, str], list[tuple[Client, int]]] = defaultdict(list)
        """(message id, recipient) → notices."""
        self.acked: dict[str, dict[Node, tuple[Client, float]]] = defaultdict(dict)
        """Message id → nodes that have answered his ack with 200, on which connection, and when."""
        self.since: dict[Client, float] = {}

    # -- coming and going ----------------------------------------------------------------------------------------------
    async def connect(self) -> None:
        """Log in at a node that answers, and repeat what has had no answer."""
        if self.vanished:
            return
        up: list[RunningNode] = []
        while not up:
            up = [node for node in self.world.cluster.nodes.values() if not (node.gone or node.pause.on)]
            if not up:
                await trio.sleep(1)
        node = self.world.rng.choice(up)
        client = Client(node, OpenId(self.name), acks=False)
        client.heard = lambda frame: self._heard(client, frame)
        client.hung_up = lambda: self._hung_up(client)
        node.clients.append(client)
        self.clients.append(client)
        self.since[client] = trio.current_time()
        node.cluster.nursery.start_soon(client.run)
        self.world.note(self.name, "comes to", node.name)
        for text in list(self.unanswered):
            self._repeat(client, text)

    async def reconnect(self) -> None:
        if not self.clients:
            await self.connect()

    def _hung_up(self, client: Client) -> None:
        if client in self.clients:
            self.clients.remove(client)
        if self.clients:  # what was sent over that connection may not have come
            for text in list(self.unanswered):
                self._repeat(self.clients[0], text)
        else:
            self.world.later(0.05 + self.world.rng.random() * 2, self.reconnect)

    def hop(self) -> None:
        """End all sessions, and log in again, perhaps elsewhere."""
        for client in list(self.clients):
            self._leave(client)
        self.world.later(self.world.rng.choice((0, 0.01, 3)), self.connect)

    def vanish(self) -> None:
        """Be away until the end."""
        self.vanished = True
        for client in list(self.clients):
            self._leave(client)

    def _leave(self, client: Client) -> None:
        self.clients.remove(client)
        if self.world.faulty and self.world.rng.random() < 0.3:  # half-open: the node notices late
            client.half_open = True
            self.world.later(60 * self.world.rng.random(), client.leave)
        else:
            client.leave()

    def read_slowly(self) -> None:
        """Read nothing for a moment."""
        for client in self.clients[:1]:
            client.congested = True
            self.world.later(self.world.rng.random() * (1 if self.world.calm else 8), client.read_on)

    # -- what he says --------------------------------------------------------------------------------------------------
    def send(self, to: tuple[str, ...] = ()) -> None:
        """Send to somebody, or to these."""
        if not self.clients:
            return
        world = self.world
        if not to:
            count = world.rng.choices((1, 2, 3), (90, 7, 3))[0]
            to = tuple(user.name for user in world.rng.sample(world.users, min(count, len(world.users))))
        text = f"m{world.count}"
        world.count += 1
        world.sent[text] = self.name, to
        self.unanswered[text] = to
        world.rng.choice(self.clients).write(",".join(to), text, text)

    def _repeat(self, client: Client, text: str) -> None:
        """The same request is the same message; two nodes may have it now, and each tells."""
        self.world.resent.add(text)
        client.write(",".join(self.unanswered[text]), text, text)

    def _forge(self, client: Client, message_id: str) -> None:
        """Ack a message that is for somebody else."""
        self.world.forged += 1
        client.ack(Message(MessageId(message_id), OpenId(self.name), "", OpenId(self.name), "", 0, 0, "", False))

    # -- what he hears -------------------------------------------------------------------------------------------------
    def _heard(self, client: Client, frame: Frame) -> None:
        world, now = self.world, trio.current_time()
        world.note(self.name, client.node.name, frame)
        match frame:
            case Message():
                invariants.on_message(world, self, client, frame)
                self.arrivals.append((client, frame))
                self.got.setdefault(frame.text, now)
                world.texts[frame.message_id] = frame.text
                if not world.faulty or world.rng.random() > 0.1:
                    client.ack(frame)
                    if world.faulty:
                        world.adoptions.on_ack(client.node, frame)
                    if world.faulty and world.faults.after_an_ack(frame):
                        self.vanish()
            case AckReceipt(status=200):
                invariants.on_ack_receipt(world, self, client, frame)
                self.acked[frame.message_id].setdefault(client.node.name, (client, now))
            case Receipt(status=200):
                self._receipted(client, frame)
            case Receipt(request_id=text) if text in self.unanswered:
                world.later(1 + frame.retry_after * world.rng.random(), lambda: self._again(text))
            case Settled():
                invariants.on_notice(world, self, frame)
                self.told[frame.message_id, frame.recipient].append((client, frame.status))
            case _:
                pass

    def _again(self, text: str) -> None:
        if text in self.unanswered and self.clients:
            self._repeat(self.world.rng.choice(self.clients), text)

    def _receipted(self, client: Client, receipt: Receipt) -> None:
        text = receipt.request_id
        if text in self.unanswered:
            del self.unanswered[text]
            self.promised[text] = trio.current_time()
            self.world.ids[text], self.world.texts[receipt.message_id] = receipt.message_id, text
            invariants.on_receipt(self.world, self, client, receipt)
            if self.world.rng.random() < 0.05 and self.name not in self.world.sent[text][1]:
                self._forge(client, receipt.message_id)

    def there_since(self, text: str) -> float:
        """When the session began on which this text came first."""
        return next(self.since[client] for client, message in self.arrivals if message.text == text)
