"""The sessions open on this node, and what each was given and has not acked. Synchronous; sends through outlets."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from yanchat import failpoint
from yanchat.model import Envelope, Key, MessageId, Node, Notice, OpenId, SessionId, SessionRecord
from yanchat.protocol import frames
from yanchat.protocol.ids import openid_of
from yanchat.protocol.session import Conversation

UNACKED_REMEMBERED = 1024
INFLIGHT_BYTES = 512 * 1024
"""Of the texts that wait for their answers, which repeat them; then a client is read no more. Half an outgoing buffer:
a client that sends all it may before it reads any answer is not too slow."""

NoticeKey = tuple[MessageId, OpenId, int]
"""Message id, recipient, rank: a 200 after a 410 is another notice."""


class Outlet(Protocol):
    """What a session needs of its connection. Nothing here blocks or raises, also after the connection has ended."""

    @property
    def congested(self) -> bool:
        """The outgoing buffer is at least half full: pushes wait until `Session.drained` is called."""
        ...

    def send(self, frame: bytes) -> None:
        """Queue one text frame."""

    def ping(self, payload: bytes) -> None:
        """Queue a ping behind all that was sent so far; its answer comes to `Session.pong`."""

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake behind all that was sent so far."""

    def resume(self) -> None:
        """Go on reading: the hello is out (nothing is read before it), or `Session.receive` would answer True again."""


class Ears(Protocol):
    """Who listens to a session: `node/reception.py`."""

    def heard(self, session: Session, data: bytes) -> bool: ...
    def answered(self, session: Session) -> None: ...
    def ended(self, session: Session) -> None: ...


class Session:
    """One user's conversation over one connection, as the node sees it."""

    __slots__ = (
        "_barrier",
        "_ears",
        "_waiting",
        "conversation",
        "inflight",
        "inflight_bytes",
        "name_json",
        "open",
        "outlet",
        "paused",
        "pings",
        "ready",
        "record",
        "unacked",
        "untold",
        "untold_since",
    )

    def __init__(self, record: SessionRecord, outlet: Outlet, conversation: Conversation, ears: Ears) -> None:
        self.record, self.outlet, self.conversation, self._ears = record, outlet, conversation, ears
        self.name_json = frames.json_text(record.user_name)
        self.open, self.ready, self.paused = True, False, False
        self.inflight = self.inflight_bytes = 0
        self.unacked: dict[MessageId, tuple[Node, ...]] = {}
        self.untold: dict[NoticeKey, tuple[Node, ...]] = {}
        self.untold_since = 0.0
        self.pings = 0
        self._barrier: tuple[bytes, tuple[NoticeKey, ...]] | None = None
        self._waiting: deque[Callable[[], None]] | None = None

    @property
    def openid(self) -> OpenId:
        return self.record.openid

    # -- called by the gateway -----------------------------------------------------------------------------------------
    def receive(self, data: bytes) -> bool:
        """Take one text message (UTF-8 already checked). False: take no more until `Outlet.resume`."""
        return self._ears.heard(self, data)

    def pong(self, payload: bytes) -> None:
        if self._barrier is not None and payload == self._barrier[0]:
            self._ears.answered(self)

    def drained(self) -> None:
        """The outgoing buffer has room again: what waited goes out."""
        while self._waiting and not self.outlet.congested:
            self._waiting.popleft()()
        if not self._waiting:
            self._waiting = None

    def end(self) -> None:
        """The conversation is over; repeated calls do nothing."""
        if self.open:
            self.open, self._waiting = False, None  # what waits refers to this, and would be freed late
            self._ears.ended(self)

    # -- called by the node --------------------------------------------------------------------------------------------
    def expect(self, most: int, size: int = 0) -> bool:
        """One more frame of the client waits for its answer; false when as many do as may: nothing is read then."""
        self.inflight += 1
        self.inflight_bytes += size
        if self.inflight >= most or self.inflight_bytes >= INFLIGHT_BYTES:
            self.paused = True
        return not self.paused

    def answer(self, frame: bytes, most: int, size: int = 0) -> None:
        """Answer one of the frames that wait; when half of them are answered, it goes on."""
        self.outlet.send(frame)
        self.inflight -= 1
        self.inflight_bytes -= size
        if self.paused and self.inflight <= most // 2 and self.inflight_bytes <= INFLIGHT_BYTES // 2:
            self.paused = False
            self.outlet.resume()

    def push(self, envelope: Envelope, origin: Node, cause: str, redelivered: bool) -> None:
        """Give a message; a first one never to a session that has had it."""
        had = envelope.message_id in self.unacked
        origins = self.unacked.pop(envelope.message_id, ())
        self.unacked[envelope.message_id] = origins if origin in origins else (*origins, origin)
        if len(self.unacked) > UNACKED_REMEMBERED:
            del self.unacked[next(iter(self.unacked))]
        if had and (cause != "retry" or self._waiting is not None):  # it may itself be among those that wait
            return
        if self._waiting is None and not self.outlet.congested:
            self.outlet.send(frames.push(envelope, self.record.session_id, self.name_json, redelivered))
        else:
            self._wait(
                lambda: self.outlet.send(frames.push(envelope, self.record.session_id, self.name_json, redelivered))
            )
        failpoint.hit("push")

    def tell(self, notice: Notice, origin: Node, date: bytes, now: float) -> None:
        """Give a notice; never one that the session has and has not answered for."""
        key = (notice.message_id, notice.recipient, notice.rank)
        origins = self.untold.get(key)
        if not self.untold:
            self.untold_since = now
        self.untold[key] = (origin,) if origins is None else origins if origin in origins else (*origins, origin)
        if origins is None:
            if self._waiting is None and not self.outlet.congested:
                self.outlet.send(frames.notice(notice, self.record.session_id, date))
            else:
                self._wait(lambda: self.outlet.send(frames.notice(notice, self.record.session_id, date)))

    def ping(self) -> None:
        """Ask whether the notices given so far have arrived; one question at a time, also when it is called again."""
        if self._barrier is None and self.untold and self.open:
            self.pings += 1
            payload = b"told-%d" % self.pings
            self._barrier = payload, tuple(self.untold)
            if self._waiting is None and not self.outlet.congested:
                self.outlet.ping(payload)
            else:
                self._wait(lambda: self.outlet.ping(payload))

    def take_told(self) -> list[tuple[NoticeKey, tuple[Node, ...]]]:
        """The notices that the answered ping stands for; they are forgotten here."""
        if self._barrier is None:
            return []
        keys, self._barrier = self._barrier[1], None
        told = [(key, self.untold.pop(key)) for key in keys if key in self.untold]
        if not self.untold:
            self.untold = {}  # an emptied one keeps the memory of its fullest day
        return told

    def _wait(self, send: Callable[[], None]) -> None:
        """Until `drained`; what waits already goes first."""
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append(send)

    def origins(self) -> set[Node]:
        """Who waits for an answer of this session."""
        found: set[Node] = set()
        for origins in (*self.unacked.values(), *self.untold.values()):
            found.update(origins)
        return found


