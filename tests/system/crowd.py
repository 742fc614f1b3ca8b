"""A crowd of hostile clients, in a process of its own so that who measures a node does not share Python with them.

`python -m tests.system.crowd URL` prints `ready`, does harm until its stdin ends, and prints how often, by kind.
"""

from __future__ import annotations

import itertools
import json
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

from tests.gateway.credentials import SECRET, bare, mint, pair
from tests.gateway.malformed import KINDS
from tests.gateway.raw import PING, Closed, Raw, frame, send, text
from yanchat.gateway.admission import allow_descriptors

HALF_OPEN = 10_000
KEYS = pair("HS256")
WRONG_TOKENS = (
    "",
    "..",
    "x" * 8000,
    mint(KEYS, exp=1),
    mint(KEYS, nbf=1 << 40),
    mint(KEYS, sub=None),
    mint(KEYS, exp=None),
    mint(KEYS._replace(private=b"another secret that is long enough")),
    mint(pair("EdDSA")),
    mint(pair("RS256")),
    bare({"alg": "none"}, {"sub": "ann", "exp": 1 << 40}, b""),
    bare({"alg": "HS256"}, {"sub": "ann", "exp": 1 << 40}, SECRET.encode()),
    bare(b"[" * 5000, b"[" * 1000),
    bare({"alg": "HS256"}, b"\xff"),
)


def enter(url: str, openid: str, **more: int) -> Raw:
    """Somebody with a good token."""
    raw = Raw(url, **more)  # type: ignore[arg-type]
    try:
        raw.login(openid, headers={"Authorization": f"Bearer {mint(KEYS, sub=openid)}"})
    except BaseException:
        raw.sock.close()
        raise
    return raw


class Crowd:
    """Each kind of client is a thread; `done` counts what they did."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.stop, self.done = threading.Event(), Counter[str]()

    def malformed(self, reset: bool) -> None:
        for kind in itertools.cycle(KINDS):
            if self.stop.is_set():
                break
            with enter(self.url, "odd") if kind.logged_in else Raw(self.url) as client:
                client.say(kind.says)
                if reset:
                    client.reset()
                else:
                    client.sock.shutdown(socket.SHUT_WR)
                    while client.more():
                        pass
            self.done[f"malformed, {'reset' if reset else 'closed'}"] += 1

    def wrong_tokens(self) -> None:
        for token in itertools.cycle(WRONG_TOKENS):
            if self.stop.is_set():
                break
            with Raw(self.url) as client:
                client.say(client.request(None, headers={"Authorization": f"Bearer {token}"}))
                assert client.answer().status == 401
            self.done["wrong tokens"] += 1

    def ping_flood(self, name: str) -> None:
        while not self.stop.is_set():
            with enter(self.url, name) as client, suppress(Closed):
                for _ in client.pour(itertools.repeat(frame(PING, b"x" * 100) * 500)):
                    self.done["pings"] += 1
                    if self.stop.is_set():
                        break

    def slow_reader(self, name: str, says: bytes) -> None:
        """Asks all the time and reads no answer, until it is thrown out; then it comes again."""
        while not self.stop.is_set():
            with enter(self.url, name, receive_buffer=4096) as client, suppress(ConnectionError):
                client.sock.settimeout(0.1)
                self.done["slow readers"] += 1
                while not self.stop.is_set():
                    with suppress(TimeoutError):
                        client.say(says)

    def slow_writers(self, count: int) -> None:
        """A byte now and then: half of them of a request, half of a frame."""
        words = text(send("nobody", "x" * 300))
        with ExitStack() as clients:
            new = [clients.enter_context(Raw(self.url)) for _ in range(count)]
            old = [clients.enter_context(enter(self.url, f"slow-{n}")) for n in range(count)]
            request = new[0].request("slow")
            for at in itertools.count():
                for client in new:
                    with suppress(OSError):  # it has had its time
                        client.say(request[at : at + 1])
                for client in old:
                    client.say(words[at % len(words) :][:1])
                self.done["slow writers"] += 2 * count
                if self.stop.wait(0.05):
                    break

    def half_open(self) -> None:
        """Ten thousand handshakes that do not go on, from eight addresses."""
        address, half = urlsplit(self.url), b"GET /ws?openid=half HTTP/1.1\r\nHost: x\r\nUpgrade: webso"
        with ExitStack() as clients:
            for n in range(HALF_OPEN):
                client = clients.enter_context(socket.socket())
                client.bind((f"127.0.0.{2 + n % 8}", 0))
                client.connect((str(address.hostname), address.port))
                client.send(half)
                self.done["half-open handshakes"] += 1
                if self.stop.is_set():
                    break
            self.stop.wait()

    def run(self) -> None:
        refusals = text("x") + text('{"type":11}')
        works: list[tuple[Callable[..., None], *tuple[object, ...]]] = [
            (self.malformed, True),
            (self.malformed, False),
            (self.wrong_tokens,),
            (self.ping_flood, "pinger"),
            (self.slow_reader, "sloth-1", text('{"type":11}') * 1000),
            (self.slow_reader, "sloth-2", text(send("sloth-3", "x" * 30_000))),
            (self.slow_reader, "sloth-4", refusals * 1000),
            (self.slow_writers, 20),
            (self.half_open,),
        ]
        threads = [threading.Thread(target=self._harm, args=work) for work in works]
        for thread in threads:
            thread.start()
        print("ready", flush=True)
        sys.stdin.read()
        self.stop.set()
        for thread in threads:
            thread.join()
        print(json.dumps(self.done), flush=True)

    def _harm(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except Exception as error:
            self.done[f"failed: {work.__name__}: {error!r}"] += 1


if __name__ == "__main__":
    allow_descriptors()
    Crowd(sys.argv[1]).run()
