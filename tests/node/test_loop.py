"""The closed loop on the memory backends, in virtual time: what each side is promised, step by step."""

from __future__ import annotations

from itertools import pairwise

import pytest
import structlog.testing
import trio

from tests.node.cluster import Client, is_push, open_cluster, pushes
from yanchat.config import LimitSettings, RedeliverySettings
from yanchat.model import ACKED, GIVEN_UP, Node, OpenId, Step
from yanchat.ports import RowFilter
from yanchat.protocol import client_frames
from yanchat.protocol.client_frames import Settled
from yanchat.protocol.records import Acked, Told


async def greeted(*clients: Client) -> None:
    for client in clients:
        await client.until(lambda client: client.hello is not None)


@pytest.mark.parametrize("there", ["n1", "n2"])
async def test_the_loop_closes(there: str, autojump_clock: object) -> None:
    """Receipt, push, ack receipt, notice: each once, with one id, on one node and on two."""
    async with open_cluster("n1", "n2") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        bob = await cluster.nodes[there].login("bob")
        await greeted(ann, bob)
        ann.write("bob", "hello")
        await ann.until(lambda ann: len(ann.told) == 1)
        await trio.sleep(400)
        (receipt,), (message,), (told,) = ann.receipts, bob.messages, ann.told
        assert receipt.status == 200
        assert receipt.message_id == message.message_id == told[0]
        assert (message.sender, message.recipient, message.text) == ("ann", "bob", "hello")
        assert told[1:] == ("bob", 200)
        assert bob.ack_statuses == [200]
        (row,) = await cluster.stores["n1"].search(RowFilter())
        assert row.state == "delivered"
        assert row.attempts == 1
        times = (row.envelope.accepted_at, row.sent_at, row.arrived_at, row.settled_at, row.told_at)
        assert 0 not in times
        assert list(times) == sorted(times)


async def test_a_message_to_oneself_is_a_message(autojump_clock: object) -> None:
    """Ann writes to ann: she gets it, acks it, and is told."""
    async with open_cluster("n1") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        ann.write("ann", "note")
        await ann.until(lambda ann: len(ann.told) == 1)
        assert ann.texts == ["note"]


async def test_several_recipients_have_one_id_and_a_notice_each(autojump_clock: object) -> None:
    """One message, three recipients, one of them named twice, one away."""
    async with open_cluster("n1", "n2") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        bob = await cluster.nodes["n2"].login("bob")
        cat = await cluster.nodes["n1"].login("cat")
        await greeted(ann, bob, cat)
        ann.write("bob,cat,bob,dan", "hello")
        await ann.until(lambda ann: len(ann.told) == 2)
        dan = await cluster.nodes["n2"].login("dan")
        await ann.until(lambda ann: len(ann.told) == 3)
        assert {told[1] for told in ann.told} == {"bob", "cat", "dan"}
        assert len({told[0] for told in ann.told}) == 1
        assert [client.texts for client in (bob, cat, dan)] == [["hello"]] * 3
        assert len(ann.receipts) == 1


