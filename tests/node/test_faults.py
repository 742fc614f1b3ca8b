"""Crashes, full disks and a registry that is away or forgets, in virtual time: nothing is lost, and all of it comes."""

from __future__ import annotations

import pytest
import structlog.testing
import trio

from tests.node.cluster import greeted, is_push, open_cluster
from yanchat.model import ACKED, GIVEN_UP, Node, OpenId, Step
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
