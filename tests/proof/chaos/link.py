"""A TCP proxy for one way through the network: it can be cut, as by a cable that is pulled, and made slow."""

from __future__ import annotations

import trio

from tests.services import free_port

CHUNK = 65536


class Link:
    """Forwards what comes to `port` to another port of this machine."""

    def __init__(self, target: int) -> None:
        self._target, self.port = target, free_port()
        self.delay = 0.0
        """Seconds that everything takes, each way."""
        self._open = trio.Event()
        self._open.set()

    def cut(self) -> None:
        """Nothing passes, nothing is refused, and nobody is told."""
        self._open = trio.Event()

    def mend(self) -> None:
        self._open.set()

    async def run(self, task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED) -> None:
        await trio.serve_tcp(self._serve, self.port, host="127.0.0.1", task_status=task_status)

    async def _serve(self, here: trio.SocketStream) -> None:
        try:
            await self._open.wait()
            there = await trio.open_tcp_stream("127.0.0.1", self._target)
            async with here, there, trio.open_nursery() as nursery:
                nursery.start_soon(self._forward, here, there, nursery.cancel_scope)
                nursery.start_soon(self._forward, there, here, nursery.cancel_scope)
        except* OSError:
            pass  # the service is down: the connection ends, as one to its machine would

    async def _forward(self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
        """Keeps its order; a delay takes up to a window of bytes at a time."""
        send, receive = trio.open_memory_channel[tuple[float, bytes]](256)

        async def drain() -> None:
            async for due, data in receive:
                await trio.sleep_until(due)
                await self._open.wait()
                await sink.send_all(data)

        try:
            async with trio.open_nursery() as nursery, send:
                nursery.start_soon(drain)
                while data := await source.receive_some(CHUNK):
                    await self._open.wait()
                    await send.send((trio.current_time() + self.delay, data))
                send.close()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()
