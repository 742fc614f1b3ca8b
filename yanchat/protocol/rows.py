"""A row of the message table in JSON, as the record `adopt` carries it from a dead node to a live one."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from yanchat.model import ACKED, GIVEN_UP, OPEN, Envelope, MessageId, OpenId, Row
from yanchat.protocol.frames import usable_traceparent
from yanchat.protocol.ids import order_text

_STATUS: Final = {OPEN: 0, GIVEN_UP: 410, ACKED: 200}
_MOST: Final = 2**63 - 1
"""What a message table holds."""
Natural = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
Whole = Annotated[int, msgspec.Meta(ge=-_MOST - 1, le=_MOST)]
_RANK: Final = {status: rank for rank, status in _STATUS.items()}


class RowValue(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One row; `status` and `told` are statuses of a notice, 0 for open; times are milliseconds, 0 for never."""

    order: str
    message_id: MessageId
    to: OpenId
    sender: OpenId = msgspec.field(name="from")
    request_id: str
    message: str
    active_time: Natural
    from_name: str = ""
    file_type: Whole = 0
    status: int = 0
    told: int = 0
    attempts: Natural = 0
    sent_at: Natural = 0
    arrived_at: Natural = 0
    settled_at: Natural = 0
    told_at: Natural = 0
    traceparent: str = ""

    @classmethod
    def of(cls, row: Row) -> RowValue:
        envelope = row.envelope
        return cls(
            order=order_text(envelope.order),
            message_id=envelope.message_id,
            to=envelope.recipient,
            sender=envelope.sender,
            from_name=envelope.sender_name,
            request_id=envelope.request_id,
            message=envelope.text,
            file_type=envelope.file_type,
            active_time=envelope.accepted_at,
            status=_STATUS[row.rank],
            told=_STATUS[row.told],
            attempts=row.attempts,
            sent_at=row.sent_at,
            arrived_at=row.arrived_at,
            settled_at=row.settled_at,
            told_at=row.told_at,
            traceparent=envelope.traceparent,
        )

    def row(self) -> Row:
        """The row; KeyError or ValueError when a value is none of ours."""
        order = int(self.order, 16)
        if not 0 <= order <= _MOST:
            raise ValueError("no order")
        envelope = Envelope(
            order=order,
            message_id=self.message_id,
            recipient=self.to,
            sender=self.sender,
            sender_name=self.from_name,
            request_id=self.request_id,
            text=self.message,
            file_type=self.file_type,
            accepted_at=self.active_time,
            traceparent=usable_traceparent(self.traceparent),
        )
        return Row(
            envelope,
            _RANK[self.status],
            _RANK[self.told],
            self.attempts,
            self.sent_at,
            self.arrived_at,
            self.settled_at,
            self.told_at,
        )
