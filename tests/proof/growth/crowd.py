"""Clients who only are there, in processes of their own, and who come back when they are cut off.

A process of them is `python -m tests.proof.growth.crowd URL CLIENTS NAME ADDRESS`. It prints a line whenever the number
of those who are logged in has changed: the monotonic time, and that number. The word `cut` on its stdin has it break
all its connections at once; it ends when its stdin does.
"""

from __future__ import annotations

import heapq
import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from urllib.parse import urlsplit

from tests.proof.growth.site import LOAD_CORE, ROOT, on
from tests.running import environment
from tests.services import die_with_parent

A_PROCESS = 10_000
"""Clients of one process, who have an address of their own: a machine has some 28,000 ports for each."""
LOGINS_AT_ONCE = 64
"""Of one process, the first time; those who come back all come at once."""
HELLO_WITHIN = 30.0
AGAIN_AFTER = (0.2, 1.0)
"""Seconds, drawn for each who was not let in."""
TICK = 0.05
IP_BIND_ADDRESS_NO_PORT = 24
"""Of ip(7): the port is chosen with the connection, so that each address has them all."""
CLOSE, PING, PONG = 8, 9, 10
UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


class Client:
    """One connection at a time; a socket that is not there yet has no `there`."""

    def __init__(self, openid: str) -> None:
        self.openid = openid
        self.sock: socket.socket | None = None
        self.data = b""
        self.there = self.asked = self.upgraded = False
        self.since = 0.0


class Process:
    """What one such process does: plain sockets and one epoll, for it must be quicker than any node."""

    def __init__(self, url: str, clients: int, name: str, address: str) -> None:
        parts = urlsplit(url)
        self._node, self._path, self._address = (parts.hostname or "", parts.port or 0), parts.path, address
        self.there = self.least = self._logging_in = 0
        """How many are logged in now, the fewest since that was told last, and how many try to."""
        self._clients = [Client(f"{name}-{number}") for number in range(clients)]
        self._waiting = deque(self._clients)
        self._later: list[tuple[float, int, Client]] = []
        self._by_fd: dict[int, Client] = {}
        self._epoll = select.epoll()
        self._told = -1

    def run(self) -> None:
        """Until standard input ends; each line of it cuts all connections at once."""
        orders = sys.stdin.fileno()
        self._epoll.register(orders, select.EPOLLIN)
        looked = 0.0
        while True:
            while self._waiting and self._logging_in < LOGINS_AT_ONCE:
                self._come(self._waiting.popleft())
            now = time.monotonic()
            while self._later and self._later[0][0] <= now:
                self._come(heapq.heappop(self._later)[2])
            if now - looked > 1:
                looked = now
                for client in self._clients:
                    if client.sock is not None and not client.there and now - client.since > HELLO_WITHIN:
                        self._gone(client)
            for fd, event in self._epoll.poll(TICK, 512):
                if fd == orders:
                    if not os.read(orders, 4096):
                        return
                    for client in self._clients:
                        self._gone(client)
                elif fd in self._by_fd:
                    self._serve(self._by_fd[fd], event)
            self._tell()

    def _come(self, client: Client) -> None:
        sock = client.sock = socket.socket()
        client.data, client.since = b"", time.monotonic()
        client.asked = client.upgraded = False
        self._logging_in += 1
        sock.setblocking(False)
        self._by_fd[sock.fileno()] = client
        try:
            sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((self._address, 0))
            sock.connect_ex(self._node)
            self._epoll.register(sock.fileno(), select.EPOLLOUT)
        except OSError:
            self._gone(client)

    def _gone(self, client: Client) -> None:
        """The connection is over, and he comes again: at once if he was logged in."""
        if client.sock is None:
            return
        del self._by_fd[client.sock.fileno()]
        client.sock.close()
        client.sock = None
        if client.there:
            client.there = False
            self.there -= 1
            self.least = min(self.least, self.there)
            at = 0.0
        else:
            self._logging_in -= 1
            at = time.monotonic() + random.uniform(*AGAIN_AFTER)
        heapq.heappush(self._later, (at, id(client), client))

    def _serve(self, client: Client, event: int) -> None:
        assert client.sock is not None
        try:
            if not client.asked:
                failed = client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if failed:
                    raise OSError(failed, os.strerror(failed))
                client.asked = True
                request = f"GET {self._path}?openid={client.openid} HTTP/1.1\r\nHost: {self._node[0]}\r\n{UPGRADE}\r\n"
                client.sock.send(request.encode())
                self._epoll.modify(client.sock.fileno(), select.EPOLLIN)
                return
            data = client.sock.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or not self._read(client, client.data + data):
            self._gone(client)

    def _read(self, client: Client, data: bytes) -> bool:
        """Take what has come; false when the connection is to end."""
        assert client.sock is not None
        if not client.upgraded:
            head, end, rest = data.partition(b"\r\n\r\n")
            if not end:
                client.data = data
                return True
            if b" 101 " not in head:
                return False
            client.upgraded, data = True, rest
        while len(data) >= 2:
            opcode, size, begin = data[0] & 15, data[1], 2
            if size == 126:
                size, begin = int.from_bytes(data[2:4], "big"), 4
            if len(data) < begin + size:
                break
            payload, data = data[begin : begin + size], data[begin + size :]
            if opcode == PING:
                client.sock.send(bytes((0x80 | PONG, 0x80 | len(payload))) + b"\0\0\0\0" + payload)
            elif opcode == CLOSE:
                return False
            elif not client.there:  # the first is type 6
                client.there = True
                self.there += 1
                self._logging_in -= 1
        client.data = data
        return True

    def _tell(self) -> None:
        for there in (self.least, self.there):
            if there != self._told:
                self._told = there
                print(time.monotonic(), there, flush=True)
        self.least = self.there


