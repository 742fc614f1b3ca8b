"""The task that moves the bytes, when what it serves fails, and when the system gives it nothing more."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager

import pytest
import trio

from tests.gateway.conftest import Gate, Start
from tests.gateway.raw import Raw, close, frame, talker, text
from tests.gateway.test_connection import Listener
from tests.running import DEADLINE, wait_until
from yanchat.config import LimitSettings
from yanchat.errors import Refused
from yanchat.gateway.admission import Admission
from yanchat.gateway.auth import trusting
from yanchat.gateway.edge import Edge
from yanchat.model import OpenId
from yanchat.node.hub import Outlet, Session


class Clumsy(Listener):
    """Greets each session, and fails where the client's words or name say so."""

    greeted = 0

    def enter(self, openid: OpenId, user_name: str, remote: str, outlet: Outlet) -> Session:
        if openid == "no-entry":
            raise ZeroDivisionError
        session = super().enter(openid, user_name, remote, outlet)
        trio.lowlevel.current_trio_token().run_sync_soon(self.greet, session)
        return session

    def greet(self, session: Session) -> None:
        session.outlet.send(b'{"type":6}')
        session.outlet.resume()
        self.greeted += 1

    def heard(self, session: Session, data: bytes) -> bool:
        if data == b"fail":
            raise ZeroDivisionError
        if data == b"rest":
            trio.lowlevel.current_trio_token().run_sync_soon(session.outlet.resume)
            return False
        session.outlet.send(b'{"type":12}')
        return True

    def ended(self, session: Session) -> None:
        super().ended(session)
        if session.openid == "no-exit":
            raise ZeroDivisionError


