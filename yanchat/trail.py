"""What becomes of each message, told step by step to whoever wants to know: as lines of the log, as spans of its trace.

A node's parts ask `Counters.trail` once for a batch; it is None when nobody wants to know, and then nothing is paid.
Every line has the `message_id`, and none a text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import structlog

from yanchat.errors import Refused
from yanchat.model import ACKED, GIVEN_UP, Envelope, Key, MessageId, Node, Notice, OpenId, SessionId
from yanchat.tracing import Open, Spans

OK: Final = 200
STATUS: Final = {ACKED: OK, GIVEN_UP: 410}
LONGEST_ID: Final = 32


class Trail:
    """Of one node; synchronous, and nothing here raises."""

    def __init__(self, *, log: bool, spans: Spans | None) -> None:
        self._log, self._spans = log, spans

    def _line(self, event: str, message_id: MessageId, **more: object) -> None:
        if self._log:
            structlog.get_logger().debug(event, message_id=message_id, **more)

    # -- the accepting node --------------------------------------------------------------------------------------------
    def comes(self, message_id: MessageId, traceparent: str) -> Open | None:
        """A message is about to be stored; what `accepted` or `refused` is to be given with it."""
        return None if self._spans is None else self._spans.begin("accept", message_id, traceparent)

    def accepted(self, envelopes: Iterable[Envelope], news: Iterable[bool], open_: Open | None) -> None:
        """One message is on disk, each of its rows now (news) or since before."""
        for envelope, new in zip(envelopes, news, strict=True):
            names = {"sender": envelope.sender, "recipient": envelope.recipient, "request_id": envelope.request_id}
            self._line("message.accepted" if new else "message.repeated", envelope.message_id, **names)
        if open_ is not None:
            open_.end()

    def not_stored(self, envelopes: Iterable[Envelope], refused: Refused, open_: Open | None) -> None:
        error = str(refused)
        for envelope in envelopes:
            names = {"sender": envelope.sender, "recipient": envelope.recipient, "request_id": envelope.request_id}
            self._line("message.not_stored", envelope.message_id, error=error, **names)
        if open_ is not None:
            open_.end(error)

    def refused(self, refused: Refused, sender: str, request_id: str | None) -> None:
        """Before it was a message: it has no id."""
        if self._log:
            names = {"sender": sender, "request_id": request_id, "status": refused.status}
            structlog.get_logger().debug("message.refused", error=str(refused), **names)

    def adopted(self, envelope: Envelope, dead: Node) -> None:
        """Taken over from a dead node."""
        names = {"sender": envelope.sender, "recipient": envelope.recipient}
        self._line("message.adopted", envelope.message_id, **names, dead=dead)

    def forwarded(self, what: Envelope | Notice, node: Node, sessions: Iterable[SessionId], cause: str) -> None:
        """Handed to the node where its receiver is, which may be this one; `cause` is first or retry."""
        if isinstance(what, Notice):
            self._line("notice.forwarded", what.message_id, **_told(what), to_node=node, sessions=list(sessions))
            return
        places: dict[str, Any] = {"to_node": node, "sessions": list(sessions), "cause": cause}
        self._line("message.forwarded", what.message_id, recipient=what.recipient, **places)
        if self._spans is not None:
            self._spans.instant("forward", what, {"yanchat.to": node, "yanchat.cause": cause})

    def arrived(self, keys: Iterable[Key]) -> None:
        for message_id, recipient in keys:
            self._line("message.arrived", message_id, recipient=recipient)

    def delivered(self, envelope: Envelope) -> None:
        """The recipient's ack has come here."""
        names = {"sender": envelope.sender, "recipient": envelope.recipient}
        self._line("message.delivered", envelope.message_id, **names)

    def told(self, envelope: Envelope, rank: int) -> None:
        """The sender's client has the notice."""
        names = {"sender": envelope.sender, "recipient": envelope.recipient, "status": STATUS[rank]}
        self._line("notice.told", envelope.message_id, **names)

    # -- the recipient's node ------------------------------------------------------------------------------------------
    def known(self, envelope: Envelope, origin: Node) -> None:
        """It came again after its ack."""
        self._line("message.known", envelope.message_id, recipient=envelope.recipient, origin=origin)

    def pushed(self, envelope: Envelope, session: SessionId, origin: Node, redelivered: bool) -> None:
        names = {"recipient": envelope.recipient, "session_id": session, "origin": origin, "redelivered": redelivered}
        self._line("message.pushed", envelope.message_id, **names)
        if self._spans is not None:
            self._spans.instant("push", envelope, {"yanchat.redelivered": redelivered})
            self._spans.expect(envelope)

    def gone(self, what: Envelope | Notice, session: SessionId, origin: Node) -> None:
        """The session that it is for is not here."""
        self._line("message.session_gone", what.message_id, session_id=session, origin=origin)

    def notice_pushed(self, notice: Notice, session: SessionId, origin: Node) -> None:
        self._line("notice.pushed", notice.message_id, **_told(notice), session_id=session, origin=origin)

    def acked(self, message_id: MessageId, recipient: OpenId, status: int) -> None:
        """A recipient's ack has been answered with this status; 200: it is on disk."""
        if status == OK:
            self._line("message.acked", message_id, recipient=recipient)
        else:  # what it names may be no id at all
            self._line("message.ack_refused", MessageId(message_id[:LONGEST_ID]), recipient=recipient, status=status)
        if self._spans is not None and status == OK:
            self._spans.came((message_id, recipient))


def _told(notice: Notice) -> dict[str, object]:
    return {"sender": notice.sender, "recipient": notice.recipient, "status": STATUS[notice.rank]}


def trail_of(log_level: str, spans: Spans | None) -> Trail | None:
    """None when nobody wants to know."""
    log = log_level == "debug"
    return Trail(log=log, spans=spans) if log or spans is not None else None