async def test_a_request_repeated_on_another_node_is_the_same_message(autojump_clock: object) -> None:
    """Its receipts carry one id, the recipient gets it once, and both nodes' books are closed."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        first, second = await cluster.nodes["n1"].login("ann"), await cluster.nodes["n2"].login("ann")
        bob = await cluster.nodes["n3"].login("bob")
        await greeted(first, second, bob)
        first.write("bob", "hello", "r-1")
        first.write("bob", "hello", "r-1")
        second.write("bob", "hello", "r-1")
        await first.until(lambda client: len(client.told) >= 1)
        await trio.sleep(30)
        assert len({receipt.message_id for receipt in first.receipts + second.receipts}) == 1
        assert len(first.receipts) == 2
        assert bob.texts == ["hello"]
        for name in ("n1", "n2"):
            (row,) = await cluster.stores[name].search(RowFilter())
            assert row.state == "delivered"


async def test_a_request_repeated_on_its_recipients_node_is_the_same_message(autojump_clock: object) -> None:
    """He has acked it there for another node: he does not get it again, and its sender hears so."""
    async with open_cluster("n1", "n2") as cluster:
        ann, bob = await cluster.nodes["n1"].login("ann"), await cluster.nodes["n2"].login("bob")
        await greeted(ann, bob)
        ann.write("bob", "hello", "r-1")
        await ann.until(lambda ann: len(ann.told) == 1)
        await trio.sleep(5)
        ann.leave()
        ann = await cluster.nodes["n2"].login("ann")
        await greeted(ann)
        ann.write("bob", "hello", "r-1")
        await ann.until(lambda ann: [status for *_, status in ann.told] == [200])
        await trio.sleep(100)
        assert len(ann.told) == len(ann.receipts) == 1
        assert bob.texts == ["hello"]


async def test_a_request_repeated_after_its_end_is_answered_and_told_again(autojump_clock: object) -> None:
    """A sender that has forgotten what became of it asks by repeating; its recipient hears nothing of that."""
    async with open_cluster("n1", "n2") as cluster:
        ann, bob = await cluster.nodes["n1"].login("ann"), await cluster.nodes["n2"].login("bob")
        await greeted(ann, bob)
        ann.write("bob", "hello", "r-1")
        await ann.until(lambda ann: len(ann.told) == 1)
        await trio.sleep(5)
        ann.leave()
        ann = await cluster.nodes["n1"].login("ann")
        await greeted(ann)
        await trio.sleep(5)
        assert ann.told == []
        ann.write("bob", "hello", "r-1")
        await ann.until(lambda ann: [status for *_, status in ann.told] == [200])
        await trio.sleep(100)
        assert len(ann.told) == len(ann.receipts) == 1
        assert bob.texts == ["hello"]


async def test_one_request_id_for_two_texts_makes_two_messages(autojump_clock: object) -> None:
    """Neither is taken for the other."""
    async with open_cluster("n1") as cluster:
        ann, bob = await cluster.nodes["n1"].login("ann"), await cluster.nodes["n1"].login("bob")
        await greeted(ann, bob)
        ann.write("bob", "yes", "r-1")
        ann.write("bob", "no", "r-1")
        await ann.until(lambda ann: len(ann.told) == 2)
        assert bob.texts == ["yes", "no"]
        assert len({message_id for message_id, *_ in ann.told}) == 2


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


async def test_only_the_recipient_can_ack(autojump_clock: object) -> None:
    """Somebody else's ack is refused with 403, an unknown id with 404; a repeated ack is answered again."""
    async with open_cluster("n1") as cluster:
        n1 = cluster.nodes["n1"]
        ann, bob, eve = await n1.login("ann"), await n1.login("bob", acks=False), await n1.login("eve")
        await greeted(ann, bob, eve)
        ann.write("bob", "hello")
        await bob.until(lambda bob: len(bob.messages) == 1)
        eve.ack(bob.messages[0])
        await eve.until(lambda eve: eve.ack_statuses == [403])
        assert ann.told == []
        ann._say('{"type":15,"params":{"msgid":"16516"}}')
        await ann.until(lambda ann: ann.ack_statuses == [404])
        bob.ack(bob.messages[0])
        bob.ack(bob.messages[0])
        await bob.until(lambda bob: bob.ack_statuses == [200, 200])
        await trio.sleep(5)
        bob.ack(bob.messages[0])
        await bob.until(lambda bob: bob.ack_statuses == [200, 200, 200])
        assert len(ann.told) == 1


async def test_the_ack_of_a_client_that_leaves_at_once_counts(autojump_clock: object) -> None:
    """An ack that came before the end of the session is recorded, although the session has ended since."""
    async with open_cluster("n1", "n2") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        bob = await cluster.nodes["n2"].login("bob", acks=False)
        await greeted(ann, bob)
        ann.write("bob", "hello")
        await bob.until(lambda bob: len(bob.messages) == 1)
        bob.ack(bob.messages[0])
        bob.leave()
        await ann.until(lambda ann: len(ann.told) == 1)


@pytest.mark.parametrize("there", ["n1", "n2"])
async def test_messages_wait_for_an_absent_user_in_order(there: str, autojump_clock: object) -> None:
    """They come at the next login, on any node, oldest first, once, and newer ones queue behind them."""
    async with open_cluster("n1", "n2") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        for number in range(600):
            ann.write("bob", f"{number:03}")
        await ann.until(lambda ann: len(ann.receipts) == 600)
        await trio.sleep(100)
        bob = await cluster.nodes[there].login("bob")
        await bob.until(lambda bob: len(bob.texts) > 100)
        for number in range(600, 700):
            ann.write("bob", f"{number:03}")
        await ann.until(lambda ann: len(ann.told) == 700, within=60)
        assert bob.texts == [f"{number:03}" for number in range(700)]
        assert bob.hello is not None
        assert bob.hello.pending
        assert not any(message.redelivered for message in bob.messages)
        await trio.sleep(100)
        assert cluster.registry.pending[OpenId("bob")] == set()
        assert cluster.nodes["n1"].work.mailboxes.items == {}


