"""Each rule of the mailbox: it holds, and its test fails when the rule is left out of the program."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest
import trio

from tests.node.cluster import greeted, is_push, open_cluster, pushes
from tests.node.mutation import Mutation, left_out
from yanchat.backends.memory import registry as memory_registry
from yanchat.model import Node, OpenId
from yanchat.node import assembly, claims, delivery, hub, intake, lease, looks, mailboxes, tray
from yanchat.protocol.records import Pull


async def who_comes_while_he_is_awaited_is_found() -> None:
    """A login between the first look for a user and the entry into his pending set is found by the second look."""
    async with open_cluster("n1", "n2") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        await greeted(ann)
        cluster.nodes["n1"].registry.takes = 0.1
        ann.write("bob", "hello")
        await trio.sleep(0.15)  # n1 has looked and seen nobody; it stands in the pending set only at 0.2
        bob = await cluster.nodes["n2"].login("bob")
        await bob.until(lambda bob: bob.texts == ["hello"])


async def a_repeated_claim_that_was_news_wakes_who_waits() -> None:
    """The registry has forgotten a session; when it is claimed again, the nodes that wait for its user are told."""
    async with open_cluster("n2") as cluster:
        bob = await cluster.nodes["n2"].login("bob")
        await greeted(bob)
        await trio.sleep(30)
        n1 = await cluster.start("n1")  # its own minute ends at 90, that of n2 at 60
        ann = await n1.login("ann")
        await greeted(ann)
        cluster.registry.sessions.clear()
        ann.write("bob", "hello")
        await bob.until(lambda bob: bob.texts == ["hello"], within=40)


async def a_mailbox_that_waits_is_looked_at_once_a_minute() -> None:
    """A lost pull costs a minute, not the message."""
    async with open_cluster("n1", "n2") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        ann.write("bob", "hello")
        await trio.sleep(1)
        cluster.lose(lambda _, record: isinstance(record, Pull))
        bob = await cluster.nodes["n2"].login("bob")
        await bob.until(lambda bob: bob.texts == ["hello"], within=70)


async def newer_messages_queue_behind_older_ones() -> None:
    """What is accepted while older messages still stand on disk alone does not overtake them."""
    async with open_cluster("n1") as cluster:
        n1 = cluster.nodes["n1"]
        ann = await n1.login("ann")
        for number in range(300):
            ann.write("bob", f"{number:03}")
        await ann.until(lambda ann: len(ann.receipts) == 300)
        await trio.sleep(2)
        bob = await n1.login("bob", acks=False)
        await greeted(bob)
        for number in range(300, 305):
            ann.write("bob", f"{number:03}")
        await bob.until(lambda bob: len(bob.texts) == 8)
        await trio.sleep(1)
        bob.acks = True
        for message in bob.messages:
            bob.ack(message)
        await bob.until(lambda bob: len(set(bob.texts)) == 305, within=60)
        assert bob.texts == [f"{number:03}" for number in range(305)]


async def a_record_is_only_for_the_sessions_that_it_names() -> None:
    """A second device gets what is open in order, and nothing before its hello."""
    async with open_cluster("n1", "n2") as cluster:
        n1, n2 = cluster.nodes["n1"], cluster.nodes["n2"]
        ann = await n1.login("ann")
        phone = await n2.login("bob", acks=False)
        await greeted(ann, phone)
        for text in "1234":
            ann.write("bob", text)
        await trio.sleep(2)
        cluster.bus.fate = lambda _, record: (0.5 if is_push(record) else 0.0,)
        ann.write("bob", "5")
        await trio.sleep(0.49)
        cluster.bus.fate = lambda *_: (0.0,)
        n2.registry.takes = 0.02
        laptop = await n2.login("bob", acks=False)
        await laptop.until(lambda laptop: len(laptop.texts) == 5)
        assert laptop.texts == list("12345")
        assert laptop.frames[0] is laptop.hello


async def a_claim_that_the_registry_lost_is_repeated() -> None:
    """A session whose entry alone has been lost is findable again within a minute."""
    async with open_cluster("n1", "n2") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        bob = await cluster.nodes["n2"].login("bob")
        await greeted(ann, bob)
        cluster.registry.sessions.clear()
        ann.write("bob", "hello")
        await bob.until(lambda bob: bob.texts == ["hello"], within=130)


async def a_session_that_ends_is_told_to_who_waits_for_it() -> None:
    """A user who moves with something unacked gets it at his new place at once, not when it is found missing."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        bob = await cluster.nodes["n2"].login("bob", acks=False)
        await greeted(ann, bob)
        ann.write("bob", "hello")
        await bob.until(lambda bob: bob.texts == ["hello"])
        bob = await cluster.nodes["n3"].login("bob")
        await greeted(bob)
        cluster.nodes["n2"].clients[0].leave()
        await bob.until(lambda bob: bob.texts == ["hello"], within=0.5)


