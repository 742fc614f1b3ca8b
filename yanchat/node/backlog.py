"""How many messages wait, by sender, by pair and by recipient, and who may add more. Rules without I/O."""

from __future__ import annotations

from yanchat.config import LimitSettings
from yanchat.errors import Refused
from yanchat.model import OpenId

RETRY_AFTER = 5


class Backlog:
    """Counts open rows. Every row that is added leaves once, when it is settled."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._senders: dict[OpenId, int] = {}
        self._recipients: dict[OpenId, int] = {}
        self._pairs: dict[OpenId, dict[OpenId, int]] = {}
        """recipient → sender → rows"""

    def apply(self, limits: LimitSettings) -> None:
        """Hold what comes from now on to other limits."""
        self._limits = limits

    def check(self, sender: OpenId, recipients: tuple[OpenId, ...]) -> None:
        """Refused(429) when one more message from this sender to these would be too many."""
        limits = self._limits
        if self._senders.get(sender, 0) + len(recipients) > limits.pending_per_sender:
            raise Refused(429, "Too many of your messages wait for their recipients; send later.", RETRY_AFTER)
        for recipient in recipients:
            senders = self._pairs.get(recipient)
            if senders is None:
                continue
            mine = senders.get(sender, 0)
            if mine >= limits.pending_per_pair:
                raise Refused(429, f"Too many of your messages wait for {recipient}; send later.", RETRY_AFTER)
            if self._recipients[recipient] >= limits.pending_per_recipient:
                share = limits.pending_per_recipient / (len(senders) + (mine == 0))
                if mine >= share:
                    raise Refused(429, f"Too many messages wait for {recipient}; send later.", RETRY_AFTER)

    @property
    def rows(self) -> int:
        """Of all senders together; it costs a look at each sender."""
        return sum(self._senders.values())

    def add(self, sender: OpenId, recipient: OpenId, rows: int = 1) -> None:
        self._senders[sender] = self._senders.get(sender, 0) + rows
        self._recipients[recipient] = self._recipients.get(recipient, 0) + rows
        senders = self._pairs.setdefault(recipient, {})
        senders[sender] = senders.get(sender, 0) + rows

    def remove(self, sender: OpenId, recipient: OpenId) -> None:
        senders = self._pairs.get(recipient)
        if senders is None:
            return
        _take_one(self._senders, sender)
        _take_one(self._recipients, recipient)
        _take_one(senders, sender)
        if not senders:
            del self._pairs[recipient]


def _take_one(counts: dict[OpenId, int], user: OpenId) -> None:
    left = counts.get(user, 0) - 1
    if left > 0:
        counts[user] = left
    else:
        counts.pop(user, None)