@pytest.mark.parametrize(("size", "most"), [(60_000, 9), (10, 256)])
async def test_a_client_is_read_no_more_when_as_much_waits_as_may(size: int, most: int, autojump_clock: object) -> None:
    """However slow the disk is, a client with large texts holds no more memory than its answers may take."""
    async with open_cluster("n1") as cluster:
        n1 = cluster.nodes["n1"]
        ann = await n1.login("ann")
        await greeted(ann)
        n1.store.before_commit = 1.0
        frame = client_frames.send(("bob",), "x" * size, 0, None).encode()
        sent = 1
        while ann.session.receive(frame):
            sent += 1
        assert sent == most
        assert ann.session.paused
        await ann.until(lambda ann: len(ann.receipts) == sent)
        assert not ann.session.paused
        assert ann.session.receive(frame)


async def test_a_look_at_everybody_holds_up_nobody(autojump_clock: object) -> None:
    """Once a minute all who are waited for are looked at; a message to somebody who is there does not wait for them."""
    async with open_cluster("n1") as cluster:
        n1 = cluster.nodes["n1"]
        ann, bob = await n1.login("ann"), await n1.login("bob")
        await greeted(ann, bob)
        for n in range(50):
            ann.write(",".join(f"away-{n}-{m}" for m in range(100)), "hello")
        await ann.until(lambda ann: len(ann.receipts) == 50)
        await trio.sleep(30)
        n1.registry.takes = 0.2
        n1.work.mailboxes.look_at_all()
        await trio.sleep(0.01)
        ann.write("bob", "hello")
        await bob.until(lambda bob: bob.texts == ["hello"], within=2)
        n1.registry.takes = 0.001
        await trio.sleep(10)
        assert set(n1.work.mailboxes.awaited.values()) == {True}
        assert n1.work.mailboxes.boxes == {}


async def test_a_second_device_gets_what_is_open_and_the_first_ack_settles(autojump_clock: object) -> None:
    """Both devices of a user get the message; one ack is enough; a later device gets nothing of it."""
    async with open_cluster("n1", "n2") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        phone = await cluster.nodes["n2"].login("bob", acks=False)
        laptop = await cluster.nodes["n1"].login("bob", acks=False)
        await greeted(ann, phone, laptop)
        ann.write("bob", "hello")
        await phone.until(lambda client: client.texts == ["hello"])
        await laptop.until(lambda client: client.texts == ["hello"])
        await trio.sleep(2)
        tablet = await cluster.nodes["n2"].login("bob", acks=False)
        await tablet.until(lambda client: client.texts == ["hello"])
        assert tablet.messages[0].redelivered
        phone.ack(phone.messages[0])
        await ann.until(lambda ann: len(ann.told) == 1)
        late = await cluster.nodes["n1"].login("bob")
        await trio.sleep(400)
        assert late.texts == []
        assert len(ann.told) == 1


async def test_an_unacked_push_is_redelivered_on_its_schedule_and_marked(autojump_clock: object) -> None:
    """5 s × 3ⁿ with jitter, at most 5 minutes; each repeat says so."""
    async with open_cluster("n1", "n2") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        bob = await cluster.nodes["n2"].login("bob", acks=False)
        await greeted(ann, bob)
        ann.write("bob", "hello")
        at: list[float] = []
        for count in range(1, 8):
            await bob.until(lambda bob, count=count: len(bob.texts) == count, within=400)  # type: ignore[misc]
            at.append(trio.current_time())
        gaps = [later - earlier for earlier, later in pairwise(at)]
        for gap, exact in zip(gaps, (5, 15, 45, 135, 300, 300), strict=True):
            assert exact * 0.89 <= gap <= exact * 1.11 + 0.5
        assert [message.redelivered for message in bob.messages] == [False] + [True] * 6


async def test_what_has_lived_too_long_is_given_up_and_its_sender_told(autojump_clock: object) -> None:
    """410 after its lifetime; should the ack come all the same, a 200 follows; 200 is final."""
    redelivery = RedeliverySettings(lifetime=100.0, keep=30 * 86400.0)
    async with open_cluster("n1", "n2", redelivery=redelivery) as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        bob = await cluster.nodes["n2"].login("bob", acks=False)
        await greeted(ann, bob)
        ann.write("bob", "hello")
        ann.write("zoe", "are you there?")
        await ann.until(lambda ann: [status for *_, status in ann.told] == [410, 410], within=200)
        errors = [frame.error for frame in ann.frames if isinstance(frame, Settled)]
        assert all(errors)
        rows = await cluster.stores["n1"].search(RowFilter(states=("expired",)))
        assert len(rows) == 2
        bob.ack(bob.messages[0])
        await ann.until(lambda ann: [status for *_, status in ann.told] == [410, 410, 200])
        zoe = await cluster.nodes["n2"].login("zoe")
        await trio.sleep(50)
        assert zoe.texts == []


