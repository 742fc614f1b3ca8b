"""The ports: what a node needs of a registry, a bus and a message table, and what it may rely on.

Each is an ABC; `tests/contracts` holds every backend to it. All coroutine methods take batches, may be cancelled at
any await (the call then took effect or not, and may be repeated), and may be repeated without harm.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from random import Random
from typing import Final, Literal, NamedTuple

import msgspec

from yanchat.model import (
    AckEntry,
    Contradiction,
    Envelope,
    Key,
    MessageId,
    Node,
    NodeRecord,
    OpenId,
    Row,
    SessionRecord,
    Step,
    Totals,
)
from yanchat.protocol.books import Account, Held, HeldAck, Story, Waits
from yanchat.protocol.records import Record, Topic


class Clock(NamedTuple):
    """Time and chance, given to every part by the composition root."""

    wall: Callable[[], int]
    """Milliseconds since the epoch; may step."""
    monotonic: Callable[[], float]
    """Seconds; never steps; trio's clock."""
    rng: Random


class Registry(ABC):
    """Who is where in the cluster. Entries are leases: those of a node that is not live count for nothing.

    Every method raises RegistryUnavailable when the registry cannot be reached.
    """

    @abstractmethod
    async def join(self, record: NodeRecord) -> None:
        """Take the address for this incarnation, for one lease.

        A live node with another `store` holds it: AddressTaken. The same store takes over at once.
        """

    @abstractmethod
    async def renew(self, record: NodeRecord) -> bool:
        """Renew the lease and the record's state. False: the lease has lapsed or is gone; join again.

        Another incarnation stands under the name: AddressTaken.
        """

    @abstractmethod
    async def leave(self, record: NodeRecord) -> None:
        """Remove the node's record, if it is still this incarnation's."""

    @abstractmethod
    async def nodes(self) -> list[NodeRecord]:
        """All nodes that are known, with `age` and `sessions`.

        A lapsed one has the state `dead`, and what else it had said of itself may be forgotten.
        """

    @abstractmethod
    async def claim(self, sessions: Sequence[SessionRecord]) -> list[bool]:
        """Enter sessions. For each: was it news? An entry that is there keeps its stamp."""

    @abstractmethod
    async def release(self, sessions: Sequence[SessionRecord]) -> None:
        """Remove entries by session id (ids are never used twice, so removing one's own is always safe)."""

    @abstractmethod
    async def reap(self, sessions: Sequence[SessionRecord]) -> None:
        """Remove entries of dead incarnations: each only while it stands so and that incarnation is not live."""

    @abstractmethod
    async def locate(self, openids: Sequence[OpenId]) -> Mapping[OpenId, Sequence[SessionRecord]]:
        """The sessions of these users on live incarnations; a user without any may be missing from the answer.

        What others have just written of a user who has sessions may not be in it yet, for a moment (on Redis: until it
        has said so, and a second at most). What this registry has written is, and so is all that was written before
        its last `claim` or `enter` of that user.
        """

    def forget(self, openids: Sequence[OpenId]) -> None:  # noqa: B027 - only who remembers has something to forget
        """These users have come or gone: `locate` asks for them anew."""

    @abstractmethod
    async def sessions(self, *, node: Node | None = None, openid: OpenId | None = None) -> list[SessionRecord]:
        """All entries, also those of dead incarnations: of one node, of one user, or of all."""

    @abstractmethod
    async def enter(self, node: Node, openids: Sequence[OpenId]) -> None:
        """Put the node into these users' pending sets."""

    @abstractmethod
    async def leave_pending(self, node: Node, openids: Sequence[OpenId]) -> None:
        """Take the node out of these users' pending sets."""

    @abstractmethod
    async def pending(self, openids: Sequence[OpenId]) -> Mapping[OpenId, Sequence[Node]]:
        """The live nodes that hold something for each of these users; users without any may be missing."""

    @abstractmethod
    async def epoch(self) -> str:
        """Changes when what was written may have been lost (another server answers)."""

    def lanes(self) -> Mapping[str, float]:
        """Seconds for which each thread of the driver has not come back from its library, by name; 0 while it waits.

        Infinite when it has died. What shares a thread with another port may leave it to that one to say.
        """
        return {}

    # -- for a person; no node asks this
    @abstractmethod
    async def contradictions(self) -> list[Contradiction]:
        """What does not fit together in all that is written, as it is read: that may be at more than one instant.

        So what is being written meanwhile may be among it; whoever accuses looks again, and keeps what both looks have.
        """

    @abstractmethod
    async def mend(self, found: Sequence[Contradiction]) -> None:
        """Mend each that still stands so and is `mendable`; a live node loses nothing that it does not enter again.

        Mending one may bare another: look again.
        """


