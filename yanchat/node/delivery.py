"""What arrives for users here: hand it to the sessions that it names, and say which of those are gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from yanchat.config import LimitSettings
from yanchat.model import Key, Node, OpenId, SessionId
from yanchat.node.claims import Claims
from yanchat.node.hub import Hub, Session
from yanchat.node.mailboxes import Mailboxes
from yanchat.node.serving import Serving
from yanchat.node.settlement import Settlement
from yanchat.ports import Bus, Clock, Inbox
from yanchat.protocol.frames import Dates
from yanchat.protocol.records import Acked, Adopt, Arrived, Close, Gone, Pull, Push, Record, Tell
from yanchat.telemetry import Counters


class Delivery:
    """`take` serves local records, `serving` the bus's topic `message`."""

    def __init__(
        self,
        node: Node,
        hub: Hub,
        claims: Claims,
        inbox: Inbox,
        mailboxes: Mailboxes,
        settlement: Settlement,
        bus: Bus,
        dates: Dates,
        clock: Clock,
        counters: Counters,
        limits: LimitSettings,
        adopt: Callable[[Adopt], None],
    ) -> None:
        self._node, self._hub, self._claims, self._inbox = node, hub, claims, inbox
        self._mailboxes, self._settlement, self._bus = mailboxes, settlement, bus
        self._dates, self._clock, self._counters, self._adopt = dates, clock, counters, adopt
        self.apply(limits)
        self.serving = Serving("message", self._batch, counters)

    def apply(self, limits: LimitSettings) -> None:
        """Hold what comes from now on to other limits."""
        self._ask_at = max(1, limits.window // 2)

    async def _batch(self, records: Sequence[Record]) -> None:
        pushes = [record for record in records if isinstance(record, Push)]
        keys = [push.envelope.key for push in pushes]
        known: set[Key] = set()
        if keys:
            with self._hub.acked_meanwhile() as meanwhile:
                acked_before = await self._inbox.known(keys)
            known = {key for key, acked in zip(keys, acked_before, strict=True) if acked or key in meanwhile}
        again: dict[Node, list[Key]] = {}
        fresh: list[Record] = []
        for record in records:
            if isinstance(record, Push) and record.envelope.key in known:  # acked before: say so again, push nothing
                self._counters.duplicates += 1
                if self._counters.trail is not None:
                    self._counters.trail.known(record.envelope, record.origin)
                again.setdefault(record.origin, []).append(record.envelope.key)
            else:
                fresh.append(record)
        for node, acked in again.items():
            self._bus.publish(node, [Acked(self._node, tuple(acked))])
        self.take(fresh)

    def take(self, records: Sequence[Record]) -> None:  # noqa: PLR0912 - one branch for each kind of record
        """Hand records to the sessions they name; say which of those are gone, and what has arrived."""
        arrived: dict[Node, list[Key]] = {}
        gone: dict[Node, list[tuple[OpenId, SessionId]]] = {}
        told: dict[Session, None] = {}
        trail = self._counters.trail
        for record in records:
            match record:
                case Push(envelope=envelope):
                    for session in self._named(record, envelope.recipient, record.sessions, gone):
                        session.push(envelope, record.origin, record.cause, record.redelivered)
                        self._counters.pushed += 1
                        if trail is not None:
                            trail.pushed(envelope, session.record.session_id, record.origin, record.redelivered)
                        arrived.setdefault(record.origin, []).append(envelope.key)
                case Tell(notice=notice):
                    date = self._dates(self._clock.wall())
                    for session in self._named(record, notice.sender, record.sessions, gone):
                        session.tell(notice, record.origin, date, self._clock.monotonic())
                        told[session] = None
                        if trail is not None:
                            trail.notice_pushed(notice, session.record.session_id, record.origin)
                case Pull():
                    self._mailboxes.pulled(record.openid)
                case Close():
                    self._hub.close(record.session_id, record.code, record.reason)
                case Adopt():
                    self._adopt(record)
                case _:
                    pass  # belongs to the other topic
        for node, keys in arrived.items():
            if node == self._node:
                self._settlement.arrived(keys)
            else:
                self._bus.publish(node, [Arrived(self._node, tuple(keys))])
        for node, sessions in gone.items():
            self.tell_gone(node, sessions)
        for session in told:
            self.ask(session)

    def ask(self, session: Session) -> None:
        """Ask at once whether its notices have arrived when they are many; `sweep` asks for the others."""
        if len(session.untold) >= self._ask_at:
            session.ping()

    def _named(
        self,
        record: Push | Tell,
        openid: OpenId,
        session_ids: Sequence[SessionId],
        gone: dict[Node, list[tuple[OpenId, SessionId]]],
    ) -> list[Session]:
        found = []
        for session_id in session_ids:
            session = self._hub.get(openid, session_id)
            if session is None:
                gone.setdefault(record.origin, []).append((openid, session_id))
                self._claims.release_ghost(openid, session_id)
                if self._counters.trail is not None:
                    what = record.envelope if isinstance(record, Push) else record.notice
                    self._counters.trail.gone(what, session_id, record.origin)
            else:
                found.append(session)
        return found

    def tell_gone(self, node: Node, sessions: Sequence[tuple[OpenId, SessionId]]) -> None:
        """These sessions are not here (any more): their origin looks again."""
        if node == self._node:
            for openid, session_id in sessions:
                self._mailboxes.gone(openid, (self._node, session_id))
        else:
            self._bus.publish(node, [Gone(self._node, tuple(sessions))])
