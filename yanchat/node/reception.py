"""Sessions come and go, and what they say goes to whom it concerns."""

from __future__ import annotations

from yanchat.config import LimitSettings
from yanchat.errors import Refused
from yanchat.model import Node, OpenId, SessionRecord
from yanchat.node.acks import Acks
from yanchat.node.claims import Claims
from yanchat.node.delivery import Delivery
from yanchat.node.hub import Hub, Outlet, Session
from yanchat.node.intake import Intake
from yanchat.node.lease import Lease
from yanchat.node.settlement import Settlement
from yanchat.ports import Clock
from yanchat.protocol import frames
from yanchat.protocol.allowance import Share, Shares
from yanchat.protocol.frames import Dates
from yanchat.protocol.ids import SessionIds
from yanchat.protocol.session import Conversation, Refusal
from yanchat.protocol.shapes import Ack, Send


class Reception:
    """Opens sessions for the gateway and hears them. Refuses (Refused) before anything is written."""

    def __init__(
        self,
        node: Node,
        hub: Hub,
        lease: Lease,
        claims: Claims,
        intake: Intake,
        acks: Acks,
        delivery: Delivery,
        settlement: Settlement,
        session_ids: SessionIds,
        dates: Dates,
        clock: Clock,
        limits: LimitSettings,
        single: bool,
    ) -> None:
        self._node, self._hub, self._lease, self._claims = node, hub, lease, claims
        self._intake, self._acks, self._delivery, self._settlement = intake, acks, delivery, settlement
        self._ids, self._dates, self._clock, self._single = session_ids, dates, clock, single
        self.draining = False
        """The node is stopping, for whoever asks. Who still shakes hands comes in, and is sent away like the rest."""
        self.apply(limits)

    def apply(self, limits: LimitSettings) -> None:
        """Hold all sessions, also those that are here, to these limits."""
        self._limits = limits
        self._users = Shares(" from your connections together", *_rates(limits, "user_"))
        self._addresses = Shares(" from your address", *_rates(limits, "address_"))
        for session in self._hub.all():
            session.conversation.limit(*_rates(limits), self._shares(session.record))

    def _shares(self, record: SessionRecord) -> tuple[Share, ...]:
        now = self._clock.monotonic()
        return self._users.join(record.openid, now) + self._addresses.join(record.remote, now)

    def enter(self, openid: OpenId, user_name: str, remote: str, outlet: Outlet) -> Session:
        """A login whose upgrade is about to be answered: first the hub, then the registry."""
        if not self._single and self._hub.count(openid) >= self._limits.sessions_per_user:
            raise Refused(429, f"{openid} has as many sessions as are allowed; close one.", retry_after=5)
        now, limits = self._clock.wall(), self._limits
        record = SessionRecord(
            self._ids.take(openid, now), openid, self._node, self._lease.incarnation, user_name, now, remote
        )
        session = Session(record, outlet, Conversation(*_rates(limits), self._shares(record)), self)
        self._hub.add(session)
        self._claims.claim(session)
        return session

    # -- what sessions say (hub.Ears) ----------------------------------------------------------------------------------
    def heard(self, session: Session, data: bytes) -> bool:
        event = session.conversation.receive(data, self._clock.monotonic())
        if type(event) is Send:
            return self._intake.submit(session, event)
        if type(event) is Ack:
            self._acks.acked(session, event.message_id)
        elif type(event) is Refusal:
            return self._intake.refuse(session, event)
        else:
            session.ping()  # before the answer: a client that waits for that has confirmed its notices by then
            session.outlet.send(frames.heartbeat(self._dates(self._clock.wall())))
        return not session.paused

    def answered(self, session: Session) -> None:
        self._settlement.answered(session)
        self._delivery.ask(session)

    def ended(self, session: Session) -> None:
        """Release exactly this entry, and tell the origins of all that it had not acked."""
        self._hub.remove(session)
        now = self._clock.monotonic()
        self._users.leave(session.openid, now)
        self._addresses.leave(session.record.remote, now)
        self._claims.release(session.record)
        place = (session.openid, session.record.session_id)
        for origin in sorted(session.origins()):
            self._delivery.tell_gone(origin, [place])


def _rates(limits: LimitSettings, of: str = "") -> tuple[float, float]:
    """Messages and bytes a second."""
    return getattr(limits, f"{of}messages_per_second"), getattr(limits, f"{of}bytes_per_second")