class Batch(ABC):
    """Some records of one topic, in order."""

    records: Sequence[Record]
    caught_up: bool
    """With this batch everything that the topic held at the subscription has been handed over."""

    @abstractmethod
    async def commit(self) -> None:
        """These and all before are done: never hand them over again. Without it they come again after a restart."""


class Bus(ABC):
    """Records between nodes. May lose, repeat and delay; keeps the order of one topic and key in normal running."""

    incarnation: str = ""
    """This node's, for the headers of what it publishes."""

    @abstractmethod
    def publish(self, node: Node, records: Sequence[Record], stored: Callable[[bool], None] | None = None) -> None:
        """Send to a node, also to one that is down. Never blocks, never raises.

        `stored` is called once, on the trio loop: True when all of these are stored, False when perhaps not.
        """

    @abstractmethod
    def subscribe(self, topic: Topic) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """This node's own records of a topic, from the last commit on. The first batch comes at once, maybe empty."""

    @abstractmethod
    async def read(self, node: Node, topic: Topic) -> list[Record]:
        """What stands in a node's topic now behind its last commit, in order. Nothing is taken or committed by that.

        BusUnavailable when it cannot be told now.
        """

    @abstractmethod
    async def lag(self) -> Mapping[Topic, int]:
        """How many of this node's own records are not committed, in each topic, as far as it can be told at once.

        BusUnavailable when it cannot.
        """

    @abstractmethod
    async def flush(self) -> None:
        """Wait until everything published so far is stored or given up; callers bound it with a timeout."""

    def lanes(self) -> Mapping[str, float]:
        """As `Registry.lanes`."""
        return {}

    def silent(self) -> float:
        """Seconds since the bus was last known to answer, also when there is nothing to say; some are nothing."""
        return 0.0


Tray = Literal["messages", "notices"]


class Waiting(NamedTuple):
    """How many open rows one sender has for one recipient."""

    sender: OpenId
    recipient: OpenId
    rows: int


class RowFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows a person asks for; None means any."""

    recipient: OpenId | None = None
    message_id: MessageId | None = None
    states: tuple[str, ...] = ()
    """Any of pending, delivered, expired, untold, moved; empty means all."""
    accepted_before: int | None = None
    after: int = 0
    """Only rows of a higher order: to go on where the last call ended."""
    limit: int = 1000


CAME_FROM: Final = "came from "
"""Marks named so and after a node: its rows were adopted, the last of them at this time or before (ms)."""
MOVED_TO: Final = "moved to "
"""Marks named so and after a node: rows may have moved there."""


class Outbox(ABC):
    """The messages accepted here, or adopted: one row for each (message id, recipient).

    A row that was moved to another node stays until it is purged, so that a repeated request is known; but nobody is
    owed anything of it here: it is in no tray, not counted as open, and `settle` leaves it alone.

    Every method raises StoreUnavailable when the store cannot serve; then nothing of the call has taken effect.
    """

    store_id: str
    """Random, made with the store, never changes."""

    books: Books
    """The same table, for who audits it."""

    @abstractmethod
    async def add(
        self, messages: Sequence[Sequence[Envelope]], *, quiet: Collection[MessageId] = ()
    ) -> list[list[bool]]:
        """Store messages durably, each with all of its recipients. For each row: was it news?

        When it returns, all of it is on disk. A (message id, recipient) that is there stays as it is. A request whose
        recipient has acked it here, when another node had accepted it, is no news: it is stored as done and told.
        Of the messages in `quiet` their senders want no notice.
        """

    @abstractmethod
    async def record(self, steps: Sequence[Step]) -> None:
        """Write steps; ranks only rise. Lazy: it may wait a moment for company, but returns when it is on disk."""

    @abstractmethod
    async def settle(self, keys: Sequence[Key], *, rank: int, told: int, at: int) -> list[Row]:
        """Raise rank and told of rows that nobody has in memory; `at` in milliseconds. Durable when it returns.

        The rows of which either rose, as they were before.
        """

    @abstractmethod
    async def open_rows(self, openid: OpenId, tray: Tray, limit: int, size: int) -> list[Row]:
        """The oldest rows: open messages to this user, or settled messages from him that he has not been told of.

        At most `limit`, and none behind that with which their texts have `size` characters together.
        """

    @abstractmethod
    async def users_with_open_rows(self, after: str, limit: int) -> list[OpenId]:
        """Users with anything in either tray, ascending, from the first behind `after`."""

    @abstractmethod
    async def waiting(self) -> list[Waiting]:
        """Open rows counted by sender and recipient."""

    @abstractmethod
    async def find(self, keys: Sequence[Key]) -> list[Row | None]:
        """The rows of these keys."""

    @abstractmethod
    async def search(self, what: RowFilter) -> list[Row]:
        """Rows for a person, oldest first."""

    @abstractmethod
    async def expired(self, accepted_before: int, settled_before: int, limit: int) -> list[Row]:
        """Open rows accepted before the first time, and untold ones whose rank rose before the second (ms)."""

    # -- between nodes: the rows of a dead one go to a live one
    @abstractmethod
    async def movable(self, after: int, limit: int) -> list[Row]:
        """Rows behind the order `after`, oldest first, with which something may still happen.

        They are open, or their sender does not know yet, or they were given up and an ack may come all the same.
        """

    @abstractmethod
    async def adopt(self, rows: Sequence[Row], at: int) -> list[Row]:
        """Take over another node's rows, durably; `at` in milliseconds. Those that came, as they now stand here.

        Each keeps its order, or gets the next free one, so that their sequence stays. A row that is here did not come:
        it stays in its place, with the higher rank and told of both. But one that was moved away from here comes back.
        """

    @abstractmethod
    async def moved(self, keys: Sequence[Key], at: int) -> None:
        """Another node has these rows on its disk: they are no longer ours. `at` in milliseconds."""

    @abstractmethod
    async def totals(self) -> Totals:
        """Counts by state, those purged included."""

    @abstractmethod
    async def purge(self, before: int, limit: int) -> int:
        """Remove up to `limit` finished rows accepted before, and acks recorded before (ms). How many went."""

    @abstractmethod
    async def last_order(self) -> int:
        """The highest order ever given, 0 at first; survives a purge."""

    @abstractmethod
    async def mark(self, name: str, value: int) -> int:
        """Keep the highest value ever given under a name; the one before, 0 at first."""

    @abstractmethod
    async def marks(self, prefix: str) -> Mapping[str, int]:
        """The values of all names that begin so, by what follows."""

    @abstractmethod
    def healthy(self) -> bool:
        """Whether messages can be stored, as far as is known: the last write went through, and there was room."""

    @abstractmethod
    async def check(self) -> None:
        """Find out what `healthy` says; by writing what a message takes, when the last write failed. Never raises."""

    def free_bytes(self) -> int | None:
        """What is free on its disk, if it has one."""
        return None

    def lanes(self) -> Mapping[str, float]:
        """As `Registry.lanes`."""
        return {}


class Inbox(ABC):
    """What users here have acked: the dedup record of what came from other nodes."""

    @abstractmethod
    async def known(self, keys: Sequence[Key]) -> list[bool]:
        """Whether each was acked here before, as another node's message or as our own."""

    @abstractmethod
    async def ack(self, entries: Sequence[AckEntry]) -> list[int]:
        """Record acks durably; our own rows rise to acked in the same step. For each: its place in the ack log.

        The place is 0 where no other node has to be told.
        """

    @abstractmethod
    async def recipients(self, message_id: MessageId) -> tuple[dict[OpenId, int], list[OpenId]]:
        """Whom this message is for, as far as is known here: our own rows (recipient to order), and those who acked."""

    @abstractmethod
    async def unsent(self, after: int, limit: int) -> list[tuple[int, AckEntry]]:
        """Acks behind the published watermark and behind the place `after`, oldest first, with their places."""

    @abstractmethod
    async def published(self, place: int) -> None:
        """All acks up to this place have left for their origins."""


class Books(ABC):
    """What a person asks who wants to know what became of messages: it is only read, and holds up no message.

    StoreUnavailable when the table cannot be read.
    """

    @abstractmethod
    async def story(self, message_id: MessageId) -> Story:
        """All that is known of one message: rows in the order of acceptance, then acks."""

    @abstractmethod
    async def requested(self, sender: OpenId, request_id: str, limit: int) -> list[MessageId]:
        """The messages that this user sent under this request id, the oldest first; looks through the whole table."""

    @abstractmethod
    async def account(self, since: int = 0) -> Account:
        """What was counted and what is there, at one instant; with `since` (ms) only rows accepted from then on."""

    @abstractmethod
    async def waits(self) -> Waits:
        """What waits now, at one instant."""

    @abstractmethod
    async def held(self, after: int, since: int, limit: int) -> list[Held]:
        """Rows behind the order `after` and accepted since (ms), in the order of acceptance."""

    @abstractmethod
    async def held_acks(self, after: int, since: int, limit: int) -> list[HeldAck]:
        """Acks behind the place `after` and recorded since (ms), oldest first."""
