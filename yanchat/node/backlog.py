"""How many messages wait, by sender, by pair and by recipient, and who may add more. Rules without I/O."""

from __future__ import annotations

from collections import Counter

from yanchat.config import LimitSettings
from yanchat.errors import Refused
from yanchat.model import OpenId

RETRY_AFTER = 5


class Backlog:
    """Counts open rows. Every row that is added leaves once, when it is settled."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._senders: Counter[OpenId] = Counter()
        self._recipients: Counter[OpenId] = Counter()
        self._pairs: dict[OpenId, Counter[OpenId]] = {}

    def check(self, sender: OpenId, recipients: tuple[OpenId, ...]) -> None:
        """Refused(429) when one more message from this sender to these would be too many."""
        limits = self._limits
        if self._senders[sender] + len(recipients) > limits.pending_per_sender:
            raise Refused(429, "Too many of your messages wait for their recipients; send later.", RETRY_AFTER)
        for recipient in recipients:
            senders = self._pairs.get(recipient)
            if senders is None:
                continue
            mine = senders[sender]
            if mine >= limits.pending_per_pair:
                raise Refused(429, f"Too many of your messages wait for {recipient}; send later.", RETRY_AFTER)
            if self._recipients[recipient] >= limits.pending_per_recipient:
                share = limits.pending_per_recipient / (len(senders) + (mine == 0))
                if mine >= share:
                    raise Refused(429, f"Too many messages wait for {recipient}; send later.", RETRY_AFTER)

    def add(self, sender: OpenId, recipient: OpenId, rows: int = 1) -> None:
        self._senders[sender] += rows
        self._recipients[recipient] += rows
        self._pairs.setdefault(recipient, Counter())[sender] += rows

    def remove(self, sender: OpenId, recipient: OpenId) -> None:
        senders = self._pairs.get(recipient, Counter())
        for counter, user in ((self._senders, sender), (self._recipients, recipient), (senders, sender)):
            counter[user] -= 1
            if counter[user] <= 0:
                del counter[user]
        if not senders:
            self._pairs.pop(recipient, None)
