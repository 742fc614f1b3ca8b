"""The sessions of this node in the registry: claim each, wake whoever waits for its user, release it when it ends."""

from __future__ import annotations

import structlog
import trio
from msgspec.structs import replace

from yanchat.errors import RegistryUnavailable
from yanchat.model import Node, OpenId, SessionId, SessionRecord
from yanchat.node.hub import Hub, Session
from yanchat.node.lease import Lease
from yanchat.node.mailboxes import Mailboxes
from yanchat.ports import Bus, Registry
from yanchat.protocol import frames
from yanchat.protocol.records import Close, Pull

AGAIN_AFTER = 1.0
REPLACED = 4001


class Claims:
    """All but `run` only marks what to do; it is repeated until the registry has it."""

    def __init__(
        self,
        node: Node,
        hub: Hub,
        registry: Registry,
        bus: Bus,
        lease: Lease,
        mailboxes: Mailboxes,
        single: bool,
    ) -> None:
        self._node, self._hub, self._registry, self._bus = node, hub, registry, bus
        self._lease, self._mailboxes, self._single = lease, mailboxes, single
        self._claims: dict[Session, bool] = {}
        self._releases: dict[SessionId, SessionRecord] = {}
        self._wake = trio.Event()

    def claim(self, session: Session) -> None:
        """A session has come."""
        self._claims[session] = False
        self._wake.set()

    def claim_all(self) -> None:
        """Claim every session again: the registry may have forgotten, or our incarnation is a new one."""
        for session in self._hub.all():
            self._claims.setdefault(session, True)
        self._wake.set()

    def release(self, record: SessionRecord) -> None:
        """A session has ended. Ids are never used twice, so removing one's own entry is always safe."""
        self._releases[record.session_id] = record
        self._wake.set()

    def release_ghost(self, openid: OpenId, session_id: SessionId) -> None:
        """Somebody found an entry of ours that stands for no session."""
        self.release(SessionRecord(session_id, openid, self._node, self._lease.incarnation, "", 0, ""))

    async def run(self) -> None:
        """Claim and release, batch by batch, as long as the node lives."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            claims, self._claims = self._claims, {}
            releases, self._releases = self._releases, {}
            try:
                if releases:
                    await self._registry.release(list(releases.values()))
                    releases = {}
                if claims:
                    await self._claim(claims)
            except RegistryUnavailable as error:
                structlog.get_logger().warning("registry.claim_failed", error=str(error))
                self._releases = releases | self._releases
                for session in claims:
                    if session.open:
                        self._greet(session, pending=True)
                        self._claims[session] = False  # it may have been news, of which nobody was told
                await trio.sleep(AGAIN_AFTER)
                self._wake.set()

    async def _claim(self, claims: dict[Session, bool]) -> None:
        sessions = [session for session in claims if session.open]
        for session in sessions:
            session.record = replace(session.record, incarnation=self._lease.incarnation)
        news = await self._registry.claim([session.record for session in sessions])
        fresh = [session for session, new in zip(sessions, news, strict=True) if new or not claims[session]]
        holders = await self._registry.pending([session.openid for session in fresh])
        for session in fresh:
            if not session.open:  # it ended while we wrote
                self.release(session.record)
                continue
            nodes = set(holders.get(session.openid, ()))
            self._greet(session, pending=bool(nodes) or self._mailboxes.holds(session.openid))
            for node in sorted(nodes - {self._node}):
                self._bus.publish(node, [Pull(self._node, session.openid, session.record.session_id)])
            self._mailboxes.pulled(session.openid, stands=self._node in nodes)
        if self._single:
            await self._close_older({session.openid for session in sessions})

    def _greet(self, session: Session, pending: bool) -> None:
        """Type 6, once; pushes start after it."""
        if not session.ready:
            session.ready = True
            record = session.record
            hello = frames.hello(record.openid, record.user_name, record.session_id, self._node, pending)
            session.outlet.send(hello)
            session.outlet.resume()
            self._mailboxes.pulled(session.openid, stands=False)

    async def _close_older(self, openids: set[OpenId]) -> None:
        """Policy `single`: of a user's sessions the newest by the registry's clock at its first claim stays."""
        found = await self._registry.locate(sorted(openids))
        for live in found.values():
            for entry in sorted(live, key=lambda entry: (entry.stamp, entry.session_id))[:-1]:
                if entry.node == self._node:
                    self._hub.close(entry.session_id, REPLACED, "replaced by a newer login")
                else:
                    close = Close(self._node, entry.session_id, REPLACED, "replaced by a newer login")
                    self._bus.publish(entry.node, [close])
