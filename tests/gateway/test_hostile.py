"""Clients that mean harm, or are merely broken: each hurts itself at most."""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.gateway.conftest import Gate, Start
from tests.gateway.raw import BINARY, CONT, PING, TEXT, Closed, Raw, close, frame, header, kind, send, talker, text
from tests.running import wait_until

HALF = frame(TEXT, b'{"type":11}', fin=False)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET /ws?openid=rst",
        b"GET / HTTP/1.1\r\n\r\n",
        "request",
        text('{"type":11}')[:3],
        HALF,
        HALF + frame(CONT, b"", fin=False),
        text('{"type":11}') * 1000,
        text(send("rst-bob", "x" * 60_000)) * 20,
        frame(PING, b"x") * 1000,
        close(1000),
        frame(BINARY, b"x"),
        header(TEXT, 60_000),
    ],
    ids=repr,
)
def test_a_reset_at_any_stage_leaves_nothing_behind(unharmed: Gate, said: bytes | str) -> None:
    """Twenty clients break off: before, in and after the handshake, in a frame, with sends in flight, while closing."""
    for n in range(20):
        client = Raw(unharmed.url)
        if said == "request":
            client.say(client.request(f"rst{n}"))
        else:
            assert isinstance(said, bytes)
            if said and not said.startswith(b"GET"):
                client.login(f"rst{n}")
            client.say(said)
        client.reset()


def test_a_half_close_at_any_stage_leaves_nothing_behind(unharmed: Gate) -> None:
    for said in (b"", b"GET /ws", HALF, text(send("fin-bob", "x")) * 10, close(1000)):
        with Raw(unharmed.url) as client:
            if said and not said.startswith(b"GET"):
                client.login("fin")
            client.say(said)
            client.sock.shutdown(1)
            while client.more():
                pass


def test_what_was_accepted_before_a_reset_is_delivered(unharmed: Gate) -> None:
    with talker(unharmed.url, "safe-bob") as bob:
        ann = talker(unharmed.url, "safe-ann")
        ann.say(text(send("safe-bob", "last words")))
        assert ann.json(0)["status"] == 200
        ann.reset()
        assert bob.json(2)["msg"]["params"]["message"] == "last words"


def test_a_thousand_half_open_handshakes_hold_up_nobody(start: Start) -> None:
    """They are let go at the deadline, and until then everybody else comes and goes."""
    gate = start(handshake="2s")
    with ExitStack() as clients:
        for n in range(1000):
            client = clients.enter_context(Raw(gate.url, source=f"127.0.0.{2 + n % 8}"))
            client.say(client.request(f"half{n}")[: n % 100])
        for _ in range(5):
            gate.close_a_loop()
        wait_until(lambda: gate.sockets() == 1, "all are let go")
    gate.close_a_loop()


@contextmanager
def meanwhile(*works: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run these beside the body, until it is over."""
    stop = threading.Event()
    threads = [threading.Thread(target=work, args=(stop,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def flooding(gate: Gate, name: str, one: bytes) -> Callable[[threading.Event], None]:
    """A client that sends this as fast as it can and reads what comes; when it is thrown out it comes again."""

    def work(stop: threading.Event) -> None:
        while not stop.is_set():
            with talker(gate.url, name) as client, suppress(OSError, Closed):
                for _ in client.pour(itertools.repeat(one * (100_000 // len(one)))):
                    if stop.is_set():
                        break

    return work


@pytest.mark.parametrize(
    "one",
    [
        text('{"type":11}'),
        frame(PING, b""),
        text(send("flood-bob", "x")),
        text({"type": 15, "params": {"msgid": "0198" + "0" * 8 + "7" + "0" * 19}}),
        frame(TEXT, b"", fin=False) + frame(CONT, b"", fin=False) * 500 + frame(CONT, b'{"type":11}'),
    ],
    ids=["heartbeats", "pings", "sends", "acks of nothing", "empty fragments"],
)
def test_a_flood_starves_nobody(unharmed: Gate, one: bytes) -> None:
    """While two clients flood the node, a pair closes ten loops."""
    with meanwhile(flooding(unharmed, "flood1", one), flooding(unharmed, "flood2", one)):
        for _ in range(10):
            unharmed.close_a_loop()


def test_empty_fragments_without_end_cost_no_memory(unharmed: Gate) -> None:
    before = unharmed.resident()
    with talker(unharmed.url, "empty") as client:
        client.say(frame(TEXT, b"", fin=False))
        for _ in range(20):
            client.say(frame(CONT, b"", fin=False) * 10_000 + frame(PING, b"x"))
            assert client.frame() == (10, b"x")
    assert unharmed.resident() - before < 8 << 20


def test_logins_and_logouts_in_a_hurry_leave_nothing_behind(unharmed: Gate) -> None:
    """Some leave before the hello, some with a closing frame, some without."""
    for n in range(300):
        client = Raw(unharmed.url)
        client.say(client.request(f"hasty{n % 7}") + (close(1000) if n % 3 else b""))
        if n % 2:
            client.answer()
        client.sock.close()


@pytest.mark.parametrize("seed", range(20))
def test_noise_hurts_nobody(unharmed: Gate, seed: int) -> None:
    """Random bytes, alone and behind an upgrade, in random pieces: some end, and no harm."""
    rng = random.Random(seed)
    for upgraded in (False, True):
        with Raw(unharmed.url) as client:
            if upgraded:
                client.login(f"noise{seed}")
            try:
                for _ in range(50):
                    client.say(rng.randbytes(rng.choice((1, 2, 7, 100, 5000))))
                client.sock.shutdown(1)
            except OSError:
                pass
            while client.more():
                pass


def test_the_same_bytes_in_other_pieces_have_the_same_answers(unharmed: Gate) -> None:
    """A whole conversation, cut at random."""
    parts = [
        text('{"type":11}'),
        text("x"),
        HALF,
        frame(PING, b"p"),
        frame(CONT, b""),
        text(send("cut-bob", "z" * 300)),
    ]
    whole = b"".join(parts)
    for seed in range(10):
        rng, at = random.Random(seed), 0
        with talker(unharmed.url, f"cut{seed}") as client:
            while at < len(whole):
                step = rng.randint(1, 40)
                client.say(whole[at : at + step])
                at += step
            heard: list[object] = []
            while len(heard) < 5:
                opcode, payload = client.frame()
                heard.append("pong" if opcode == 10 else kind(json.loads(payload)))
            assert sorted(heard, key=str) == [0, 0, 12, 12, "pong"]
