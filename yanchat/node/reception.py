"""Sessions come and go: login, claim, hello, and the end; and what they say goes to whom it concerns."""

from __future__ import annotations

import structlog
import trio

from yanchat.config import LimitSettings
from yanchat.errors import Refused, RegistryUnavailable
from yanchat.model import Node, OpenId, SessionRecord
from yanchat.node.delivery import Delivery
from yanchat.node.hub import Hub, Outlet, Session
from yanchat.node.intake import Intake
from yanchat.node.lease import Lease
from yanchat.node.looks import Mailboxes
from yanchat.node.settlement import Settlement
from yanchat.ports import Bus, Clock, Registry
from yanchat.protocol import frames
from yanchat.protocol.frames import Ack, Dates, Send
from yanchat.protocol.ids import SessionIds
from yanchat.protocol.records import Close, Pull
from yanchat.protocol.session import Conversation, Refusal

AGAIN_AFTER = 1.0
REPLACED = 4001


class Reception:
    """Opens sessions for the gateway and ends them. Refuses (Refused) before anything is written."""

    def __init__(
        self,
        node: Node,
        hub: Hub,
        registry: Registry,
        bus: Bus,
        lease: Lease,
        intake: Intake,
        delivery: Delivery,
        settlement: Settlement,
        mailboxes: Mailboxes,
        session_ids: SessionIds,
        dates: Dates,
        clock: Clock,
        limits: LimitSettings,
        single: bool,
    ) -> None:
        self._node, self._hub, self._registry, self._bus, self._lease = node, hub, registry, bus, lease
        self._intake, self._delivery, self._settlement, self._mailboxes = intake, delivery, settlement, mailboxes
        self._ids, self._dates, self._clock, self._limits, self._single = session_ids, dates, clock, limits, single
        self._claims: dict[Session, bool] = {}
        self._releases: list[SessionRecord] = []
        self._wake = trio.Event()
        self.draining = False

    def enter(self, openid: OpenId, user_name: str, remote: str, outlet: Outlet) -> Session:
        """A login whose upgrade is about to be answered: first the hub, then the registry."""
        if self.draining:
            raise Refused(503, "This node is stopping; connect again.", retry_after=1)
        if not self._single and self._hub.count(openid) >= self._limits.sessions_per_user:
            raise Refused(429, f"{openid} has as many sessions as are allowed; close one.", retry_after=5)
        now = self._clock.wall()
        record = SessionRecord(
            self._ids.take(openid, now), openid, self._node, self._lease.incarnation, user_name, now, remote
        )
        limits = self._limits
        session = Session(record, outlet, Conversation(limits.messages_per_second, limits.bytes_per_second), self)
        self._hub.add(session)
        self._claims[session] = False
        self._wake.set()
        return session

    # -- what sessions say (hub.Ears) ----------------------------------------------------------------------------------
    def heard(self, session: Session, data: bytes) -> bool:
        event = session.conversation.receive(data, self._clock.monotonic())
        if type(event) is Send:
            return self._intake.submit(session, event)
        if type(event) is Ack:
            self._delivery.acked(session, event.message_id)
        elif type(event) is Refusal:
            return self._intake.refuse(session, event)
        else:
            session.outlet.send(frames.heartbeat(self._dates(self._clock.wall())))
        return not session.paused

    def answered(self, session: Session) -> None:
        self._settlement.answered(session)

    def ended(self, session: Session) -> None:
        """Release exactly this entry, and tell the origins of all that it had not acked."""
        self._hub.remove(session)
        self._claims.pop(session, None)
        self._releases.append(session.record)
        self._wake.set()
        place = (session.openid, session.record.session_id)
        for origin in sorted(session.origins()):
            self._delivery.tell_gone(origin, [place])

    # -- the registry's side -------------------------------------------------------------------------------------------
    def claim_all(self) -> None:
        """Claim every session again: the registry may have forgotten, or our incarnation is a new one."""
        for session in self._hub.all():
            self._claims.setdefault(session, True)
        self._wake.set()

    async def run(self) -> None:
        """Claim and release, batch by batch, as long as the node lives; repeated until the registry has it."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            await self._lease.joined.wait()
            claims, self._claims = self._claims, {}
            releases, self._releases = self._releases, []
            try:
                if releases:
                    await self._registry.release(releases)
                    releases = []
                if claims:
                    await self._claim(claims)
            except RegistryUnavailable as error:
                structlog.get_logger().warning("registry.claim_failed", error=str(error))
                self._releases = releases + self._releases
                for session, again in claims.items():
                    if session.open:
                        self._greet(session, pending=True)
                        self._claims.setdefault(session, again)
                await trio.sleep(AGAIN_AFTER)
                self._wake.set()

    async def _claim(self, claims: dict[Session, bool]) -> None:
        incarnation = self._lease.incarnation
        sessions = [session for session in claims if session.open]
        for session in sessions:
            record = session.record
            session.record = SessionRecord(
                record.session_id,
                record.openid,
                record.node,
                incarnation,
                record.user_name,
                record.connected_at,
                record.remote,
            )
        news = await self._registry.claim([session.record for session in sessions])
        fresh = [session for session, new in zip(sessions, news, strict=True) if new or not claims[session]]
        holders = await self._registry.pending([session.openid for session in fresh])
        for session in fresh:
            if not session.open:
                self._releases.append(session.record)
                self._wake.set()
                continue
            nodes = set(holders.get(session.openid, ()))
            self._greet(session, pending=bool(nodes) or self._mailboxes.holds(session.openid))
            for node in nodes - {self._node}:
                self._bus.publish(node, [Pull(self._node, session.openid, session.record.session_id)])
            self._mailboxes.pulled(session.openid, stands=self._node in nodes)
        if self._single:
            await self._close_older(fresh)

    def _greet(self, session: Session, pending: bool) -> None:
        """Type 6, once; pushes start after it."""
        if not session.ready:
            session.ready = True
            record = session.record
            hello = frames.hello(record.openid, record.user_name, record.session_id, self._node, pending)
            session.outlet.send(hello)
            self._mailboxes.nudge(session.openid)

    async def _close_older(self, claimed: list[Session]) -> None:
        """Policy `single`: of a user's sessions the newest by the registry's clock stays."""
        for openid in {session.openid for session in claimed}:
            live = (await self._registry.locate([openid])).get(openid, ())
            for entry in sorted(live, key=lambda entry: (entry.stamp, entry.session_id))[:-1]:
                close = Close(self._node, entry.session_id, REPLACED, "replaced by a newer login")
                if entry.node == self._node:
                    self._delivery.take([close])
                else:
                    self._bus.publish(entry.node, [close])
