"""What takes too long ends: handshakes, silence, closing. And what is not the client's fault does not."""

from __future__ import annotations

import time

import pytest

from tests.gateway.conftest import Gate, Start
from tests.gateway.raw import PONG, TEXT, Closed, Raw, close, frame, send, talker, text
from tests.running import DEADLINE, wait_until


@pytest.fixture(scope="module")
def quick(start: Start) -> Gate:
    """A node whose deadlines are short."""
    return start(handshake="500ms", ping="200ms", idle="1s")


def gone(gate: Gate) -> None:
    wait_until(lambda: gate.sockets() == 1, "only the listener is left")


def test_a_handshake_that_takes_too_long_is_dropped(quick: Gate) -> None:
    """Who says nothing, who writes half a request, and who writes one byte after the other."""
    with Raw(quick.url) as silent, Raw(quick.url) as half, Raw(quick.url) as slow:
        half.say(half.request()[:-2])
        end = time.monotonic() + DEADLINE
        with pytest.raises(OSError):
            for byte in slow.request(headers={"X-Slow": "x" * 5000}):
                slow.say(bytes((byte,)))
                assert time.monotonic() < end
                time.sleep(0.02)
        assert not silent.more()
        assert not half.more()
    gone(quick)


def test_a_refused_client_that_stays_is_dropped(quick: Gate) -> None:
    """It has its answer, and does not close."""
    with Raw(quick.url) as refused:
        refused.say(b"GET / HTTP/1.1\r\n\r\n")
        assert refused.answer().status == 404
        gone(quick)


def test_pings_come_all_the_time_and_who_answers_them_may_be_silent(quick: Gate) -> None:
    """Ten pings take longer than the idle deadline; a client that talks gets them, too."""
    with talker(quick.url, "listener") as listener, talker(quick.url, "busy", pongs=False) as busy:
        while len(listener.pings) < 10:
            opcode, payload = listener.frame()
            assert opcode == 9
            listener.pings.append(payload)
            listener.say(frame(PONG, payload))
            busy.say(text('{"type":11}'))
        listener.say(text('{"type":11}'))
        assert listener.json()["type"] == 12
        busy.say(text(send("listener", "still here")))
        assert busy.json(0)["status"] == 200
        assert busy.pings
        assert listener.json(2)["msg"]["params"]["message"] == "still here"


def test_who_is_silent_and_answers_no_ping_is_closed_and_then_dropped(quick: Gate) -> None:
    """1001; and when it does not answer the closing frame either, the socket goes all the same."""
    with talker(quick.url, "dead", pongs=False) as dead:
        with pytest.raises(Closed) as closed:
            while True:
                dead.json()
        assert closed.value.code == 1001
        gone(quick)


def test_a_client_that_only_pretends_to_close_is_dropped(quick: Gate) -> None:
    """After our closing frame it sends on and on, only no closing frame: that does not keep it alive."""
    with talker(quick.url, "chatter") as chatter:
        chatter.say(text("x") * 3)
        with pytest.raises(Closed) as closed:
            while True:
                chatter.json()
        assert closed.value.code == 1008
        end = time.monotonic() + DEADLINE
        with pytest.raises(OSError):
            while time.monotonic() < end:
                chatter.say(frame(TEXT, b"blah") + frame(PONG))
                time.sleep(0.05)
    gone(quick)


def test_a_parted_client_that_stays_is_let_go_at_once(quick: Gate) -> None:
    """Both closing frames are out: the node waits for nothing more."""
    with talker(quick.url, "parted") as parted:
        parted.say(close(1000))
        assert parted.frame()[0] == 8
        assert not parted.more()
        gone(quick)


def test_half_a_frame_is_no_sign_of_life_for_ever(quick: Gate) -> None:
    with talker(quick.url, "stub", pongs=False) as stub:
        stub.say(text('{"type":11}')[:5])
        assert stub.ends().code == 1001


def test_time_in_which_the_node_stood_still_counts_against_nobody(quick: Gate) -> None:
    """A stopped process, a stalled machine: when it goes on, nobody is closed for having been silent."""
    with talker(quick.url, "patient") as patient, Raw(quick.url) as shaking:
        shaking.say(shaking.request("shaker")[:-2])
        quick.running.pause()
        time.sleep(3)
        quick.running.resume()
        shaking.say(b"\r\n")
        assert shaking.answer().status == 101
        while len(patient.pings) < 10:
            opcode, payload = patient.frame()
            assert opcode == 9
            patient.pings.append(payload)
            patient.say(frame(PONG, payload))


def test_a_node_that_stops_tells_everybody(start: Start) -> None:
    """1012 to sessions, 503 to who still shakes hands; what was sent before is receipted; exit code 0."""
    gate = start()
    with talker(gate.url, "one") as one, talker(gate.url, "mute") as mute, Raw(gate.url) as shaking:
        shaking.say(shaking.request("shaker")[:-2])
        one.say(text(send("away", "before")))
        assert one.json(0)["status"] == 200
        wait_until(lambda: gate.sockets() == 4, "all are in")
        gate.running.process.terminate()  # type: ignore[union-attr]
        assert one.ends().code == 1012
        assert shaking.answer().status == 503
        with pytest.raises(Closed) as closed:
            mute.json()
        assert closed.value.code == 1012
        assert gate.running.wait() == 0