async def test_a_sender_who_is_away_is_told_at_the_next_login(autojump_clock: object) -> None:
    """On any node, once."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        await greeted(ann)
        ann.write("bob", "hello")
        await ann.until(lambda ann: len(ann.receipts) == 1)
        ann.leave()
        bob = await cluster.nodes["n2"].login("bob")
        await bob.until(lambda bob: bob.ack_statuses == [200])
        await trio.sleep(20)
        ann = await cluster.nodes["n3"].login("ann")
        await ann.until(lambda ann: len(ann.told) == 1)
        assert ann.hello is not None
        assert ann.hello.pending
        await trio.sleep(5)
        again = await cluster.nodes["n3"].login("ann")
        await trio.sleep(400)
        assert again.told == []


async def test_a_late_close_never_erases_a_newer_login(autojump_clock: object) -> None:
    """The old session ends after the new one has begun: the user is found all the same."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        old = await cluster.nodes["n2"].login("bob")
        new = await cluster.nodes["n2"].login("bob")
        other = await cluster.nodes["n3"].login("bob")
        await greeted(ann, old, new, other)
        old.leave()
        await trio.sleep(1)
        ann.write("bob", "hello")
        await new.until(lambda client: client.texts == ["hello"])
        await other.until(lambda client: client.texts == ["hello"])
        assert old.texts == []


async def test_single_keeps_the_newest_session_of_a_user(autojump_clock: object) -> None:
    """Policy `single`: a new login on any node closes the old one."""
    async with open_cluster("n1", "n2", sessions="single") as cluster:
        old = await cluster.nodes["n1"].login("bob")
        await greeted(old)
        await trio.sleep(1)
        new = await cluster.nodes["n2"].login("bob")
        await greeted(new)
        await trio.sleep(1)
        assert not old.connected
        assert new.connected
        newest = await cluster.nodes["n2"].login("bob")
        await greeted(newest)
        await trio.sleep(1)
        assert not new.connected
        assert newest.connected


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


async def test_caps_refuse_with_a_time_to_wait(autojump_clock: object) -> None:
    """Too many waiting for one recipient: 429, and honest senders below their share still get in."""
    limits = LimitSettings(pending_per_sender=30, pending_per_pair=20, pending_per_recipient=25)
    async with open_cluster("n1", limits=limits) as cluster:
        n1 = cluster.nodes["n1"]
        ann, eve = await n1.login("ann"), await n1.login("eve")
        await greeted(ann, eve)
        for number in range(22):
            eve.write("bob", str(number))
        await eve.until(lambda eve: len(eve.receipts) == 22)
        assert [receipt.status for receipt in eve.receipts] == [200] * 20 + [429] * 2
        assert eve.receipts[-1].retry_after > 0
        for number in range(6):
            ann.write("bob", str(number))
        await ann.until(lambda ann: len(ann.receipts) == 6)
        assert {receipt.status for receipt in ann.receipts} == {200}
        for number in range(11):
            eve.write(f"user{number}", "spam")
        await eve.until(lambda eve: len(eve.receipts) == 33)
        assert eve.receipts[-1].status == 429
        bob = await n1.login("bob")
        await bob.until(lambda bob: len(bob.texts) == 26)
        await trio.sleep(2)
        eve.write("bob", "again")
        await eve.until(lambda eve: eve.receipts[-1].status == 200)


async def test_a_whole_unacked_window_holds_back_only_that_senders_node(autojump_clock: object) -> None:
    """A user who acks nothing gets a window of each node, and then nothing but repeats."""
    async with open_cluster("n1", "n2") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        bob = await cluster.nodes["n2"].login("bob", acks=False)
        eve = await cluster.nodes["n2"].login("eve")
        await greeted(ann, bob, eve)
        for number in range(20):
            ann.write("bob", str(number))
        await trio.sleep(3)
        assert bob.texts == [str(number) for number in range(8)]
        eve.write("bob", "from another node")
        await bob.until(lambda bob: bob.texts[-1] == "from another node")


async def test_more_notices_than_a_window_are_all_told(autojump_clock: object) -> None:
    """A sender of hundreds is told of each, once."""
    async with open_cluster("n1", "n2") as cluster:
        ann, bob = await cluster.nodes["n1"].login("ann"), await cluster.nodes["n2"].login("bob")
        await greeted(ann, bob)
        for number in range(400):
            ann.write("bob", str(number))
        await ann.until(lambda ann: len(ann.told) == 400, within=60)
        await trio.sleep(60)
        assert len(ann.told) == 400
        assert len(pushes(cluster, "n2")) == 400
