"""What one node holds, takes and looks at is bounded, in virtual time."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tests.node.cluster import greeted, open_cluster, pushes
from yanchat.config import LimitSettings
from yanchat.model import OpenId, Row
from yanchat.protocol import client_frames


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


async def test_what_waits_for_who_acks_nothing_is_in_memory_as_far_as_it_is_small(
    autojump_clock: object,
) -> None:
    """Four windows of large texts, and no more; when he acks, the others follow, in order, and once."""
    limits = LimitSettings(window=8, window_bytes=100_000, message_size=100_000)
    async with open_cluster("n1", "n2", limits=limits) as cluster:
        mailboxes = cluster.nodes["n1"].work.mailboxes
        ann, bob = await cluster.nodes["n1"].login("ann"), await cluster.nodes["n2"].login("bob", acks=False)
        await greeted(ann, bob)
        for number in range(30):
            ann.write("bob", f"{number:02}" + "x" * 50_000)
        await bob.until(lambda bob: len(bob.texts) == 1)
        await trio.sleep(60)
        held = sum(len(item.envelope.text) for item in mailboxes.items.values())
        assert 300_000 < held < 460_000
        assert mailboxes.boxes[OpenId("bob")].messages.size == held
        bob.acks = True
        for message in bob.messages:
            bob.ack(message)
        await ann.until(lambda ann: len(ann.told) == 30, within=60)
        assert list(dict.fromkeys(text[:2] for text in bob.texts)) == [f"{number:02}" for number in range(30)]
        await trio.sleep(60)
        assert mailboxes.boxes == {}


@pytest.mark.parametrize(
    ("before", "limits"),
    [
        (None, LimitSettings(window=500)),
        (None, LimitSettings(window_bytes=1)),
        (None, LimitSettings(window=1)),
        (LimitSettings(window=8), LimitSettings(window=500)),
    ],
)
async def test_whatever_the_window_nothing_is_read_again_and_again(
    before: LimitSettings | None, limits: LimitSettings, autojump_clock: object
) -> None:
    """A user who acks nothing has his window, also one that was changed, and the table is left alone."""
    async with open_cluster("n1", limits=before or limits) as cluster:
        n1 = cluster.nodes["n1"]
        ann, bob = await n1.login("ann"), await n1.login("bob", acks=False)
        await greeted(ann, bob)
        for number in range(600):
            ann.write("bob", f"{number:03}")
        await trio.sleep(2)
        n1.work.apply(limits)
        await trio.sleep(120)
        assert len(set(bob.texts)) == (1 if limits.window_bytes == 1 else limits.window)
        reads, read = 0, n1.store.open_rows

        async def count(*what: Any) -> list[Row]:
            nonlocal reads
            reads += 1
            return await read(*what)

        n1.store.open_rows = count  # type: ignore[method-assign]
        await trio.sleep(300)
        assert reads < 20  # everybody is looked at once a minute
        bob.acks = True
        for message in bob.messages:
            bob.ack(message)
        await ann.until(lambda ann: len(ann.told) == 600, within=1000)
        assert list(dict.fromkeys(bob.texts)) == [f"{number:03}" for number in range(600)]


async def test_limits_that_rise_while_a_mailbox_is_read_leave_no_row_on_disk(autojump_clock: object) -> None:
    """It was read up to the old bound: that the new one has room does not mean that there was no more."""
    async with open_cluster("n1", limits=LimitSettings(window=4)) as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        await greeted(ann)
        for number in range(40):
            ann.write("bob", str(number))
        await ann.until(lambda ann: len(ann.receipts) == 40)
        await trio.sleep(1)
        cluster.nodes["n1"].crash()
        n1 = await cluster.start("n1")
        read = n1.store.open_rows

        async def read_slowly(*what: Any) -> list[Row]:
            rows = await read(*what)
            await trio.sleep(1)
            return rows

        n1.store.open_rows = read_slowly  # type: ignore[method-assign]
        bob = await n1.login("bob")
        await trio.sleep(0.5)
        n1.work.apply(LimitSettings(window=64))
        await bob.until(lambda bob: len(bob.texts) == 40, within=30)
