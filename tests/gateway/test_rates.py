"""Rates of one user and of one address over all their connections: refused with the time to wait, never dropped."""

from __future__ import annotations

import time
from typing import Any

from tests.gateway.conftest import Start
from tests.gateway.raw import Raw, send, talker, text


def pour(client: Raw, to: str, count: int, size: int = 1) -> list[dict[str, Any]]:
    """Send so many at once, and gather the answers."""
    client.say(text(send(to, "x" * size)) * count)
    return [client.json(0) for _ in range(count)]


def refused(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [answer["params"] for answer in answers if answer["status"] == 429]


def test_a_user_gains_nothing_by_more_connections_nor_by_new_ones(start: Start) -> None:
    """One message in ten seconds: of all connections together, and of those that come after."""
    gate = start(user_messages_per_second=0.1)
    with talker(gate.url, "ann") as first, talker(gate.url, "ann") as second:
        assert not refused(pour(first, "bob", 1))
        (params,) = refused(pour(second, "bob", 1))
        assert 1 <= params["retryAfter"] <= 10
        assert params["error"] == "Too many messages from your connections together; send more slowly."
    with talker(gate.url, "ann") as again:
        assert refused(pour(again, "bob", 1)), "coming back does not fill the bucket"
    with talker(gate.url, "carol") as other:
        assert not refused(pour(other, "bob", 1))


def test_after_the_time_that_is_told_it_goes_on(start: Start) -> None:
    gate = start(user_messages_per_second=2)
    with talker(gate.url, "ann") as client:
        over = refused(pour(client, "bob", 50))
        time.sleep(over[-1]["retryAfter"])
        assert not refused(pour(client, "bob", 1))


def test_an_address_gains_nothing_by_more_users(start: Start) -> None:
    gate = start(address_messages_per_second=0.1)
    with (
        talker(gate.url, "ann", source="127.0.0.2") as ann,
        talker(gate.url, "bob", source="127.0.0.2") as bob,
        talker(gate.url, "carol", source="127.0.0.3") as carol,
    ):
        assert not refused(pour(ann, "dave", 1))
        (params,) = refused(pour(bob, "dave", 1))
        assert params["error"] == "Too many messages from your address; send more slowly."
        assert not refused(pour(carol, "dave", 1))


def test_bytes_of_all_connections_count_together(start: Start) -> None:
    gate = start(user_bytes_per_second=1000)
    with talker(gate.url, "ann") as first, talker(gate.url, "ann") as second:
        assert not refused(pour(first, "bob", 1, 60_000)), "more than the bucket holds goes when it is full"
        (params,) = refused(pour(second, "bob", 1, 60_000))
        assert 30 <= params["retryAfter"] <= 61
