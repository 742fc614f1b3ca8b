"""Clients who only are there, in processes of their own, and who come back when they are cut off.

A process of them is `python -m tests.proof.growth.crowd URL CLIENTS NAME ADDRESS`. It prints a line whenever the number
of those who are logged in has changed: the monotonic time, and that number. The word `cut` on its stdin has it break
all its connections at once; it ends when its stdin does.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any

import picows

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


class Client(picows.WSListener):
    def __init__(self, process: Process, openid: str) -> None:
        self._process, self._openid = process, openid
        self.transport: Any = None
        self._hello: asyncio.Future[bool] | None = None
        """Of the login that is under way: whether it came to a hello."""
        self._there = False

    async def come(self) -> None:
        """Log in, however often it has to be tried."""
        while True:
            hello = self._hello = asyncio.get_running_loop().create_future()
            with suppress(OSError, TimeoutError, picows.WSError):
                self.transport, _ = await picows.ws_connect(
                    lambda: self,
                    f"{self._process.url}?openid={self._openid}",
                    websocket_handshake_timeout=HELLO_WITHIN,
                    read_buffer_init_size=1024,
                    local_addr=(self._process.address, 0),
                )
                async with asyncio.timeout(HELLO_WITHIN):
                    if await hello:
                        return
            if self.transport is not None:
                self.transport.disconnect(graceful=False)
            await asyncio.sleep(random.uniform(*AGAIN_AFTER))

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        if frame.msg_type == picows.WSMsgType.TEXT and not self._there:  # the first is type 6
            self._there = True
            self._process.there += 1
            self._answer(True)
        elif frame.msg_type == picows.WSMsgType.CLOSE:
            transport.disconnect()

    def on_ws_disconnected(self, transport: Any) -> None:
        self._answer(False)
        if self._there:
            self._there = False
            self._process.there -= 1
            self._process.least = min(self._process.least, self._process.there)
            self._process.comes(self)

    def _answer(self, hello: bool) -> None:
        if self._hello is not None and not self._hello.done():
            self._hello.set_result(hello)


class Process:
    """What one such process does."""

    def __init__(self, url: str, clients: int, name: str, address: str) -> None:
        self.url, self.address = url, address
        self.there = self.least = 0
        """How many are logged in now, and the fewest since that was told last."""
        self._clients = [Client(self, f"{name}-{number}") for number in range(clients)]
        self._coming: set[asyncio.Task[None]] = set()

    def comes(self, client: Client) -> None:
        """This one logs in, at once."""
        task = asyncio.get_running_loop().create_task(client.come())
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)

    async def run(self) -> None:
        loop, orders = asyncio.get_running_loop(), asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
        telling = loop.create_task(self._tell())
        arriving = loop.create_task(self._arrive())
        while await orders.readline():
            for client in self._clients:
                if client.transport is not None:
                    client.transport.disconnect(graceful=False)
        telling.cancel()
        arriving.cancel()

    async def _arrive(self) -> None:
        waiting = deque(self._clients)

        async def log_in() -> None:
            while waiting:
                await waiting.popleft().come()

        async with asyncio.TaskGroup() as group:
            for _ in range(LOGINS_AT_ONCE):
                group.create_task(log_in())

    async def _tell(self) -> None:
        told = -1
        while True:
            now = time.monotonic()
            for there in (self.least, self.there):
                if there != told:
                    told = there
                    print(now, told, flush=True)
            self.least = self.there
            await asyncio.sleep(TICK)


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
    asyncio.run(Process(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]).run())
