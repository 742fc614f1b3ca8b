"""Turns: fair between those who wait, and in order for each of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from yanchat.node.turns import Turns


@given(st.lists(st.integers(0, 4), max_size=80), st.integers(1, 20))
def test_all_come_out_once_and_each_ones_in_order(whose: list[int], most: int) -> None:
    """However many are taken at a time."""
    turns: Turns[tuple[int, int]] = Turns()
    for number, who in enumerate(whose):
        turns.put(who, (who, number))
    taken: list[tuple[int, int]] = []
    while turns:
        batch = turns.take(most)
        assert 0 < len(batch) <= most
        taken += batch
    assert sorted(taken, key=lambda item: item[1]) == [(who, number) for number, who in enumerate(whose)]
    for who in set(whose):
        numbers = [number for other, number in taken if other == who]
        assert numbers == sorted(numbers)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=20), st.integers(1, 50))
def test_nobody_waits_longer_than_a_round(floods: list[int], most: int) -> None:
    """Who puts in one thing gets it when each of the others has had one turn more, however much they have put in."""
    turns: Turns[str] = Turns()
    for who, many in enumerate(floods):
        for _ in range(many):
            turns.put(who, "flood")
    turns.put("ann", "hers")
    before = 0
    while "hers" not in (batch := turns.take(most)):
        before += len(batch)
    assert before <= len(floods)


def test_who_comes_while_others_are_served_does_not_wait_for_them_to_finish() -> None:
    """Also who floods anew does not get in front."""
    turns: Turns[str] = Turns()
    for _ in range(100):
        turns.put("mallory", "flood")
    assert turns.take(10) == ["flood"] * 10
    turns.put("ann", "hers")
    for _ in range(100):
        turns.put("mallory", "flood")
    assert "hers" in turns.take(2)


def test_what_weighs_much_fills_a_round_alone() -> None:
    """A message to a hundred is a hundred rows: a batch of such ones holds up nobody for longer than one of others."""
    turns: Turns[str] = Turns()
    for _ in range(10):
        turns.put("mallory", "list", 100)
    turns.put("ann", "hers")
    assert turns.take(100) == ["list"]
    assert turns.take(150) == ["hers", "list", "list"]
    assert turns.take(50) == ["list"]  # never divided, and never left behind
    assert turns.take(1000) == ["list"] * 6
    assert not turns
