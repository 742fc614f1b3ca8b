"""Crashes, full disks and a registry that is away or forgets, in virtual time: nothing is lost, and all of it comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import structlog.testing
import trio

from tests.node.cluster import greeted, is_push, open_cluster
from yanchat.model import ACKED, GIVEN_UP, AckEntry, Envelope, Node, OpenId, Step
from yanchat.ports import RowFilter
from yanchat.protocol.records import Acked, Told


@pytest.mark.parametrize("comes_back", ["acked", "told"])
async def test_what_comes_back_while_its_row_is_being_read_is_not_lost(comes_back: str, autojump_clock: object) -> None:
    """The row is on disk alone when the record comes and in memory when all that was put before is written."""
    async with open_cluster("n1", "n2") as cluster:
        n1, n2 = cluster.nodes["n1"], cluster.nodes["n2"]
        ann = await n1.login("ann")
        await greeted(ann)
        ann.write("bob", "hello")
        ann.write("cat", "other")
        await ann.until(lambda ann: len(ann.receipts) == 2)
        row, other = await n1.store.search(RowFilter())
        reader = "bob"
        if comes_back == "told":
            ann.leave()
            await trio.sleep(1)
            await n1.work.settlement.bury([row])
            reader = "ann"
        await trio.sleep(2)
        assert row.envelope.key not in n1.work.mailboxes.items
        n1.store.before_read, n1.store.before_commit = 0.3, 0.5
        await n2.login(reader, half_open=True)
        await trio.sleep(0.1)
        n1.work.ledger.put([Step(other.envelope.order, 0, 0)])
        keys = (row.envelope.key,)
        n2.bus.publish(n1.name, [Acked(n2.name, keys) if comes_back == "acked" else Told(n2.name, keys, GIVEN_UP)])
        await trio.sleep(3)
        (row,) = [row for row in await n1.store.search(RowFilter()) if row.envelope.recipient == "bob"]
        assert (row.rank, row.told) == ((ACKED, ACKED) if comes_back == "acked" else (GIVEN_UP, GIVEN_UP))


async def test_a_crash_of_the_senders_node_loses_nothing(autojump_clock: object) -> None:
    """What was receipted goes out after the restart, marked if it may have arrived before."""
    async with open_cluster("n1", "n2") as cluster:
        n1 = cluster.nodes["n1"]
        ann, bob = await n1.login("ann"), await cluster.nodes["n2"].login("bob", acks=False)
        await greeted(ann, bob)
        ann.write("bob", "had")
        await bob.until(lambda bob: bob.texts == ["had"])
        cluster.lose(lambda _, record: is_push(record))
        ann.write("bob", "lost")
        await ann.until(lambda ann: len(ann.receipts) == 2)
        n1.crash()
        cluster.lose(lambda *_: False)
        await cluster.start("n1")
        await bob.until(lambda bob: set(bob.texts) == {"had", "lost"}, within=10)
        assert all(message.redelivered for message in bob.messages[1:])


async def test_a_crash_of_the_recipients_node_loses_nothing(autojump_clock: object) -> None:
    """The user comes back elsewhere and gets what he had not acked, and nothing that he had."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        n2 = cluster.nodes["n2"]
        ann, bob = await cluster.nodes["n1"].login("ann"), await n2.login("bob")
        await greeted(ann, bob)
        ann.write("bob", "1")
        await ann.until(lambda ann: len(ann.told) == 1)
        bob.acks = False
        ann.write("bob", "2")
        await bob.until(lambda bob: bob.texts == ["1", "2"])
        n2.crash()
        bob = await cluster.nodes["n3"].login("bob")
        await bob.until(lambda bob: bob.texts == ["2"])
        await ann.until(lambda ann: len(ann.told) == 2)
        assert bob.messages[0].redelivered


