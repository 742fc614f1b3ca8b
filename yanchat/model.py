"""The things that yanchat speaks of, as frozen records. No behaviour, no I/O, no wire names."""

from __future__ import annotations

from typing import Final, Literal, NewType

import msgspec

Node = NewType("Node", str)
"""A node's advertised `host:port`."""
OpenId = NewType("OpenId", str)
"""A user."""
MessageId = NewType("MessageId", str)
"""32 lower-case hex digits."""
SessionId = NewType("SessionId", str)
"""`<node>_<openid>_<yyyymmddHHMMSS>`, with `-2` and so on for a second one in that second; never used twice."""

Key = tuple[MessageId, OpenId]
"""What is stored, acked and told: one message to one recipient."""
Place = tuple[Node, SessionId]
"""Where a session is."""

OPEN: Final = 0
GIVEN_UP: Final = 1
ACKED: Final = 2
"""The ranks of a row. A rank only rises; `told` is the rank that its sender knows."""


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """One message to one recipient, as accepted. `order` ascends in the order of acceptance on one node."""

    order: int
    message_id: MessageId
    recipient: OpenId
    sender: OpenId
    sender_name: str
    request_id: str
    text: str
    file_type: int
    accepted_at: int
    """Milliseconds since the epoch."""
    traceparent: str = ""
    """The trace that its sender sent it in (W3C Trace Context), if any; carried along, never acted upon."""

    @property
    def key(self) -> Key:
        return self.message_id, self.recipient


class Row(msgspec.Struct, frozen=True):
    """One row of the message table as it stands on disk; times are milliseconds since the epoch, 0 for never."""

    envelope: Envelope
    rank: int = OPEN
    told: int = OPEN
    attempts: int = 0
    sent_at: int = 0
    """First push to a session of the recipient."""
    arrived_at: int = 0
    """First time a recipient's node said that it was handed to the session."""
    settled_at: int = 0
    """When the rank last rose."""
    told_at: int = 0
    moved_at: int = 0
    """When another node took it over; from then on nothing is done with it here."""
    adopted_at: int = 0
    """When it was taken over from another node; what that one had pushed meanwhile is not known for sure."""

    @property
    def state(self) -> str:
        """pending, delivered, expired or moved: the words of the command line."""
        return "moved" if self.moved_at else ("pending", "expired", "delivered")[self.rank]


class Step(msgspec.Struct, frozen=True, gc=False):
    """What is to be written of a row, found by its order. Lower ranks and zero times never overwrite higher ones."""

    order: int
    rank: int = OPEN
    told: int = OPEN
    attempts: int = 0
    sent_at: int = 0
    arrived_at: int = 0
    settled_at: int = 0
    told_at: int = 0


class AckEntry(msgspec.Struct, frozen=True, gc=False):
    """A recipient's ack as the inbox records it."""

    key: Key
    origins: tuple[Node, ...]
    """Nodes other than this one that the message came from."""
    order: int = 0
    """The order of this node's own row, 0 when it did not accept the message itself."""
    attempts: int = 0
    sent_at: int = 0
    at: int = 0


class Notice(msgspec.Struct, frozen=True, gc=False):
    """What a sender is told of one (message, recipient)."""

    order: int
    message_id: MessageId
    recipient: OpenId
    sender: OpenId
    request_id: str
    rank: int
    at: int
    """Milliseconds since the epoch: when the rank rose."""
    traceparent: str = ""

    @property
    def key(self) -> Key:
        return self.message_id, self.recipient


class SessionRecord(msgspec.Struct, frozen=True):
    """A session's entry in the registry: a lease that lives as long as its node's incarnation."""

    session_id: SessionId
    openid: OpenId
    node: Node
    incarnation: str
    user_name: str
    connected_at: int
    """Milliseconds since the epoch, by the node's clock."""
    remote: str
    stamp: int = 0
    """The registry's own time at the first claim; set by the registry."""


class NodeRecord(msgspec.Struct, frozen=True):
    """A node's entry in the registry."""

    node: Node
    incarnation: str
    store: str
    """The random id of its message table: who holds the address."""
    url: str
    started_at: int
    version: str
    state: str = "up"
    """up or draining, as the node says; dead when its lease has lapsed, as the registry says."""
    admin: str = ""
    age: float = 0.0
    """Seconds since the last heartbeat; set by the registry."""
    sessions: int = 0
    """Set by the registry."""


Contradicts = Literal[
    "ghost",  # a session's entry of an incarnation that is not live
    "unlisted",  # a session's entry that its node's list of sessions does not name
    "no_entry",  # a node's list names a session that has no entry
    "no_node",  # a list of the sessions of a node that is not registered
    "unregistered",  # a node's record that is not in the list of nodes
    "no_lease",  # a node's record that never lapses
    "dead",  # a node in the list of nodes whose record has lapsed
    "gone_holder",  # a pending set that names a node that is not registered
    "same_slug",  # two live nodes that share their names on the bus
    "foreign",  # something else stands where one of ours belongs
]


class Contradiction(msgspec.Struct, frozen=True):
    """Two things in the registry that cannot both be so."""

    kind: Contradicts
    sentence: str
    """What, where, and what to do."""
    node: Node = Node("")
    openid: OpenId = OpenId("")
    session_id: SessionId = SessionId("")
    entry: SessionRecord | None = None

    @property
    def mendable(self) -> bool:
        """Whether the registry can mend it; else a person has to."""
        return self.kind not in {"same_slug", "foreign"}


class Totals(msgspec.Struct, frozen=True):
    """How many rows stand in each state, those purged included. All together are those accepted and adopted here."""

    pending: int = 0
    delivered: int = 0
    expired: int = 0
    untold: int = 0
    """Settled, but the sender does not know yet."""
    moved: int = 0
    """Taken over by another node, and counted in no other state."""
    adopted: int = 0
    """Ever taken over from other nodes, in whatever state they are now."""
