"""Storing what was taken: a full disk refuses all of it, a fault of ours what shows it, and neither ends the node."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import structlog

from yanchat.errors import Refused, StoreUnavailable
from yanchat.model import Envelope, MessageId
from yanchat.node.hub import Session
from yanchat.ports import Outbox
from yanchat.telemetry import Counters, Episode

RETRY_AFTER = 5
INTERNAL_ERROR = 1011
FAULT = "It cannot be stored, by a fault of this node; send it later."


class Storing:
    """Adds messages to the outbox for `Intake`."""

    def __init__(self, outbox: Outbox, counters: Counters) -> None:
        self._outbox, self._counters = outbox, counters
        self._storing = Episode("store.add")

    async def add(
        self, messages: Sequence[Sequence[Envelope]], quiet: Collection[MessageId]
    ) -> Sequence[list[bool] | Refused]:
        """Store these, the `quiet` ones without notices. Of each: which rows were news, or why it is not stored."""
        try:
            news = await self._outbox.add(messages, quiet=quiet)
        except StoreUnavailable as error:
            self._storing.failed(error)
            self._counters.store_failed += 1
            return [Refused(503, str(error), RETRY_AFTER)] * len(messages)
        except Exception:  # a bug: whichever message shows it, the others are stored
            half = len(messages) // 2
            if half:
                return [*await self.add(messages[:half], quiet), *await self.add(messages[half:], quiet)]
            structlog.get_logger().exception("store.add_failed", message_id=messages[0][0].message_id)
            return [Refused(503, FAULT, RETRY_AFTER)]
        self._storing.worked()
        self._counters.accept_batch.observe(len(messages))
        return news


def hang_up(event: str, sessions: Iterable[Session]) -> None:
    """Log the exception that is being handled, and end these: whoever has no answer connects again and repeats."""
    structlog.get_logger().exception(event)
    for session in dict.fromkeys(sessions):
        session.outlet.close(INTERNAL_ERROR, "internal error")
