"""The books of one node, as it shows them to who audits. Pure, and without the web."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from yanchat.protocol.books import Account, Doubt, imbalances


class NodeBooks(msgspec.Struct, frozen=True):
    """accepted + adopted = delivered + pending + expired + failed + moved; the purged are counted in their states."""

    node: str
    accepted: int
    adopted: int
    delivered: int
    pending: int
    expired: int
    failed: int
    """Given up for another reason than age: there is none today."""
    moved: int
    purged: int
    purged_before: int | None
    """Milliseconds: what was accepted before that, and was done, may be purged."""
    counted: bool
    """Whether durable counters stand behind it; not for a part of the rows, nor in a table of an earlier version."""
    balanced: bool
    doubts: Sequence[Doubt]


def show(node: str, account: Account) -> NodeBooks:
    """The books of this node, and all that is wrong with them."""
    held, purged = account.held, account.purged
    doubts = [Doubt(sentence) for sentence in imbalances(account)] + list(account.doubts)
    return NodeBooks(
        node,
        account.accepted,
        account.adopted,
        held.delivered + purged.delivered,
        held.pending + purged.pending,
        held.expired + purged.expired,
        0,
        held.moved + purged.moved,
        purged.all,
        account.purged_before or None,
        account.counted is not None,
        not doubts,
        doubts,
    )
