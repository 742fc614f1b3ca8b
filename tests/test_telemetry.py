"""Histograms, which are lists of numbers, and troubles, of which only the beginning and the end are logged."""

from __future__ import annotations

import structlog

from yanchat.telemetry import Episode, Histogram


def test_a_value_counts_in_the_first_bucket_whose_bound_it_does_not_exceed() -> None:
    seen = Histogram((1, 10))
    for value in (0, 1, 1.5, 10, 11, 1000):
        seen.observe(value)
    assert (seen.counts, seen.sum) == ([2, 2, 2], 1023.5)


def test_a_trouble_is_logged_when_it_begins_and_when_it_is_over() -> None:
    with structlog.testing.capture_logs() as log:
        storing = Episode("store.add")
        storing.worked()
        for _ in range(3):
            storing.failed(OSError("full"))
        storing.worked()
        storing.worked()
    assert [(line["event"], line["log_level"]) for line in log] == [
        ("store.add_fails", "error"),
        ("store.add_works_again", "info"),
    ]
    assert log[1]["failed_times"] == 3