class Hub:
    """Tracks the sessions on this node."""

    def __init__(self) -> None:
        self._users: dict[OpenId, dict[SessionId, Session]] = {}
        self.opened = 0
        """Sessions that ever came."""
        self._watches: dict[int, set[Key]] = {}
        """By identity: two that hold the same are two."""

    @property
    def users(self) -> int:
        """How many have a session here."""
        return len(self._users)

    def add(self, session: Session) -> None:
        self.opened += 1
        self._users.setdefault(session.openid, {})[session.record.session_id] = session

    def remove(self, session: Session) -> None:
        here = self._users.get(session.openid, {})
        here.pop(session.record.session_id, None)
        if not here:
            self._users.pop(session.openid, None)

    def of(self, openid: OpenId) -> Iterable[Session]:
        """This user's sessions here."""
        here = self._users.get(openid)
        return here.values() if here else ()

    def get(self, openid: OpenId, session_id: SessionId) -> Session | None:
        here = self._users.get(openid)
        return here.get(session_id) if here else None

    def close(self, session_id: SessionId, code: int, reason: str) -> None:
        """Close this session, if it is here."""
        session = self.get(openid_of(session_id), session_id)
        if session is not None:
            session.outlet.close(code, reason)

    def all(self) -> list[Session]:
        return [session for here in self._users.values() for session in here.values()]

    def count(self, openid: OpenId) -> int:
        return len(self._users.get(openid, ()))

    def acked(self, openid: OpenId, message_id: MessageId) -> None:
        """The user has acked, and that is on disk: none of his sessions here owes it any more."""
        for watch in self._watches.values():
            watch.add((message_id, openid))
        for session in self.of(openid):
            session.unacked.pop(message_id, None)
            if not session.unacked:
                session.unacked = {}

    @contextmanager
    def acked_meanwhile(self) -> Iterator[set[Key]]:
        """Keys that are acked while the disk is asked: what it answers may be from before, and not know of them."""
        watch: set[Key] = set()
        self._watches[id(watch)] = watch
        try:
            yield watch
        finally:
            del self._watches[id(watch)]

    def owed_to(self, openid: OpenId, message_id: MessageId) -> tuple[Node, ...]:
        """The origins of a message that some session of this user here was given and has not acked."""
        found: tuple[Node, ...] = ()
        for session in self.of(openid):
            origins = session.unacked.get(message_id, ())
            found = tuple({*found, *origins}) if found else origins
        return found
