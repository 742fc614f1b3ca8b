"""The allow-list of origins: for browsers, which send one, and cannot say another."""

from __future__ import annotations

import pytest

from tests.gateway.conftest import Gate, Start
from tests.gateway.raw import Raw

ALLOWED = "https://chat.example.org,http://localhost:3000,null"


@pytest.fixture(scope="module")
def gate(serve: Start) -> Gate:
    return serve(origins_allow=ALLOWED)


def status(gate: Gate, *origins: str) -> int:
    """What a request with these fields gets."""
    with Raw(gate.url) as raw:
        names = ("Origin", "origin", "ORIGIN")
        raw.say(raw.request("ann", headers=dict(zip(names, origins, strict=False))))
        return raw.answer().status


@pytest.mark.parametrize("origin", ALLOWED.split(","))
def test_an_origin_on_the_list_may_come(gate: Gate, origin: str) -> None:
    assert status(gate, origin) == 101


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://chat.example.org",
        "https://chat.example.org:8443",
        "https://chat.example.org.evil.example",
        "https://evil.example/https://chat.example.org",
        "https://sub.chat.example.org",
        "HTTPS://CHAT.EXAMPLE.ORG/",
        "file://",
        "*",
        "",
    ],
)
def test_any_other_is_answered_with_403(gate: Gate, origin: str) -> None:
    assert status(gate, origin) == 403


def test_two_origins_are_none_of_them(gate: Gate) -> None:
    assert status(gate, "https://chat.example.org", "https://evil.example") == 403
    assert status(gate, "https://evil.example", "https://chat.example.org") == 403


def test_a_client_that_sends_none_is_no_browser_and_is_let_in(gate: Gate) -> None:
    assert status(gate) == 101


def test_without_a_list_every_page_may_come(serve: Start) -> None:
    assert status(serve(), "https://anything.example") == 101
