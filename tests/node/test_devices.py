"""A user with several sessions, in virtual time: who gets what, and which of them counts."""

from __future__ import annotations

import trio

from tests.node.cluster import greeted, open_cluster


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
