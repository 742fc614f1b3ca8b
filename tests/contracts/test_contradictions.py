"""The port Registry, for a person: what contradicts itself is found, and mended where it still stands so."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

from msgspec.structs import replace

from tests.contracts.backends import Cluster
from tests.contracts.examples import ANN, BOB, CID, HERE, THERE, node, session
from yanchat.errors import AddressTaken
from yanchat.model import Contradiction, Node, OpenId
from yanchat.ports import Registry

GONE = Node("127.0.0.1:8009")


async def found(registry: Registry) -> set[tuple[str, Node, OpenId]]:
    """What contradicts, by kind; of each there is a sentence that names it and says what to do."""
    contradictions = await registry.contradictions()
    for one in contradictions:
        assert one.node in one.sentence
        assert one.openid in one.sentence
        assert one.session_id in one.sentence
        assert "--repair" in one.sentence or not one.mendable
    assert len(set(contradictions)) == len(contradictions)
    return {(one.kind, one.node, one.openid) for one in contradictions}


async def kinds(registry: Registry, *wanted: str) -> list[Contradiction]:
    return [one for one in await registry.contradictions() if one.kind in wanted]


async def owners(registry: Registry) -> Collection[OpenId]:
    return [entry.openid for entry in await registry.sessions()]


async def test_a_busy_cluster_does_not_contradict_itself(cluster: Cluster) -> None:
    """Nodes up and draining, sessions, users who are waited for: all of it is as it should be."""
    assert await cluster.first.contradictions() == []
    there = node(THERE)
    await cluster.first.join(node())
    await cluster.second.join(there)
    await cluster.first.claim([session(), session(ANN), session(ANN, number=2)])
    await cluster.second.claim([session(at=there)])
    await cluster.first.enter(HERE, [CID, ANN])
    await cluster.second.enter(THERE, [CID])
    await cluster.first.renew(node(state="draining"))
    await cluster.first.release([session(ANN, number=2)])
    assert await cluster.second.contradictions() == []


async def test_nothing_contradicts_after_a_node_has_left(cluster: Cluster) -> None:
    await cluster.first.join(node())
    await cluster.first.claim([session()])
    await cluster.first.release([session()])
    await cluster.first.leave(node())
    assert await cluster.second.contradictions() == []


async def test_sessions_of_a_dead_node_are_found_and_removed(cluster: Cluster) -> None:
    there = node(THERE)
    await cluster.first.join(node())
    await cluster.first.claim([session(), session(ANN)])
    await cluster.lapse()
    await cluster.second.join(there)
    await cluster.second.claim([session(at=there)])
    assert await found(cluster.second) == {("ghost", HERE, BOB), ("ghost", HERE, ANN), ("dead", HERE, "")}
    await cluster.second.mend(await kinds(cluster.second, "ghost"))
    assert await found(cluster.second) == {("dead", HERE, "")}
    assert [entry.node for entry in await cluster.second.sessions()] == [THERE]


async def test_sessions_of_an_earlier_incarnation_are_found_and_removed(cluster: Cluster) -> None:
    await cluster.first.join(node())
    await cluster.first.claim([session()])
    await cluster.first.join(node(incarnation="i2"))
    await cluster.first.claim([session(ANN, at=node(incarnation="i2"))])
    assert await found(cluster.second) == {("ghost", HERE, BOB)}
    await cluster.second.mend(await cluster.second.contradictions())
    assert await cluster.second.contradictions() == []
    assert await owners(cluster.second) == [ANN]


async def test_an_entry_that_was_claimed_again_is_spared(cluster: Cluster) -> None:
    await cluster.first.join(node())
    await cluster.first.claim([session()])
    await cluster.first.join(node(incarnation="i2"))
    ghosts = await cluster.second.contradictions()
    await cluster.first.claim([replace(session(), incarnation="i2")])
    await cluster.second.mend(ghosts)
    assert await cluster.second.contradictions() == []
    assert await owners(cluster.second) == [BOB]


async def test_a_dead_node_is_found_and_forgotten(cluster: Cluster) -> None:
    await cluster.first.join(node())
    await cluster.lapse()
    await cluster.second.join(node(THERE))
    dead = await cluster.second.contradictions()
    assert await found(cluster.second) == {("dead", HERE, "")}
    for _ in range(2):
        await cluster.second.mend(dead)
        assert [record.node for record in await cluster.second.nodes()] == [THERE]
    assert await cluster.second.contradictions() == []


async def test_a_node_that_has_come_back_is_not_forgotten(cluster: Cluster) -> None:
    await cluster.first.join(node())
    await cluster.lapse()
    dead = await cluster.second.contradictions()
    await cluster.first.join(node(incarnation="i2"))
    await cluster.second.mend(dead)
    assert [record.state for record in await cluster.second.nodes()] == ["up"]
    assert await cluster.second.contradictions() == []


async def test_a_pending_set_may_name_a_node_that_is_dead_but_none_that_is_not_registered(cluster: Cluster) -> None:
    """The dead one may come back, and is asked then; of the other nobody can say when."""
    await cluster.first.join(node())
    await cluster.first.enter(HERE, [BOB, ANN])
    await cluster.second.enter(GONE, [BOB])
    assert await found(cluster.second) == {("gone_holder", GONE, BOB)}
    await cluster.lapse()
    assert await found(cluster.second) == {("gone_holder", GONE, BOB), ("dead", HERE, "")}
    await cluster.second.mend(await kinds(cluster.second, "gone_holder"))
    assert await found(cluster.second) == {("dead", HERE, "")}
    await cluster.first.join(node())
    assert await cluster.second.pending([BOB, ANN]) == {BOB: [HERE], ANN: [HERE]}


async def test_a_holder_that_has_joined_is_left_in_its_pending_sets(cluster: Cluster) -> None:
    await cluster.first.enter(HERE, [BOB])
    gone = await cluster.second.contradictions()
    await cluster.first.join(node())
    await cluster.second.mend(gone)
    assert await cluster.second.pending([BOB]) == {BOB: [HERE]}


async def test_what_a_forgotten_node_has_left_is_found_next(cluster: Cluster) -> None:
    """Mending until nothing is found leaves nothing of it."""
    await cluster.first.join(node())
    await cluster.first.claim([session()])
    await cluster.first.enter(HERE, [CID])
    await cluster.lapse()
    for _ in range(3):
        await cluster.second.mend(await cluster.second.contradictions())
    assert await cluster.second.contradictions() == []
    assert await cluster.second.nodes() == []
    assert await cluster.second.sessions() == []


async def test_two_live_nodes_that_share_a_slug_are_refused_or_found(cluster: Cluster) -> None:
    """No mending touches either: a person has to stop one."""
    first, second = node(Node("a-b.example:1")), node(Node("a.b-example:1"), store="s2")
    await cluster.first.join(first)
    with suppress(AddressTaken):
        await cluster.second.join(second)
    live = sorted(record.node for record in await cluster.first.nodes())
    if len(live) == 2:
        (one,) = await cluster.first.contradictions()
        assert one.kind == "same_slug"
        assert first.node in one.sentence
        assert second.node in one.sentence
        await cluster.first.mend([one])
        assert sorted(record.node for record in await cluster.first.nodes()) == live
        await cluster.second.leave(second)
    assert await cluster.first.contradictions() == []


async def test_a_node_of_another_slug_is_none_of_its_business(cluster: Cluster) -> None:
    await cluster.first.join(node(Node("a-b.example:1")))
    await cluster.second.join(node(Node("a-b.example:2"), store="s2"))
    assert await cluster.first.contradictions() == []


async def test_mending_nothing_changes_nothing(cluster: Cluster) -> None:
    await cluster.first.join(node())
    await cluster.first.claim([session()])
    await cluster.first.mend([])
    assert await owners(cluster.first) == [BOB]


async def test_many_are_found_and_mended_at_once(cluster: Cluster) -> None:
    users = [OpenId(f"u{number}") for number in range(2500)]
    await cluster.first.join(node())
    await cluster.first.claim([session(user) for user in users])
    await cluster.first.enter(GONE, users)
    assert len(await cluster.second.contradictions()) == 2500
    await cluster.first.join(node(incarnation="i2"))
    contradictions = await cluster.second.contradictions()
    assert len(contradictions) == 5000
    await cluster.second.mend(contradictions)
    assert await cluster.second.contradictions() == []
