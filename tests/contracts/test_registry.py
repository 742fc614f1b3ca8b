"""The port Registry: entries are leases, an address belongs to one incarnation, a late call undoes nothing newer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from msgspec.structs import replace

from tests.contracts.backends import Cluster
from tests.contracts.examples import ANN, BOB, CID, HERE, THERE, node, session
from yanchat.errors import AddressTaken
from yanchat.model import Node, NodeRecord, OpenId, SessionRecord
from yanchat.ports import Registry


def unstamped(entries: Sequence[SessionRecord]) -> list[SessionRecord]:
    return sorted((replace(entry, stamp=0) for entry in entries), key=lambda entry: entry.session_id)


async def located(registry: Registry, *users: OpenId) -> list[SessionRecord]:
    found = await registry.locate(users)
    return unstamped([entry for user in users for entry in found.get(user, ())])


async def states(registry: Registry) -> dict[Node, tuple[str, str]]:
    """Incarnation and state of each node; the incarnation of a dead one may be forgotten."""
    found = await registry.nodes()
    return {one.node: (one.incarnation if one.state != "dead" else "", one.state) for one in found}


# -- nodes -------------------------------------------------------------------------------------------------------------
async def test_a_node_that_joined_is_seen_by_the_others(cluster: Cluster) -> None:
    assert await cluster.second.nodes() == []
    await cluster.first.join(node())
    (record,) = await cluster.second.nodes()
    assert replace(record, age=0.0) == node()
    assert 0 <= record.age < 10


async def test_a_node_that_does_not_renew_is_dead_but_remembered(cluster: Cluster) -> None:
    await cluster.first.join(node())
    await cluster.second.join(node(THERE))
    await cluster.lapse()
    await cluster.second.join(node(THERE))
    assert await states(cluster.second) == {HERE: ("", "dead"), THERE: ("i1", "up")}


async def test_the_age_counts_from_the_last_heartbeat(cluster: Cluster) -> None:
    await cluster.first.join(node())
    await cluster.lapse()
    (dead,) = await cluster.first.nodes()
    await cluster.first.join(node())
    (again,) = await cluster.first.nodes()
    assert dead.age > again.age >= 0


async def test_renew_keeps_the_lease_and_says_the_state(cluster: Cluster) -> None:
    await cluster.first.join(node())
    assert await cluster.first.renew(node(state="draining"))
    assert await states(cluster.second) == {HERE: ("i1", "draining")}


async def test_a_lapsed_lease_is_not_renewed_but_joined_again(cluster: Cluster) -> None:
    await cluster.first.join(node())
    await cluster.lapse()
    assert not await cluster.first.renew(node())
    assert await states(cluster.second) == {HERE: ("", "dead")}
    await cluster.first.join(node(incarnation="i2"))
    assert await states(cluster.second) == {HERE: ("i2", "up")}
    assert await cluster.first.renew(node(incarnation="i2"))


async def test_an_unknown_node_has_no_lease_to_renew(registry: Registry) -> None:
    assert not await registry.renew(node())
    assert await registry.nodes() == []


async def test_join_may_be_repeated(cluster: Cluster) -> None:
    for _ in range(2):
        await cluster.first.join(node())
    assert await cluster.first.renew(node())
    assert await states(cluster.second) == {HERE: ("i1", "up")}


# -- whose address -----------------------------------------------------------------------------------------------------
async def test_another_store_does_not_get_the_address_of_a_live_node(cluster: Cluster) -> None:
    await cluster.first.join(node())
    with pytest.raises(AddressTaken, match=HERE):
        await cluster.second.join(node(incarnation="i2", store="s2"))
    assert await cluster.first.renew(node())
    await cluster.second.join(node(THERE, store="s2"))


async def test_another_store_gets_the_address_of_a_dead_node(cluster: Cluster) -> None:
    await cluster.first.join(node())
    await cluster.lapse()
    await cluster.second.join(node(incarnation="i2", store="s2"))
    assert await states(cluster.first) == {HERE: ("i2", "up")}


async def test_the_same_store_takes_over_at_once_and_fences_the_earlier_life(cluster: Cluster) -> None:
    await cluster.first.join(node(incarnation="i1"))
    await cluster.second.join(node(incarnation="i2"))
    with pytest.raises(AddressTaken, match=HERE):
        await cluster.first.renew(node(incarnation="i1"))
    assert await cluster.second.renew(node(incarnation="i2"))
    assert await states(cluster.first) == {HERE: ("i2", "up")}


async def test_leaving_gives_the_address_back(cluster: Cluster) -> None:
    await cluster.first.join(node())
    await cluster.first.leave(node())
    await cluster.first.leave(node())
    assert await cluster.second.nodes() == []
    assert not await cluster.first.renew(node())
    await cluster.second.join(node(incarnation="i2", store="s2"))


async def test_a_late_leave_does_not_touch_the_next_incarnation(cluster: Cluster) -> None:
    await cluster.first.join(node(incarnation="i1"))
    await cluster.second.join(node(incarnation="i2"))
    await cluster.first.leave(node(incarnation="i1"))
    assert await states(cluster.first) == {HERE: ("i2", "up")}


# -- sessions ----------------------------------------------------------------------------------------------------------
async def test_a_session_is_claimed_once_and_located_by_all(cluster: Cluster) -> None:
    await cluster.first.join(node())
    assert await cluster.first.claim([session(), session(ANN)]) == [True, True]
    assert await cluster.first.claim([session(number=2), session()]) == [True, False]
    assert await located(cluster.second, BOB) == [session(), session(number=2)]
    assert await located(cluster.second, ANN, CID) == [session(ANN)]
    (record,) = await cluster.second.nodes()
    assert record.sessions == 3


async def test_an_entry_keeps_its_stamp_and_a_later_one_has_a_later(cluster: Cluster) -> None:
    await cluster.first.join(node())
    await cluster.first.claim([session()])
    (first,) = await cluster.second.sessions()
    await cluster.lapse()
    await cluster.first.join(node(incarnation="i2"))
    again = replace(session(), incarnation="i2")
    assert await cluster.first.claim([again]) == [True]  # its lease had lapsed: whoever waits must be asked again
    assert await cluster.first.claim([again]) == [False]
    await cluster.second.claim([session(number=2, at=node(incarnation="i2"))])
    stamps = {entry.session_id: entry.stamp for entry in await cluster.second.sessions(openid=BOB)}
    assert first.stamp > 0
    assert stamps[first.session_id] == first.stamp
    assert max(stamps.values()) > first.stamp


async def test_the_stamp_is_the_registrys_own(registry: Registry) -> None:
    await registry.claim([replace(session(), stamp=1), replace(session(number=2), stamp=1 << 62)])
    first, second = await registry.sessions()
    assert first.stamp == second.stamp or 1 < first.stamp <= second.stamp < 1 << 62


async def test_sessions_of_a_node_that_is_not_live_count_for_nothing(cluster: Cluster) -> None:
    await cluster.first.claim([session()])
    assert await located(cluster.first, BOB) == []
    await cluster.first.join(node())
    assert await located(cluster.second, BOB) == [session()]
    await cluster.lapse()
    assert await located(cluster.second, BOB) == []
    await cluster.first.join(node(incarnation="i2"))
    assert await located(cluster.second, BOB) == []
    assert unstamped(await cluster.second.sessions()) == [session()]


async def test_sessions_of_a_node_that_left_count_for_nothing(cluster: Cluster) -> None:
    await cluster.first.join(node())
    await cluster.first.claim([session()])
    await cluster.first.leave(node())
    assert await located(cluster.second, BOB) == []


async def test_a_draining_nodes_sessions_are_still_located(cluster: Cluster) -> None:
    await cluster.first.join(node())
    await cluster.first.claim([session()])
    await cluster.first.renew(node(state="draining"))
    assert await located(cluster.second, BOB) == [session()]


async def test_a_user_may_be_on_several_nodes(cluster: Cluster) -> None:
    there = node(THERE)
    await cluster.first.join(node())
    await cluster.second.join(there)
    await cluster.first.claim([session()])
    await cluster.second.claim([session(at=there)])
    assert await located(cluster.first, BOB) == [session(), session(at=there)]


async def test_a_late_release_never_erases_a_newer_claim(cluster: Cluster) -> None:
    await cluster.first.join(node())
    await cluster.first.claim([session()])
    await cluster.first.claim([session(number=2)])
    await cluster.second.release([session(), session(CID)])
    await cluster.second.release([session()])
    assert await located(cluster.second, BOB) == [session(number=2)]


async def test_a_release_removes_the_entry_of_whatever_incarnation(cluster: Cluster) -> None:
    await cluster.first.join(node(incarnation="i2"))
    await cluster.first.claim([session(at=node(incarnation="i2"))])
    await cluster.first.release([session(at=node(incarnation="i1"))])
    assert await cluster.first.sessions() == []


async def test_sessions_are_listed_by_node_by_user_and_all(cluster: Cluster) -> None:
    there = node(THERE)
    await cluster.first.claim([session(), session(ANN), session(at=there)])
    assert unstamped(await cluster.second.sessions()) == unstamped([session(), session(ANN), session(at=there)])
    assert unstamped(await cluster.second.sessions(node=HERE)) == unstamped([session(), session(ANN)])
    assert unstamped(await cluster.second.sessions(openid=BOB)) == unstamped([session(), session(at=there)])
    assert unstamped(await cluster.second.sessions(node=THERE, openid=ANN)) == []


async def test_reap_removes_what_a_dead_incarnation_left(cluster: Cluster) -> None:
    await cluster.first.join(node())
    await cluster.first.claim([session(), session(ANN)])
    ghosts = await cluster.second.sessions(openid=BOB)
    await cluster.second.reap(ghosts)
    assert len(await cluster.second.sessions()) == 2  # it is live
    await cluster.lapse()
    await cluster.second.reap(ghosts)
    await cluster.second.reap(ghosts)
    assert unstamped(await cluster.second.sessions()) == [session(ANN)]


async def test_reap_removes_what_an_earlier_incarnation_left(cluster: Cluster) -> None:
    await cluster.first.join(node())
    await cluster.first.claim([session()])
    await cluster.first.join(node(incarnation="i2"))
    await cluster.first.claim([session(at=node(incarnation="i2"), number=2)])
    await cluster.second.reap(await cluster.second.sessions())
    assert unstamped(await cluster.second.sessions()) == [session(at=node(incarnation="i2"), number=2)]


async def test_reap_spares_an_entry_that_was_claimed_again(cluster: Cluster) -> None:
    await cluster.first.join(node())
    await cluster.first.claim([session()])
    ghosts = await cluster.second.sessions()
    await cluster.lapse()
    again = replace(session(), incarnation="i2")
    await cluster.first.claim([again])  # before it has joined, even
    await cluster.second.reap(ghosts)
    assert unstamped(await cluster.second.sessions()) == [again]


async def test_reap_compares_whole_entries(cluster: Cluster) -> None:
    await cluster.first.claim([session()])
    (entry,) = await cluster.second.sessions()
    await cluster.second.reap([replace(entry, stamp=entry.stamp + 1), replace(entry, remote="elsewhere")])
    assert await cluster.second.sessions() == [entry]
    await cluster.second.reap([entry])
    assert await cluster.second.sessions() == []


# -- who waits for whom ------------------------------------------------------------------------------------------------
async def pending(registry: Registry, *users: OpenId) -> dict[OpenId, list[Node]]:
    found = await registry.pending(users)
    return {user: sorted(nodes) for user, nodes in found.items() if nodes}


async def test_live_nodes_stand_in_pending_sets_until_they_leave_them(cluster: Cluster) -> None:
    await cluster.first.join(node())
    await cluster.second.join(node(THERE))
    await cluster.first.enter(HERE, [BOB, CID])
    await cluster.second.enter(THERE, [BOB])
    await cluster.second.enter(THERE, [BOB])
    assert await pending(cluster.second, BOB, CID, ANN) == {BOB: [HERE, THERE], CID: [HERE]}
    await cluster.first.leave_pending(HERE, [BOB, ANN])
    await cluster.first.leave_pending(HERE, [BOB])
    assert await pending(cluster.first, BOB, CID, ANN) == {BOB: [THERE], CID: [HERE]}


async def test_a_dead_node_is_not_pending_but_its_next_life_is(cluster: Cluster) -> None:
    await cluster.first.join(node())
    await cluster.first.enter(HERE, [BOB])
    await cluster.lapse()
    assert await pending(cluster.second, BOB) == {}
    await cluster.first.join(node(incarnation="i2"))
    assert await pending(cluster.second, BOB) == {BOB: [HERE]}


# -- the rest ----------------------------------------------------------------------------------------------------------
async def test_the_epoch_is_the_same_for_all_and_stays(cluster: Cluster) -> None:
    epoch = await cluster.first.epoch()
    assert epoch
    await cluster.first.join(node())
    assert await cluster.second.epoch() == epoch == await cluster.first.epoch()


async def test_empty_batches_are_answered(registry: Registry) -> None:
    assert await registry.claim([]) == []
    assert not await registry.locate([])
    assert not await registry.pending([])
    for nothing in (
        registry.release([]),
        registry.reap([]),
        registry.enter(HERE, []),
        registry.leave_pending(HERE, []),
    ):
        await nothing


async def test_large_batches_are_answered_whole(cluster: Cluster) -> None:
    users = [OpenId(f"u{number}") for number in range(3000)]
    await cluster.first.join(node())
    assert all(await cluster.first.claim([session(user) for user in users]))
    await cluster.first.enter(HERE, users)
    assert set(await cluster.second.locate(users)) == set(users)
    assert set(await pending(cluster.second, *users)) == set(users)
    await cluster.first.release([session(user) for user in users])
    assert await cluster.second.sessions() == []


@pytest.mark.parametrize("user", ["a'b", 'a"b', "a:b@c|d", "%", "*", "[x]", "\u4f60"])
async def test_any_user_is_found_and_no_other(cluster: Cluster, user: OpenId) -> None:
    await cluster.first.join(node())
    await cluster.first.claim([session(user), session(BOB)])
    await cluster.first.enter(HERE, [user])
    assert await located(cluster.second, user) == [session(user)]
    assert await pending(cluster.second, user, BOB) == {user: [HERE]}


async def test_a_cancelled_call_may_be_repeated(cluster: Cluster) -> None:
    calls = (
        lambda: cluster.first.join(node()),
        lambda: cluster.first.claim([session(), session(number=2)]),
        lambda: cluster.first.enter(HERE, [BOB]),
        lambda: cluster.first.release([session()]),
    )
    for call in calls:
        with trio.CancelScope() as scope:
            scope.cancel()
            await call()
        await call()
    assert await located(cluster.second, BOB) == [session(number=2)]
    assert await pending(cluster.second, BOB) == {BOB: [HERE]}


async def test_an_address_goes_to_one_of_two_who_want_it(cluster: Cluster) -> None:
    taken: list[NodeRecord] = []

    async def join(registry: Registry, record: NodeRecord) -> None:
        try:
            await registry.join(record)
        except AddressTaken:
            taken.append(record)

    async with trio.open_nursery() as nursery:
        for number in range(6):
            registry = cluster.first if number % 2 else cluster.second
            nursery.start_soon(join, registry, node(incarnation=f"i{number}", store=f"s{number}"))
    assert len(taken) == 5
    (record,) = await cluster.first.nodes()
    assert record.incarnation not in {other.incarnation for other in taken}