class Crowd:
    """So many clients of a node, seen from outside. Used as a context manager, they are gone behind."""

    def __init__(self) -> None:
        self.size = 0
        self._processes: list[subprocess.Popen[str]] = []
        self._lock = threading.Lock()
        self._there: dict[int, int] = {}
        self._seen: list[tuple[float, int]] = []

    def add(self, url: str, clients: int) -> None:
        """So many more come."""
        self.size += clients
        while clients > 0:
            number, some = len(self._processes), min(clients, A_PROCESS)
            clients -= some
            command = [*on(LOAD_CORE), sys.executable, "-m", "tests.proof.growth.crowd", url, str(some)]
            process = subprocess.Popen(
                [*command, f"idle-{number}", f"127.0.0.{2 + number}"],
                env=environment(),
                cwd=ROOT,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call
            )
            self._processes.append(process)
            threading.Thread(target=self._read, args=(number, process), daemon=True).start()

    def _read(self, number: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            at, there = line.split()
            with self._lock:
                self._there[number] = int(there)
                self._seen.append((float(at), sum(self._there.values())))

    @property
    def there(self) -> int:
        """How many are logged in."""
        with self._lock:
            return sum(self._there.values())

    def seen(self, since: float) -> list[tuple[float, int]]:
        """Seconds since that monotonic time, and how many were logged in."""
        with self._lock:
            return [(at - since, there) for at, there in sorted(self._seen, key=lambda one: one[0]) if at >= since]

    def cut(self) -> None:
        """All connections break, and all come back at once."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("cut\n")
            process.stdin.flush()

    def wait(self, within: float = 300.0) -> None:
        """Until all are logged in. RuntimeError when that takes too long."""
        end = time.monotonic() + within
        while self.there < self.size:
            if time.monotonic() > end:
                raise RuntimeError(f"Only {self.there} of {self.size} clients were let in within {within:.0f} s.")
            time.sleep(TICK)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    assert pipe is not None
                    pipe.close()


if __name__ == "__main__":
    Process(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]).run()
