"""One-line mutations of the program that lose, repeat or delay messages: the simulation must find each of them."""

from __future__ import annotations

from typing import Final

from tests.node import test_adoption_rules as adoption
from tests.node.mutation import Mutation
from tests.node.test_rules import RULES
from yanchat.node import acks, delivery, hub, lease, reception, serving, tray

ADOPTION: Final = (
    "mark-first",
    "acks-stay",
    "no-catch-up",
    "heard-once",
    "kept-to-itself",
    "no-acks-here",
    "not-counted",
    "not-marked-redelivered",
    "lazy-books",
    "future-orders",
)
"""Rules of `tests/node/test_adoption_rules.py` that some seed of the first hundreds finds left out."""

MUTATIONS: Final[dict[str, Mutation]] = {
    "receipt-before-commit": RULES["receipt-first"].mutation,
    "no-dedup": Mutation(
        delivery,
        "if isinstance(record, Push) and record.envelope.key in known:",
        "if False:",
        "what the recipient has acked here is pushed to him again when it comes again",
    ),
    "offsets-before-commit": Mutation(
        serving,
        "                await self._until_served(batch)\n",
        "                await batch.commit()\n                await self._until_served(batch)\n",
        "a batch of the bus is committed before what it said is on disk",
    ),
    "drop-when-full": Mutation(
        tray,
        "            return True\n        self.miss()\n        return False\n",
        "            return True\n        return False\n",
        "a row for which a mailbox has no place in memory is forgotten there",
    ),
    "drop-when-congested": Mutation(
        hub,
        "        self._waiting.append(send)\n",
        "        del send\n",
        "what a client has no room for at the moment is dropped",
    ),
    "late-close-erases-newer-login": Mutation(
        reception,
        "        self._claims.release(session.record)\n",
        "        self._claims.release(session.record)\n"
        "        for newer in self._hub.of(session.openid):\n"
        "            self._claims.release(newer.record)\n",
        "the end of a session removes all entries of its user on this node",
    ),
    "settle-by-anyone": Mutation(
        acks,
        "            key = (MessageId(ack.message_id), ack.session.openid)\n"
        "            status, origins = (200, ack.origins) if ack.origins else await self._unknown(ack)\n",
        "            key = next((k for k in self._mailboxes.items if k[0] == ack.message_id),"
        " (MessageId(ack.message_id), ack.session.openid))\n"
        "            status, origins = 200, ack.origins or (self._node,)\n",
        "whoever names a message's id acks it for its recipient",
    ),
    "sweep-without-lease": Mutation(
        lease,
        '        await self._reap([record.node for record in nodes if record.state == "dead" and record.sessions])\n',
        "        for record in nodes:\n"
        "            await self._registry.release(await self._registry.sessions(node=record.node))\n",
        "sessions are removed from the registry whether or not the lease of their node has lapsed",
    ),
    **{name: rule.mutation for name, rule in RULES.items() if name != "receipt-first"},
    **{f"adoption-{name}": adoption.RULES[name][1] for name in ADOPTION},
}
ISSUE: Final = tuple(MUTATIONS)[:8]
"""Those that must be found; the others are the rules of `tests/node/test_rules.py`, each with a test of its own."""
