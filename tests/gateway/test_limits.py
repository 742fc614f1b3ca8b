"""The limits of one connection, one user, one address and the node: each refuses in its own words, and ends."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from tests.gateway.conftest import Gate, Start, still_well
from tests.gateway.raw import PING, Raw, ack, close, frame, kind, send, talker, text
from tests.running import DEADLINE, wait_until


def test_the_ninth_session_of_a_user_is_refused_until_one_has_ended(unharmed: Gate) -> None:
    sessions = [talker(unharmed.url, "octopus") for _ in range(8)]
    try:
        with Raw(unharmed.url) as ninth:
            ninth.say(ninth.request("octopus"))
            answer = ninth.answer()
        assert answer.status == 429
        assert int(answer.headers["retry-after"]) > 0
        sessions[3].say(close(1000))
        sessions[3].ends()
        with talker(unharmed.url, "octopus") as next_one:
            next_one.say(text('{"type":11}'))
            assert next_one.json()["type"] == 12
    finally:
        for session in sessions:
            session.sock.close()


def test_an_address_has_its_share_and_others_theirs(start: Start) -> None:
    """Half-open handshakes count as well; what is over the cap is answered and forgotten."""
    gate = start(connections_per_address=5, connections=8)
    clients = [talker(gate.url, f"u{n}", source="127.0.0.2") for n in range(3)]
    clients += [Raw(gate.url, source="127.0.0.2") for _ in range(2)]
    wait_until(lambda: gate.sockets() == 6, "all five are counted")
    with Raw(gate.url, source="127.0.0.2") as sixth:
        sixth.say(sixth.request("sixth"))
        answer = sixth.answer()
    assert (answer.status, answer.headers["connection"]) == (429, "close")
    assert int(answer.headers["retry-after"]) > 0
    clients += [talker(gate.url, f"v{n}", source="127.0.0.3") for n in range(3)]
    with Raw(gate.url, source="127.0.0.4") as ninth:
        ninth.say(ninth.request("ninth"))
        answer = ninth.answer()
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    for client in clients:
        client.sock.close()
    wait_until(lambda: gate.sockets() == 1, "all have left")
    gate.close_a_loop()


def test_a_sender_over_its_rate_is_told_how_long_to_wait_and_nothing_is_lost_or_doubled(start: Start) -> None:
    """Refused sends are not stored, the others are; after the wait it may go on."""
    gate = start(messages_per_second=10)
    with talker(gate.url, "fast") as sender, talker(gate.url, "fast-bob") as recipient:
        sender.say(b"".join(text(send("fast-bob", str(n), requestId=f"r{n}")) for n in range(50)))
        answers = [sender.json(0) for _ in range(50)]
        refused = [answer["params"] for answer in answers if answer["status"] == 429]
        accepted = [answer["params"]["message"] for answer in answers if answer["status"] == 200]
        assert 20 <= len(accepted) < 50
        assert len(refused) == 50 - len(accepted)
        for params in refused:
            assert params["retryAfter"] >= 1
            assert params["error"].endswith(".")
            assert params["requestId"] == f"r{params['message']}"
        assert [recipient.json(2)["msg"]["params"]["message"] for _ in accepted] == accepted
        time.sleep(refused[-1]["retryAfter"])
        sender.say(text(send("fast-bob", "later")))
        assert sender.json(0)["status"] == 200
        assert recipient.json(2)["msg"]["params"]["message"] == "later"


def test_heartbeats_and_acks_do_not_use_up_the_rate_of_sends(start: Start) -> None:
    gate = start(messages_per_second=1)
    with talker(gate.url, "beats") as client:
        client.say(text('{"type":11}') * 50 + text({"type": 15, "params": {"msgid": "x"}}) * 50)
        assert {kind(client.json()) for _ in range(100)} == {12, 16}
        client.say(text(send("beats-bob", "hello")))
        assert client.json(0)["status"] == 200


def test_bytes_are_limited_as_messages_are(start: Start) -> None:
    gate = start(bytes_per_second=100_000)
    with talker(gate.url, "heavy") as client:
        client.say(text(send("heavy-bob", "x" * 60_000)) * 6)
        statuses = [client.json(0)["status"] for _ in range(6)]
    assert statuses[:3] == [200] * 3
    assert 429 in statuses


def receipts(client: Raw, data: bytes, count: int) -> list[dict[str, Any]]:
    """Pour this, and gather its type 0."""
    found: list[dict[str, Any]] = []
    for opcode, payload in client.pour([data]):
        assert opcode != 8, payload
        if opcode == 1 and kind(value := json.loads(payload)) == 0:
            found.append(value)
            if len(found) == count:
                break
    return found


def test_sends_in_flight_are_limited_by_reading_no_more(unharmed: Gate) -> None:
    """3,000 sends at once by a client that reads all the while: all are answered, in order, none is refused."""
    with talker(unharmed.url, "many") as sender:
        found = receipts(sender, b"".join(text(send("many-bob", str(n))) for n in range(3000)), 3000)
    assert [(one["status"], one["params"]["message"]) for one in found] == [(200, str(n)) for n in range(3000)]


def test_a_client_that_sends_large_messages_and_reads_is_not_slow(unharmed: Gate) -> None:
    """Its receipts repeat its texts: together they are many times the outgoing buffer."""
    with talker(unharmed.url, "bulky") as sender:
        found = receipts(sender, text(send("bulky-bob", "x" * 60_000)) * 200, 200)
    assert {one["status"] for one in found} == {200}


# -- slow readers: closed with 4008 after `stalled`, nothing is lost, and nobody else is harmed ------------------------
@pytest.fixture(scope="module")
def impatient(start: Start) -> Gate:
    """Its windows are larger than what kernels buffer, so that its own buffers fill."""
    return start(
        stalled="500ms",
        outgoing_buffer="128KiB",
        messages_per_second=0,
        bytes_per_second=0,
        window=1000,
        window_bytes="64MiB",
    )


def flood(client: Raw, data: bytes) -> None:
    """Send without reading, until nothing is taken for a moment or the node has closed."""
    client.sock.settimeout(0.3)
    try:
        for _ in range(40_000_000 // len(data)):
            client.say(data)
    except (TimeoutError, ConnectionError):
        pass
    client.sock.settimeout(DEADLINE)


def sleepy(gate: Gate, openid: str) -> Raw:
    return talker(gate.url, openid, receive_buffer=4096)


def fill(gate: Gate, sleeper: str, count: int, size: int = 60_000) -> list[str]:
    """Send somebody so many large messages."""
    texts = [f"{n}-" + "x" * size for n in range(count)]
    with talker(gate.url, f"{sleeper}-friend") as sender:
        for words in texts:
            sender.say(text(send(sleeper, words)))
            assert sender.json(0)["status"] == 200
    return texts


def test_who_reads_no_answers_is_let_go(impatient: Gate) -> None:
    """Heartbeats, receipts, refusals and pongs alike: the node stops reading, and closes; its memory stays bounded."""
    heavy, broken = text(send("sloth-bob", "x" * 20_000)), text("x") + text('{"type":11}')
    for _ in still_well(impatient):
        sloths = []
        for n, one in enumerate((text('{"type":11}'), heavy, broken, frame(PING, b"p" * 125))):
            sloths.append(sleepy(impatient, f"sloth{n}"))
            flood(sloths[-1], one * (100_000 // len(one)))
            impatient.close_a_loop()
        wait_until(lambda: impatient.sockets() == 1, "all are let go, though they read nothing")
        assert impatient.resident() < 300 << 20
        for sloth in sloths:
            assert sloth.ends().code in {1006, 4008}
            sloth.sock.close()


def test_the_closing_frame_is_there_for_who_looks(impatient: Gate) -> None:
    """4008, behind all that was sent before."""
    for _ in still_well(impatient):
        with sleepy(impatient, "late") as late:
            fill(impatient, "late", 150)
            time.sleep(3)  # longer than `stalled`, shorter than what is left for closing
            assert late.ends().code == 4008


def test_what_a_slow_session_did_not_ack_goes_to_the_next_one(impatient: Gate) -> None:
    """In order, and each once."""
    for _ in still_well(impatient):
        with sleepy(impatient, "dozer"):
            texts = fill(impatient, "dozer", 150)
            wait_until(lambda: impatient.sockets() == 1, "the node has let it go")
        with talker(impatient.url, "dozer") as awake:
            for words in texts:
                push = awake.json(2)
                assert push["msg"]["params"]["message"] == words
                awake.say(text(ack(push)))


def test_who_reads_again_in_time_goes_on(start: Start) -> None:
    """A client that is slow, but reads: the node waits for it however long it takes."""
    patient = start(stalled="1m", outgoing_buffer="128KiB", bytes_per_second=0, window=1000, window_bytes="64MiB")
    for _ in still_well(patient):
        with sleepy(patient, "slow") as slow:
            texts = fill(patient, "slow", 100)
            for words in texts:
                push = slow.json(2)
                assert push["msg"]["params"]["message"] == words
                slow.say(text(ack(push)))
                time.sleep(0.02)


def sip(client: Raw, enough: threading.Event) -> None:
    while not enough.wait(0.05):
        client.buffer += client.sock.recv(2048)


def test_who_reads_a_little_at_a_time_goes_on(impatient: Gate) -> None:
    """So slowly that for longer than `stalled` nothing more fits into what the kernel keeps for it."""
    for _ in still_well(impatient):
        with sleepy(impatient, "sipper") as sipper:
            enough = threading.Event()
            thread = threading.Thread(target=sip, args=(sipper, enough))
            thread.start()
            try:
                texts = fill(impatient, "sipper", 100)
                time.sleep(3)
            finally:
                enough.set()
                thread.join()
            for words in texts:
                push = sipper.json(2)
                assert push["msg"]["params"]["message"] == words
                sipper.say(text(ack(push)))
