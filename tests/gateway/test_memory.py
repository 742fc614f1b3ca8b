"""What a connection that says nothing costs."""

from __future__ import annotations

from contextlib import ExitStack

from tests.gateway.conftest import Gate, Start
from tests.gateway.raw import Raw, send, talker, text
from tests.running import wait_until
from yanchat.gateway.admission import allow_descriptors

MOST = 6 * 1024


def test_an_idle_session_costs_at_most_six_kilobytes(gate: Gate) -> None:
    """Resident memory of the node's own, over two thousand sessions of as many users, beyond the first two hundred."""
    count = min(2000, allow_descriptors() - 500)
    with ExitStack() as clients:

        def come(first: int, last: int) -> int:
            for n in range(first, last):
                clients.enter_context(talker(gate.url, f"idle-{n:06d}", source=f"127.0.0.{2 + n % 8}"))
            wait_until(lambda: gate.sockets() == last + 1, "all are in")
            return gate.resident()

        before = come(0, 200)
        after = come(200, 200 + count)
        assert (after - before) / count < MOST
    wait_until(lambda: gate.sockets() == 1, "all have left")


def test_half_a_handshake_costs_less_than_a_session(start: Start) -> None:
    """A thousand requests without an end: their bytes, and little more."""
    gate = start(handshake="60s")
    with ExitStack() as clients:
        before = gate.resident()
        for n in range(1000):
            client = clients.enter_context(Raw(gate.url, source=f"127.0.0.{2 + n % 8}"))
            client.say(client.request(f"half-{n}")[:-2])
        wait_until(lambda: gate.sockets() == 1001, "all are in")
        assert (gate.resident() - before) / 1000 < MOST


def test_users_who_ack_nothing_of_large_texts_cost_a_few_windows(start: Start) -> None:
    """Six users, 250 texts of 60 KB for each: 90 MB, of which a fraction is in memory."""
    gate = start(bytes_per_second=0)
    users = [f"mute-{n}" for n in range(6)]
    with ExitStack() as clients:
        mute = [clients.enter_context(talker(gate.url, user)) for user in users]
        sender = clients.enter_context(talker(gate.url, "loud"))
        before = gate.resident()
        for n in range(1500):
            sender.say(text(send(users[n % 6], "x" * 60_000)))
            assert sender.json(0)["status"] == 200
        for client in mute:
            client.json(2)
        assert gate.resident() - before < 40 << 20
