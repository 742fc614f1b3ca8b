"""Each kind of malformed client, ended by a FIN and by a RST: answered in its own way, and nothing of it is left."""

from __future__ import annotations

import socket

import pytest

from tests.gateway.conftest import Gate
from tests.gateway.malformed import KINDS, Malformed
from tests.gateway.raw import Closed, Raw


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_malformed_client_is_told_so_and_leaves_with_a_fin(unharmed: Gate, kind: Malformed) -> None:
    for n in range(5):
        with Raw(unharmed.url) as client:
            if kind.logged_in:
                client.login(f"odd{n}")
            client.say(kind.says)
            if kind.ends is None:
                client.sock.shutdown(socket.SHUT_WR)
                while client.more():
                    pass
            elif kind.logged_in:
                assert client.ends().code == kind.ends
            else:
                assert client.answer().status == kind.ends


@pytest.mark.parametrize("heard", [False, True], ids=["at once", "when answered"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_malformed_client_that_breaks_off_leaves_nothing_behind(unharmed: Gate, kind: Malformed, heard: bool) -> None:
    for n in range(5):
        client = Raw(unharmed.url)
        if kind.logged_in:
            client.login(f"odd{n}")
        client.say(kind.says)
        if heard and kind.ends is not None:
            try:
                client.json() if kind.logged_in else client.more()
            except Closed:
                pass
        client.reset()


def test_there_are_nineteen_kinds() -> None:
    assert len({kind.name for kind in KINDS}) == len({kind.says for kind in KINDS}) == 19