async def test_a_full_disk_refuses_and_recovers(autojump_clock: object) -> None:
    """Sends and acks are answered 503, nothing of them counts, and everything goes on when there is room."""
    async with open_cluster("n1", "n2") as cluster:
        n1, n2 = cluster.nodes["n1"], cluster.nodes["n2"]
        ann, bob = await n1.login("ann"), await n2.login("bob", acks=False)
        await greeted(ann, bob)
        ann.write("bob", "1")
        await bob.until(lambda bob: bob.texts == ["1"])
        n1.store.writable = n2.store.writable = False
        ann.write("bob", "2")
        await ann.until(lambda ann: [receipt.status for receipt in ann.receipts] == [200, 503])
        bob.ack(bob.messages[0])
        await bob.until(lambda bob: bob.ack_statuses == [503])
        assert ann.told == []
        n1.store.writable = n2.store.writable = True
        bob.acks = True
        await ann.until(lambda ann: len(ann.told) == 1, within=30)
        ann.write("bob", "3")
        await ann.until(lambda ann: len(ann.told) == 2)
        assert "2" not in bob.texts


async def test_a_full_disk_is_logged_when_it_begins_and_when_it_is_over(autojump_clock: object) -> None:
    """Not for each send that it refuses: the log may be on that disk."""
    async with open_cluster("n1") as cluster:
        n1 = cluster.nodes["n1"]
        ann = await n1.login("ann")
        await greeted(ann)
        with structlog.testing.capture_logs() as logs:
            n1.store.writable = False
            for number in range(20):
                ann.write("bob", str(number))
                await trio.sleep(0.1)
            n1.store.writable = True
            ann.write("bob", "at last")
            await ann.until(lambda ann: ann.receipts[-1].status == 200)
        assert [log["event"] for log in logs] == ["store.add_fails", "store.add_works_again"]


async def test_an_outcome_that_cannot_be_written_is_written_when_there_is_room(autojump_clock: object) -> None:
    """The sender's node cannot write that it was acked: the notice goes out, and the disk learns it later."""
    async with open_cluster("n1", "n2") as cluster:
        n1 = cluster.nodes["n1"]
        ann, bob = await n1.login("ann"), await cluster.nodes["n2"].login("bob", acks=False)
        await greeted(ann, bob)
        ann.write("bob", "1")
        await bob.until(lambda bob: bob.texts == ["1"])
        n1.store.writable = False
        bob.ack(bob.messages[0])
        await ann.until(lambda ann: len(ann.told) == 1)
        assert cluster.bus.committed[Node("n1:1"), "ack"] < cluster.bus.end((Node("n1:1"), "ack"))
        n1.store.writable = True
        await trio.sleep(5)
        (row,) = await n1.store.search(RowFilter())
        assert (row.state, row.told) == ("delivered", row.rank)
        assert cluster.bus.committed[Node("n1:1"), "ack"] == cluster.bus.end((Node("n1:1"), "ack"))


async def test_while_the_registry_is_away_known_routes_serve(autojump_clock: object) -> None:
    """Clients stay, logins are taken, known users are reached; the rest is delivered when it is back."""
    async with open_cluster("n1", "n2") as cluster:
        n1, n2 = cluster.nodes["n1"], cluster.nodes["n2"]
        ann, bob = await n1.login("ann"), await n2.login("bob")
        await greeted(ann, bob)
        ann.write("bob", "1")
        await ann.until(lambda ann: len(ann.told) == 1)
        ann.write("cat", "for cat")
        await trio.sleep(2)
        cluster.registry.up = False
        ann.write("bob", "2")
        await ann.until(lambda ann: len(ann.told) == 2)
        cat, dan = await n1.login("cat"), await n2.login("dan")
        await cat.until(lambda cat: cat.texts == ["for cat"])
        await dan.until(lambda dan: dan.hello is not None and dan.hello.pending)
        ann.write("dan", "3")
        await trio.sleep(30)
        assert dan.texts == []
        cluster.registry.up = True
        await dan.until(lambda dan: dan.texts == ["3"], within=15)
        ann.write("bob", "4")
        await bob.until(lambda bob: bob.texts == ["1", "2", "4"])


async def test_while_the_registry_cannot_be_written_known_routes_serve(autojump_clock: object) -> None:
    """All leases lapse, so it says that nobody is anywhere: that is its trouble, not theirs."""
    async with open_cluster("n1", "n2") as cluster:
        n1, n2 = cluster.nodes["n1"], cluster.nodes["n2"]
        ann, bob = await n1.login("ann"), await n2.login("bob")
        await greeted(ann, bob)
        ann.write("bob", "0")
        await ann.until(lambda ann: len(ann.told) == 1)
        cluster.registry.writable = False
        for number in range(1, 7):
            await trio.sleep(10)
            ann.write("bob", str(number))
            await ann.until(lambda ann, number=number: len(ann.told) == number + 1, within=5)
        cluster.registry.writable = True
        ann.write("bob", "7")
        await bob.until(lambda bob: bob.texts == [str(number) for number in range(8)])


