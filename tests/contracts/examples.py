"""What the suites store and send: small builders of messages, sessions and nodes."""

from __future__ import annotations

from random import Random

from yanchat.model import AckEntry, Envelope, Node, NodeRecord, OpenId, SessionId, SessionRecord
from yanchat.protocol.ids import message_id_from_order, message_id_from_request

ANN, BOB, CID = OpenId("ann"), OpenId("bob"), OpenId("cid")
HERE, THERE = Node("127.0.0.1:8001"), Node("127.0.0.1:8002")
DAY = 86_400_000


def order_at(ms: int, n: int = 0) -> int:
    return (ms << 16) + n


def message(
    at: int,
    *recipients: OpenId,
    sender: OpenId = ANN,
    request: str = "",
    text: str = "hello",
    n: int = 0,
    trace: str = "",
) -> list[Envelope]:
    """A message accepted at this time (ms), to Bob unless told otherwise; its id follows from `request`, if given."""
    first = order_at(at, n)
    if request:
        message_id = message_id_from_request(sender, request, 0, text)
    else:
        message_id = message_id_from_order(first, Random(first))
    return [
        Envelope(first + place, message_id, recipient, sender, sender.title(), request or "r", text, 0, at, trace)
        for place, recipient in enumerate(recipients or (BOB,))
    ]


def acked(envelope: Envelope, *origins: Node, own: bool = False, at: int = 5) -> AckEntry:
    """The recipient's ack; of our own row too, when `own`."""
    order, attempts, sent_at = (envelope.order, 1, 2) if own else (0, 0, 0)
    return AckEntry(envelope.key, origins, order, attempts, sent_at, at)


def node(name: Node = HERE, incarnation: str = "i1", store: str = "s1", state: str = "up") -> NodeRecord:
    return NodeRecord(name, incarnation, store, f"ws://{name}/ws", 1, "1.0", state)


def session(user: OpenId = BOB, at: NodeRecord | None = None, number: int = 1) -> SessionRecord:
    """A session of this user on that node's incarnation."""
    at = at or node()
    session_id = SessionId(f"{at.node}_{user}_20240102102737-{number}")
    return SessionRecord(session_id, user, at.node, at.incarnation, user.title(), 7, "127.0.0.1:5")