@asynccontextmanager
async def serving(**limits: float) -> AsyncIterator[tuple[Edge, str, Clumsy]]:
    """An edge on a port of its own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        settings, door = LimitSettings(**limits), Clumsy()  # type: ignore[arg-type]
        edge = Edge([listener], door, Admission(settings, (), trusting, 1000), settings, trio.current_time, lambda: 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(edge.run)
            nursery.start_soon(edge.sweep)
            with trio.fail_after(DEADLINE):
                yield edge, f"ws://127.0.0.1:{listener.getsockname()[1]}/ws", door
            nursery.cancel_scope.cancel()


async def beside(work: Callable[[], None]) -> None:
    await trio.to_thread.run_sync(work)


async def alone(edge: Edge) -> None:
    while edge.connections:
        await trio.sleep(0.01)


async def test_a_failure_in_one_connection_ends_that_one_with_1011() -> None:
    """Whether its words come from the socket, or from before a rest; the others do not notice."""
    async with serving() as (edge, url, _):

        def talk() -> None:
            with talker(url, "calm") as calm:
                for words in (text("fail"), text("rest") + text("fail"), text("rest") + text("x") + text("fail")):
                    with talker(url, "failing") as failing:
                        failing.say(words + text("and more"))
                        assert failing.ends().code == 1011
                    calm.say(text("x"))
                    assert calm.json() == {"type": 12}

        await beside(talk)
        await alone(edge)


async def test_a_failure_while_a_connection_is_taken_ends_that_one_and_it_counts_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as (edge, url, _):

        def fail(_: object, address: str) -> bool:
            raise ZeroDivisionError

        def none() -> None:
            with Raw(url) as client:
                assert not client.more()

        def talk() -> None:
            with talker(url, "calm") as calm:
                calm.say(text("x"))
                assert calm.json() == {"type": 12}

        with monkeypatch.context() as patch:
            patch.setattr(Admission, "announced", fail)
            await beside(none)
        assert edge._admission._total == 0
        await beside(talk)
        await alone(edge)


async def test_a_failure_at_the_login_is_answered_with_500() -> None:
    async with serving() as (edge, url, _):

        def talk() -> None:
            with Raw(url) as client:
                client.say(client.request("no-entry"))
                answer = client.answer()
                assert answer.status == 500
                assert "retry-after" in answer.headers
            with talker(url, "calm") as calm:
                calm.say(text("x"))
                assert calm.json() == {"type": 12}

        await beside(talk)
        await alone(edge)


async def test_a_failure_at_the_end_of_a_session_keeps_no_socket() -> None:
    """However the client leaves."""
    async with serving() as (edge, url, door):

        def talk() -> None:
            for last in (close(1000), frame(3, b"x"), text("fail"), b""):
                with talker(url, "no-exit") as client:
                    client.say(last)
                    if not last:
                        client.reset()

        await beside(talk)
        await alone(edge)
        assert door.ends == 4


async def test_a_session_that_rests_is_read_on_where_it_stopped() -> None:
    async with serving() as (edge, url, _):

        def talk() -> None:
            with talker(url, "restful") as client:
                client.say((text("rest") + text("x")) * 100)
                for _ in range(100):
                    assert client.json() == {"type": 12}

        await beside(talk)
        await alone(edge)


async def test_who_breaks_off_while_nothing_is_read_is_seen() -> None:
    """Held before the end, an edge reads nothing; a client that has gone must not keep it busy, or open."""
    async with serving() as (edge, url, _):

        def come() -> Raw:
            client = talker(url, "goer")
            client.say(text("x") * 10)
            client.json()
            return client

        client = await trio.to_thread.run_sync(come)
        edge.hold(edge.wires())
        client.reset()
        await alone(edge)


async def test_all_are_closed_and_the_end_is_told() -> None:
    async with serving() as (edge, url, door):

        async def leave(name: str) -> None:
            def talk() -> None:
                with talker(url, name) as client:
                    assert client.ends().code == 1012

            await beside(talk)

        async with trio.open_nursery() as nursery:
            for n in range(5):
                nursery.start_soon(leave, f"u{n}")
            while door.greeted < 5:
                await trio.sleep(0.01)
            edge.stop_accepting()
            edge.hold(edge.wires())
            edge.close(edge.wires(), 1012, "restarting")
            await edge.empty.wait()
        assert edge.connections == 0


def test_caps_count_what_is_there_and_forget_what_has_gone() -> None:
    """The system's own limit is one of them: some descriptors are kept for the node's work."""
    limits = LimitSettings(connections=5, connections_per_address=3)
    admission = Admission(limits, (), trusting, 1000)
    for _ in range(3):
        admission.connect("a")
    with pytest.raises(Refused) as refused:
        admission.connect("a")
    assert refused.value.status == 429
    admission.connect("b")
    admission.connect("c")
    with pytest.raises(Refused) as refused:
        admission.connect("d")
    assert refused.value.status == 503
    admission.disconnect("a")
    admission.connect("a")
    scarce = Admission(LimitSettings(), (), trusting, 130)
    scarce.connect("a")
    scarce.connect("a")
    with pytest.raises(Refused):
        scarce.connect("a")


def test_a_node_allows_itself_as_many_descriptors_as_it_may(start: Start) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        gate = start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(gate.running.pid, resource.RLIMIT_NOFILE) == (hard, hard)


def test_a_node_without_descriptors_accepts_again_when_there_are_some(gate: Gate) -> None:
    """Who is in stays, who comes waits; nobody is refused, and nothing spins or ends."""
    _, hard = resource.prlimit(gate.running.pid, resource.RLIMIT_NOFILE)
    with ExitStack() as clients:
        inside = [clients.enter_context(talker(gate.url, f"in{n}")) for n in range(3)]
        used = max(map(int, os.listdir(f"/proc/{gate.running.pid}/fd")))
        resource.prlimit(gate.running.pid, resource.RLIMIT_NOFILE, (used + 1, hard))
        waiting = [clients.enter_context(Raw(gate.url)) for _ in range(5)]
        for n, client in enumerate(waiting):
            client.say(client.request(f"out{n}"))
        for client in inside:
            client.say(text('{"type":11}'))
            assert client.json()["type"] == 12
        assert all(client.silent_for(0.2) for client in waiting)
        resource.prlimit(gate.running.pid, resource.RLIMIT_NOFILE, (hard, hard))
        for client in waiting:
            assert client.answer().status == 101
    wait_until(lambda: gate.sockets() == 1, "all have left")
    gate.close_a_loop()