async def test_who_has_come_or_gone_is_asked_for_anew(autojump_clock: object) -> None:
    """Other nodes say so, perhaps before the registry does: a look must not find what it remembers."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        n1, n2, n3 = (cluster.nodes[name] for name in ("n1", "n2", "n3"))
        forgotten: list[OpenId] = []
        n1.registry.forget = forgotten.extend  # type: ignore[method-assign]
        ann, bob = await n1.login("ann"), await n2.login("bob", acks=False)
        await greeted(ann, bob)
        ann.write("bob", "hello")
        await bob.until(lambda bob: len(bob.messages) == 1)
        await trio.sleep(2)
        assert not forgotten
        again = await n3.login("bob")
        await again.until(lambda again: again.texts == ["hello"])
        assert forgotten == ["bob"]
        ann.write("bob", "once more")
        await again.until(lambda again: len(again.texts) == 2)
        forgotten.clear()
        bob.leave()
        ann.write("bob", "for two")
        await again.until(lambda again: len(again.texts) == 3)


async def test_who_has_left_while_the_registry_cannot_be_written_costs_nothing(autojump_clock: object) -> None:
    """His node says that he is not there: his last place is none any more."""
    async with open_cluster("n1", "n2") as cluster:
        n1, n2 = cluster.nodes["n1"], cluster.nodes["n2"]
        ann, bob = await n1.login("ann"), await n2.login("bob", acks=False)
        await greeted(ann, bob)
        for number in range(8):
            ann.write("bob", str(number))
        await bob.until(lambda bob: len(bob.messages) >= 8)
        cluster.registry.writable = False
        await trio.sleep(15)
        bob.leave()
        await trio.sleep(60)
        published = n1.counters.bus_published
        await trio.sleep(600)
        assert n1.counters.bus_published - published < 50  # the registry is asked each second, the bus is not
        cluster.registry.writable = True
        again = await n2.login("bob")
        await again.until(lambda bob: sorted(bob.texts) == [str(number) for number in range(8)], within=30)


@pytest.mark.parametrize("how", ["forget_all", "fail_over"])
async def test_a_registry_that_forgets_knows_all_again_within_a_heartbeat(how: str, autojump_clock: object) -> None:
    """Sessions are claimed again, pending sets entered again, and whoever waited is pulled."""
    async with open_cluster("n1", "n2") as cluster:
        n1, n2 = cluster.nodes["n1"], cluster.nodes["n2"]
        ann, bob = await n1.login("ann"), await n2.login("bob")
        await greeted(ann, bob)
        ann.write("cat", "for cat")
        await trio.sleep(5)
        getattr(cluster.registry, how)()
        await trio.sleep(4)
        assert {entry.openid for entry in await n1.registry.sessions()} == {"ann", "bob"}
        assert cluster.registry.pending[OpenId("cat")] == {Node("n1:1")}
        cat = await n2.login("cat")
        await cat.until(lambda cat: cat.texts == ["for cat"])
        ann.write("bob", "hello")
        await bob.until(lambda bob: bob.texts == ["hello"])


# -- our own faults: whatever is wrong with one message, nobody else has to do with it ---------------------------------
async def test_a_message_that_cannot_be_stored_by_a_fault_of_ours_is_refused_alone(autojump_clock: object) -> None:
    """503 for that one, a line in the log, and all that came with it is stored."""
    async with open_cluster("n1") as cluster:
        n1 = cluster.nodes["n1"]
        ann, eve, bob = await n1.login("ann"), await n1.login("eve"), await n1.login("bob")
        await greeted(ann, eve, bob)
        add = n1.store.add

        async def break_at_poison(messages: Sequence[Sequence[Envelope]], **how: Any) -> list[list[bool]]:
            if any("poison" in envelope.text for message in messages for envelope in message):
                raise ZeroDivisionError
            return await add(messages, **how)

        n1.store.add = break_at_poison  # type: ignore[method-assign]
        with structlog.testing.capture_logs() as logs:
            for number in range(10):
                ann.write("bob", f"{number}")
                eve.write("bob", "poison" if number == 5 else f"from eve {number}")
            await ann.until(lambda ann: len(ann.told) == 10)
            await eve.until(lambda eve: len(eve.told) == 9)
        assert [receipt.status for receipt in ann.receipts] == [200] * 10
        assert [receipt.status for receipt in eve.receipts] == [200] * 5 + [503] + [200] * 4
        assert len(bob.texts) == 19
        assert [log["event"] for log in logs if log["log_level"] == "error"] == ["store.add_failed"]
        assert "poison" not in str(logs)
        assert await n1.store.waiting() == []


async def test_an_ack_that_cannot_be_recorded_by_a_fault_of_ours_is_refused_alone(autojump_clock: object) -> None:
    """503 for that one, which comes again; the others are recorded."""
    async with open_cluster("n1") as cluster:
        n1 = cluster.nodes["n1"]
        ann, bob, cat = await n1.login("ann"), await n1.login("bob", acks=False), await n1.login("cat", acks=False)
        await greeted(ann, bob, cat)
        record, broken = n1.store.ack, True

        async def break_at_cat(entries: Sequence[AckEntry]) -> list[int]:
            if broken and any(entry.key[1] == "cat" for entry in entries):
                raise ZeroDivisionError
            return await record(entries)

        n1.store.ack = break_at_cat  # type: ignore[method-assign]
        ann.write("bob,cat", "hello")
        await bob.until(lambda bob: len(bob.messages) == 1)
        await cat.until(lambda cat: len(cat.messages) == 1)
        with structlog.testing.capture_logs() as logs:
            bob.ack(bob.messages[0])
            cat.ack(cat.messages[0])
            await bob.until(lambda bob: bob.ack_statuses == [200])
            await cat.until(lambda cat: cat.ack_statuses == [503])
        assert [log["event"] for log in logs if log["log_level"] == "error"] == ["store.ack_failed"]
        broken, cat.acks = False, True
        await ann.until(lambda ann: len(ann.told) == 2, within=30)


@pytest.mark.plain
async def test_whoever_may_have_no_answer_by_a_fault_of_ours_connects_again(autojump_clock: object) -> None:
    """What was stored is delivered all the same, and the repeated request is the same message."""
    async with open_cluster("n1") as cluster:
        n1 = cluster.nodes["n1"]
        ann, bob = await n1.login("ann"), await n1.login("bob")
        await greeted(ann, bob)
        accepted = n1.work.mailboxes.accepted
        n1.work.mailboxes.accepted = None  # type: ignore[assignment, method-assign]
        with structlog.testing.capture_logs() as logs:
            ann.write("bob", "hello", "r-1")
            await trio.sleep(1)
        n1.work.mailboxes.accepted = accepted  # type: ignore[method-assign]
        assert "intake.failed" in [log["event"] for log in logs]
        assert not ann.connected
        await bob.until(lambda bob: bob.texts == ["hello"])
        ann = await n1.login("ann")
        await ann.until(lambda ann: len(ann.told) == 1)
        await trio.sleep(3)  # until she has answered for the notice
        ann.write("bob", "hello", "r-1")
        await ann.until(lambda ann: len(ann.told) == 2)
        assert bob.texts == ["hello"]
        ann.write("bob", "more")
        await bob.until(lambda bob: bob.texts == ["hello", "more"])


@pytest.mark.plain
async def test_a_fault_of_ours_after_an_ack_was_recorded_leaves_the_node_at_work(autojump_clock: object) -> None:
    """His connection is closed, and when he acks again, the loop closes."""
    async with open_cluster("n1") as cluster:
        n1 = cluster.nodes["n1"]
        ann, bob = await n1.login("ann"), await n1.login("bob", acks=False)
        await greeted(ann, bob)
        settled = n1.work.mailboxes.settled
        n1.work.mailboxes.settled = None  # type: ignore[assignment, method-assign]
        ann.write("bob", "hello")
        await bob.until(lambda bob: len(bob.messages) == 1)
        with structlog.testing.capture_logs() as logs:
            bob.ack(bob.messages[0])
            await trio.sleep(1)
        n1.work.mailboxes.settled = settled  # type: ignore[method-assign]
        assert "acks.failed" in [log["event"] for log in logs]
        assert not bob.connected
        await n1.login("bob")
        await ann.until(lambda ann: len(ann.told) == 1, within=30)