async def what_is_in_flight_to_a_node_that_died_is_looked_at() -> None:
    """A node that comes back as another incarnation gets at once what it has missed, long before its retry."""
    async with open_cluster("n1", "n2") as cluster:
        n2 = cluster.nodes["n2"]
        ann = await cluster.nodes["n1"].login("ann")
        bob = await n2.login("bob")
        await greeted(ann, bob)
        cluster.lose(lambda _, record: is_push(record))
        ann.write("bob", "hello")
        await trio.sleep(25)  # three attempts have been lost; the next is due after 45 s more
        cluster.lose(lambda *_: False)
        n2.registry.up = False
        await trio.sleep(12)  # its lease has lapsed
        n2.registry.up = True
        await bob.until(lambda bob: bob.texts == ["hello"], within=10)


async def the_receipt_comes_after_the_commit() -> None:
    """What a client has a receipt for is on disk, whatever happens then."""
    async with open_cluster("n1") as cluster:
        n1 = cluster.nodes["n1"]
        ann = await n1.login("ann")
        await greeted(ann)
        n1.store.before_commit = 0.1
        ann.write("bob", "hello")
        await ann.until(lambda ann: len(ann.receipts) == 1)
        n1.crash()
        n1.store.before_commit = 0.0
        bob = await (await cluster.start("n1")).login("bob")
        await bob.until(lambda bob: bob.texts == ["hello"])


async def an_ack_that_may_not_have_left_leaves_after_a_crash() -> None:
    """The recipient's node dies between its commit and the bus, the recipient never returns: the sender is told."""
    async with open_cluster("n1", "n2") as cluster:
        n2 = cluster.nodes["n2"]
        ann = await cluster.nodes["n1"].login("ann")
        bob = await n2.login("bob")
        await greeted(ann, bob)
        n2.bus.up = False
        ann.write("bob", "hello")
        await bob.until(lambda bob: bob.ack_statuses == [200])
        n2.crash()
        await cluster.start("n2")
        await ann.until(lambda ann: [status for *_, status in ann.told] == [200], within=30)


async def a_notice_is_told_only_when_its_ping_was_answered() -> None:
    """A sender whose connection was dead when the notice was written gets it at the next login."""
    async with open_cluster("n1") as cluster:
        n1 = cluster.nodes["n1"]
        ann, bob = await n1.login("ann"), await n1.login("bob")
        await greeted(ann, bob)
        ann.half_open = True
        ann.write("bob", "hello")
        await bob.until(lambda bob: bob.ack_statuses == [200])
        await trio.sleep(5)
        ann.leave()
        ann = await n1.login("ann")
        await ann.until(lambda ann: [status for *_, status in ann.told] == [200], within=10)


async def entries_of_an_earlier_incarnation_count_for_nothing() -> None:
    """A restart leaves no ghosts: nothing is sent to sessions of a node's earlier life."""
    async with open_cluster("n1", "n2") as cluster:
        n2 = cluster.nodes["n2"]
        ann = await cluster.nodes["n1"].login("ann")
        bob = await n2.login("bob")
        await greeted(ann, bob)
        n2.crash()
        left_behind = dict(cluster.registry.sessions)
        await cluster.start("n2")
        cluster.registry.sessions |= left_behind  # a reaper that is late
        ann.write("bob", "hello")
        await trio.sleep(5)
        assert pushes(cluster, "n2") == []
        assert cluster.registry.pending[OpenId("bob")] == {Node("n1:1")}


async def a_late_transition_never_overwrites_a_later_state() -> None:
    """A row that was acked while its expiry was being decided stays delivered: no 410 follows a 200."""
    async with open_cluster("n1") as cluster:
        n1 = cluster.nodes["n1"]
        ann, bob = await n1.login("ann"), await n1.login("bob", acks=False)
        await greeted(ann, bob)
        ann.write("bob", "hello")
        await bob.until(lambda bob: bob.texts == ["hello"])
        stale = await n1.store.open_rows(OpenId("bob"), "messages", 10, 9999)
        bob.ack(bob.messages[0])
        await ann.until(lambda ann: len(ann.told) == 1)
        assert await n1.work.settlement.bury(stale) == 0
        await trio.sleep(5)
        assert await n1.work.settlement.bury(stale) == 0
        await trio.sleep(5)
        assert [status for *_, status in ann.told] == [200]


