"""Accepting messages: store, then receipt. Never the other way round."""

from __future__ import annotations

import trio

from yanchat.config import LimitSettings
from yanchat.errors import Refused, StoreUnavailable
from yanchat.model import ACKED, Envelope, Key, MessageId, OpenId
from yanchat.node.backlog import Backlog
from yanchat.node.hub import Hub, Session
from yanchat.node.mailboxes import Mailboxes
from yanchat.node.repeats import Repeats
from yanchat.node.settlement import Settlement
from yanchat.node.storing import FAULT, RETRY_AFTER, Storing, hang_up
from yanchat.node.turns import Turns
from yanchat.node.waiting import Pushed, Waiting, tell
from yanchat.ports import Clock, Outbox
from yanchat.protocol import frames
from yanchat.protocol.frames import Dates
from yanchat.protocol.ids import Orders, message_id_from_order, message_id_from_request
from yanchat.protocol.ids import request_id as new_request_id
from yanchat.protocol.session import Refusal
from yanchat.protocol.shapes import Send
from yanchat.telemetry import Counters

MAX_BATCH = 500
"""Rows that are stored together; a message to many is as many rows, and is not divided."""


class Intake:
    """Takes what sessions submit; `run` stores it batch by batch, and answers each in the order of its submissions."""

    def __init__(
        self,
        hub: Hub,
        outbox: Outbox,
        mailboxes: Mailboxes,
        settlement: Settlement,
        repeats: Repeats,
        backlog: Backlog,
        orders: Orders,
        dates: Dates,
        clock: Clock,
        inflight: int,
        counters: Counters,
    ) -> None:
        self._hub, self._mailboxes, self._settlement = hub, mailboxes, settlement
        self._repeats, self._backlog, self._orders = repeats, backlog, orders
        self._dates, self._clock, self._inflight, self._counters = dates, clock, inflight, counters
        self._storing = Storing(outbox, counters)
        self._queue: Turns[Waiting] = Turns()
        self._busy = False
        self._wake = trio.Event()

    def apply(self, limits: LimitSettings) -> None:
        """Hold what comes from now on to other limits."""
        self._inflight = limits.inflight
        self._backlog.apply(limits)

    def submit(self, session: Session, send: Send) -> bool:
        """Take a message; false when the session has as much in flight as it may."""
        sender = session.openid
        try:
            self._backlog.check(sender, send.recipients)
        except Refused as refused:
            return self.refuse(session, Refusal(refused, send.text, send.request_id))
        waiting = self._take(session, sender, session.record.user_name, send)
        return session.expect(self._inflight, waiting.size)

    async def push(self, sender: OpenId, send: Send, *, notify: bool) -> tuple[MessageId, list[bool]]:
        """Store a message that no session has sent; its id, and for each recipient: was it news?

        Returns when it is on disk. Refused (429, 503): nothing of it is stored. Cancelled: it may have been, and may be
        repeated with its request id.
        """
        try:
            self._backlog.check(sender, send.recipients)
        except Refused as refused:
            self._counters.refused[refused.status] += 1
            raise
        pushed = Pushed(notify)
        waiting = self._take(pushed, sender, sender, send)
        await pushed.done.wait()
        if pushed.refused is not None:
            raise pushed.refused
        return waiting.envelopes[0].message_id, pushed.news

    def _take(self, by: Session | Pushed, sender: OpenId, name: str, send: Send) -> Waiting:
        """Have the message stored when it is its turn; from here on it counts as waiting."""
        for recipient in send.recipients:
            self._backlog.add(sender, recipient)
        waiting = Waiting(by, sender, name, send, self._clock.wall())
        self._put(waiting, by if type(by) is Session else sender, len(send.recipients))
        return waiting

    def _address(self, waiting: Waiting) -> None:
        """Give the message its order and its id: whatever has an order goes to the store at once."""
        send, sender, now = waiting.send, waiting.sender, waiting.at
        if send is None:
            return
        order = self._orders.take(now, len(send.recipients))
        if send.request_id is None:
            message_id = message_id_from_order(order, self._clock.rng)
            request_id = new_request_id(message_id)
        else:
            request_id = send.request_id
            message_id = message_id_from_request(sender, request_id, send.file_type, send.text)
        trail, trace = self._counters.trail, send.traceparent
        span = trail.comes(message_id, trace) if trail is not None else None
        if span is not None:
            trace = span.traceparent
        waiting.span, name = span, waiting.name
        waiting.envelopes = [
            Envelope(order + n, message_id, to, sender, name, request_id, send.text, send.file_type, now, trace)
            for n, to in enumerate(send.recipients)
        ]

    def refuse(self, session: Session, refusal: Refusal) -> bool:
        """Answer that nothing is stored, behind the answers that are still to come."""
        waiting = Waiting(session, session.openid, "", refusal, 0)
        self._put(waiting, session, 1)
        return session.expect(self._inflight, waiting.size)

    def _put(self, waiting: Waiting, whose: Session | OpenId, rows: int) -> None:
        self._queue.put(whose, waiting, rows)
        self._wake.set()

    async def run(self) -> None:
        """Store what is queued, as long as the node lives."""
        while True:
            await self._wake.wait()
            batch, self._busy = self._queue.take(MAX_BATCH), True
            if not self._queue:
                self._wake = trio.Event()
            try:
                await self._store(batch)
            except Exception:
                self._give_up(batch)
            self._busy = False

    @property
    def idle(self) -> bool:
        return not (self._queue or self._busy)

    @property
    def open(self) -> int:
        """Messages that wait for their recipients, each recipient counted."""
        return self._backlog.rows

    async def _store(self, batch: list[Waiting]) -> None:
        for waiting in batch:
            self._address(waiting)
        messages = [waiting.envelopes for waiting in batch if waiting.envelopes]
        quiet = {waiting.envelopes[0].message_id for waiting in batch if waiting.quiet}
        with self._hub.acked_meanwhile() as meanwhile:
            stored = iter(await self._storing.add(messages, quiet) if messages else ())
        now = self._clock.wall()
        date = self._dates(now)
        accepted: list[Envelope] = []
        for waiting in batch:
            rows = next(stored) if waiting.envelopes else []
            if isinstance(rows, Refused):
                self._end(waiting, rows, [], date)
                for envelope in waiting.envelopes:
                    self._backlog.remove(envelope.sender, envelope.recipient)
                continue
            session = self._end(waiting, None, rows, date)
            for envelope, new in zip(waiting.envelopes, rows, strict=True):
                if new:
                    accepted.append(envelope)
                else:
                    self._counters.duplicates += 1
                    if session is not None:
                        self._repeats.again(session, envelope.key)
                    self._backlog.remove(envelope.sender, envelope.recipient)
        self._counters.accepted += len(accepted)
        for envelope in accepted:
            self._counters.accept_ms.observe(now - envelope.accepted_at)
            self._mailboxes.accepted(envelope, quiet=envelope.message_id in quiet)
        late = [envelope.key for envelope in accepted if envelope.key in meanwhile] if meanwhile else []
        if late:
            await self._settle(late)

    async def _settle(self, late: list[Key]) -> None:
        """Their recipients had them from another node, and acked while the repeated request was being stored here."""
        try:
            await self._settlement.settle(late, ACKED)
        except StoreUnavailable:  # they are pushed, and acked, once more
            self._counters.store_failed += 1

    def _end(self, waiting: Waiting, failed: Refused | None, news: list[bool], date: bytes) -> Session | None:
        """Answer whoever waits; the session, if it is one."""
        by, frame = waiting.by, self._answer(waiting, failed, date)
        if self._counters.trail is not None:
            tell(self._counters.trail, waiting, failed, news)
        if isinstance(by, Pushed):
            by.end(failed, news)
            return None
        by.answer(frame, self._inflight, waiting.size)
        if waiting.refusal is not None and waiting.refusal.hang_up:
            by.outlet.close(1008, "three frames in a row were not understood")
        return by

    def _give_up(self, batch: list[Waiting]) -> None:
        """A fault of ours. What is stored stays so, and is read from disk; whoever has no answer may repeat it."""
        hang_up("intake.failed", (waiting.by for waiting in batch if isinstance(waiting.by, Session)))
        for waiting in batch:
            if isinstance(waiting.by, Pushed):
                waiting.by.end(Refused(503, FAULT, RETRY_AFTER), [])
            for envelope in waiting.envelopes:
                self._mailboxes.missed(envelope.recipient, "messages")

    def _answer(self, waiting: Waiting, failed: Refused | None, date: bytes) -> bytes:
        send, refusal = waiting.send, waiting.refusal
        if refusal is not None:
            self._counters.refused[refusal.refused.status] += 1
            return frames.failure(date, refusal.refused, refusal.text, refusal.request_id)
        assert send is not None
        if failed is not None:
            self._counters.refused[failed.status] += 1
            return frames.failure(date, failed, send.text, send.request_id)
        message_id: MessageId = waiting.envelopes[0].message_id
        return frames.receipt(date, send.text, message_id, send.request_id)
