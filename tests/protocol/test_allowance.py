"""Token buckets: what may be sent in the long run, at once, and together with others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from yanchat.protocol.allowance import Allowance, Shares


@given(
    rate=st.floats(0.5, 1000),
    steps=st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 50)), max_size=60),
)
def test_never_more_than_the_burst_and_the_rate_and_after_the_wait_it_is_there(
    rate: float, steps: list[tuple[float, float]]
) -> None:
    """Over any time, what was taken is at most the rate times that, twice the rate, and the last one; waits suffice."""
    allowance, start, now, taken = Allowance(rate), 1000.0, 1000.0, 0.0
    for pause, amount in steps:
        now += pause
        wait = allowance.take(amount, now)
        if wait:
            now += wait + 1e-6
            assert allowance.take(amount, now) == 0.0
        assert taken <= 2 * rate + (now - start) * rate + 1e-3
        taken += amount


def test_a_rate_of_0_is_no_limit() -> None:
    assert Allowance(0).take(1e12, 0.0) == 0.0
    assert Shares("", 0, 0).join("ann", 0.0) == ()


def test_connections_of_one_draw_from_one_share_and_others_from_theirs() -> None:
    shares = Shares("", 10, 0)
    (first,), (second,), (other,) = shares.join("ann", 5.0), shares.join("ann", 5.0), shares.join("bob", 5.0)
    assert [first.take(1, 5.0) for _ in range(20)] == [0.0] * 20
    assert 0 < second.take(1, 5.0) <= 0.1
    assert other.take(1, 5.0) == 0.0


def test_whoever_goes_and_comes_back_at_once_has_gained_nothing() -> None:
    shares = Shares("", 10, 0)
    (share,) = shares.join("ann", 5.0)
    while not share.take(1, 5.0):
        pass
    for _ in range(3):
        shares.leave("ann", 5.0)
        (share,) = shares.join("ann", 5.15)
    assert [share.take(1, 5.15), bool(share.take(1, 5.15))] == [0.0, True], "only what has flowed in since"


def test_shares_of_those_who_have_gone_are_forgotten_when_they_would_be_full() -> None:
    """However many come and go, and whoever is here keeps his."""
    shares = Shares("", 10, 0)
    shares.join("here", 0.0)
    for n in range(1000):
        shares.join(f"u{n}", n / 100)
        shares.leave(f"u{n}", n / 100)
        assert len(shares) <= 203
    shares.join("later", 100.0)
    assert len(shares) == 2


def test_a_debt_is_not_forgotten_by_going() -> None:
    """What was more than a bucket holds is paid off first, wherever its user has been meanwhile."""
    shares = Shares("", 0, 100)
    (share,) = shares.join("ann", 10.0)
    assert share.take(2000, 10.0) == 0.0
    shares.leave("ann", 10.0)
    shares.join("bob", 15.0)
    (share,) = shares.join("ann", 15.0)
    assert 13 < share.take(100, 15.0) < 15
    shares.leave("ann", 15.0)
    shares.join("bob", 60.0)
    shares.join("bob", 63.0)
    assert len(shares) == 1