class Rule(NamedTuple):
    holds: Callable[[], Awaitable[None]]
    mutation: Mutation


RULES = {
    "no-second-locate": Rule(
        who_comes_while_he_is_awaited_is_found,
        Mutation(
            looks,
            "                self._mailboxes.awaited[box.openid] = True\n            await self._locate(boxes)\n",
            "                self._mailboxes.awaited[box.openid] = True\n",
            "after awaiting a user, do not look whether he came in between",
        ),
    ),
    "no-pull-on-reclaim": Rule(
        a_repeated_claim_that_was_news_wakes_who_waits,
        Mutation(
            claims,
            "if new or not claims[session]]",
            "if not claims[session]]",
            "a repeated claim is not followed by pulls",
        ),
    ),
    "no-slow-sweep": Rule(
        a_mailbox_that_waits_is_looked_at_once_a_minute,
        Mutation(
            lease,
            "        self._mailboxes.look_at_all()\n",
            "",
            "waiting mailboxes are never looked at again by themselves",
        ),
    ),
    "overtake": Rule(
        newer_messages_queue_behind_older_ones,
        Mutation(
            tray,
            "if self.complete and not self.loading and self.held.has_room(len(self.rows), self.size):",
            "if True:",
            "a row is sent at once even if older rows of its recipient still wait",
        ),
    ),
    "unnamed": Rule(
        a_record_is_only_for_the_sessions_that_it_names,
        Mutation(
            delivery,
            "        return found\n",
            "        return list(self._hub.of(openid))\n",
            "a record is for whatever sessions the receiving node has, not for those that were located",
        ),
    ),
    "no-claim-sweep": Rule(
        a_claim_that_the_registry_lost_is_repeated,
        Mutation(
            lease,
            "        self.claim_all()\n",
            "",
            "a claim that the registry lost without losing the node's record is never repeated",
        ),
    ),
    "no-gone": Rule(
        a_session_that_ends_is_told_to_who_waits_for_it,
        Mutation(
            delivery,
            "            self._bus.publish(node, [Gone(self._node, tuple(sessions))])\n",
            "            pass\n",
            "a node does not tell origins that a session ended or was not there",
        ),
    ),
    "no-death-nudge": Rule(
        what_is_in_flight_to_a_node_that_died_is_looked_at,
        Mutation(
            lease,
            "            self._mailboxes.peers_changed(changed)\n",
            "            pass\n",
            "rows in flight to a node that died wait for their retry",
        ),
    ),
    "receipt-first": Rule(
        the_receipt_comes_after_the_commit,
        Mutation(
            intake,
            "self._take(session, sender, session.record.user_name, send)\n",
            "self._take(session, sender, session.record.user_name, send)\n"
            "        self._address(waiting)\n"
            "        session.outlet.send(self._answer(waiting, None, self._dates(self._clock.wall())))\n",
            "receipt before the commit",
        ),
    ),
    "ack-unsent-lost": Rule(
        an_ack_that_may_not_have_left_leaves_after_a_crash,
        Mutation(
            assembly,
            "            await self.acks.publish_again()\n",
            "",
            "an ack is not published again after a crash",
        ),
    ),
    "notice-is-told-when-written": Rule(
        a_notice_is_told_only_when_its_ping_was_answered,
        Mutation(
            hub,
            "                self.outlet.ping(payload)\n",
            "                self._ears.answered(self)\n",
            "a notice counts as told when it was handed to the socket",
        ),
    ),
    "any-incarnation": Rule(
        entries_of_an_earlier_incarnation_count_for_nothing,
        Mutation(
            memory_registry,
            "return holder is not None and holder.incarnation == entry.incarnation",
            "return holder is not None",
            "entries of an older incarnation of a node are believed",
        ),
    ),
    "regress": Rule(
        a_late_transition_never_overwrites_a_later_state,
        Mutation(
            mailboxes,
            "        if rank <= item.rank:\n            return False\n",
            "        if rank == item.rank:\n            return False\n",
            "a late transition may overwrite a later state",
        ),
    ),
}


@pytest.mark.parametrize("name", RULES)
async def test_the_rule_holds(name: str, autojump_clock: object) -> None:
    """Nothing lost, stuck, repeated or out of order."""
    await RULES[name].holds()


@pytest.mark.plain
@pytest.mark.parametrize("name", RULES)
async def test_a_program_without_the_rule_is_found_out(name: str, autojump_clock: object) -> None:
    """The test of a rule fails when the rule is left out: none of them is idle."""
    with left_out(RULES[name].mutation), pytest.RaisesGroup(AssertionError, flatten_subgroups=True):
        await RULES[name].holds()
