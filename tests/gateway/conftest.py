"""Nodes to knock at: each in a process of its own, so that its descriptors can be counted from outside."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from tests.gateway.raw import ack, send, talker, text
from tests.running import RunningNode, wait_until

_numbers = itertools.count(1)


class Gate:
    """A node as its clients see it, and what it holds open."""

    def __init__(self, running: RunningNode) -> None:
        self.running, self.url = running, running.url

    def sockets(self) -> int:
        """How many TCP sockets the process holds open: the listening one, and one for each client."""
        with open("/proc/net/tcp") as lines:
            tcp = {f"socket:[{line.split()[9]}]" for line in lines}
        found, directory = 0, f"/proc/{self.running.pid}/fd"
        for name in os.listdir(directory):
            with suppress(FileNotFoundError):
                found += os.readlink(f"{directory}/{name}") in tcp
        return found

    def resident(self) -> int:
        """Bytes of memory that are the process's own."""
        with open(f"/proc/{self.running.pid}/smaps_rollup") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))

    def close_a_loop(self) -> None:
        """Two new users: all six frames of one message."""
        number = next(_numbers)
        ann, bob = f"pair-{number}-ann", f"pair-{number}-bob"
        with talker(self.url, ann) as sender, talker(self.url, bob) as recipient:
            sender.say(text(send(bob, "hello")))
            assert sender.json(0)["status"] == 200
            push = recipient.json(2)
            assert push["msg"]["params"]["message"] == "hello"
            recipient.say(text(ack(push)))
            assert recipient.json(16)["status"] == 200
            assert sender.json(17)["messageId"] == push["messageId"]


Start = Callable[..., Gate]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a node with these settings (`auth_mode="jwt"`); it runs to the end of the module."""
    with ExitStack() as nodes:

        def serve(**settings: object) -> Gate:
            env = {f"YANCHAT_{key}".upper(): str(value) for key, value in settings.items()}
            return Gate(nodes.enter_context(RunningNode(tmp_path_factory.mktemp("node"), env=env)))

        yield serve


@pytest.fixture(scope="module")
def start(serve: Start) -> Start:
    """Start a node with these limits (`idle="1s"`), or these settings of another section."""
    return lambda section="limits", **settings: serve(**{f"{section}_{key}": value for key, value in settings.items()})


@pytest.fixture(scope="module")
def gate(start: Start) -> Gate:
    """A node with the default limits."""
    return start()


@pytest.fixture
def unharmed(gate: Gate) -> Iterator[Gate]:
    """The node; when the test is over, it holds nothing of it, and a normal pair closes its loop."""
    yield from still_well(gate)


def still_well(gate: Gate) -> Iterator[Gate]:
    before = gate.sockets()
    yield gate
    gate.close_a_loop()
    wait_until(lambda: gate.sockets() <= before, f"no more than {before} sockets")
