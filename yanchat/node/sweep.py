"""The clockwork: wake what is due, ask after notices, bury what has expired, purge what is old."""

from __future__ import annotations

import structlog
import trio

from yanchat.config import RedeliverySettings
from yanchat.errors import YanchatError
from yanchat.model import Key
from yanchat.node.adoption import Adoption
from yanchat.node.hub import Hub
from yanchat.node.mailboxes import Mailboxes
from yanchat.node.settlement import Settlement
from yanchat.ports import Clock, Outbox
from yanchat.telemetry import Counters

TICK = 0.25
TOLD_AFTER = 1.0
CHECK = 2.0
CHUNK = 500


class Sweep:
    """`run` for what is due within seconds, `housekeeping` within minutes, `watch_store` for the disk."""

    def __init__(
        self,
        hub: Hub,
        outbox: Outbox,
        mailboxes: Mailboxes,
        settlement: Settlement,
        adoption: Adoption,
        redelivery: RedeliverySettings,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._hub, self._outbox, self._mailboxes, self._settlement = hub, outbox, mailboxes, settlement
        self._adoption, self._redelivery, self._clock, self._counters = adoption, redelivery, clock, counters

    async def run(self) -> None:
        while True:
            due = self._clock.monotonic() + TICK
            await trio.sleep(TICK)
            now = self._clock.monotonic()
            self._counters.loop_lag_seconds.observe(max(0.0, now - due))
            self._mailboxes.sweep()
            for session in self._hub.all():
                if session.untold and now - session.untold_since >= TOLD_AFTER - TICK:
                    session.ping()

    async def watch_store(self) -> None:
        """Know that messages cannot be stored before one is refused, and that they can be when nobody sends any."""
        while True:
            before = self._outbox.healthy()
            await self._outbox.check()
            if before and not self._outbox.healthy():
                structlog.get_logger().error("store.takes_nothing")
            elif not before and self._outbox.healthy():
                structlog.get_logger().info("store.takes_messages_again")
            await trio.sleep(CHECK)

    async def housekeeping(self) -> None:
        await self._settlement.serving.caught_up.wait()  # before that, acks may stand in the topic
        lifetime, keep = self._redelivery.lifetime, self._redelivery.keep
        period = min(60.0, lifetime / 10)
        while True:
            try:
                now = self._clock.wall()
                await self._bury(now - int(lifetime * 1000))
                while await self._outbox.purge(now - int(keep * 1000), CHUNK):
                    pass
            except YanchatError as error:
                structlog.get_logger().warning("sweep.failed", error=str(error))
            await trio.sleep(period)

    async def _bury(self, before: int) -> None:
        """Give up what is older, but for adopted rows of which an ack may stand where it cannot be read now."""
        asked, heard, kept = False, True, set[Key]()
        while True:
            found = await self._outbox.expired(before, before, CHUNK + len(kept))
            rows = [row for row in found if row.envelope.key not in kept]
            adopted = {row.envelope.key for row in rows if row.adopted_at}
            if adopted and not asked:
                asked, heard = True, await self._adoption.hear()
            if not heard:
                kept |= adopted
                rows = [row for row in rows if not row.adopted_at]
            if not (rows or adopted):
                break
            if rows and not await self._settlement.bury(rows):
                break  # all of them changed meanwhile
