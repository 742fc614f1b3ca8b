"""What an operator tells the process by signals: to stop, to stop at once, to read its settings again."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
import trio


def _nothing() -> None:
    """There is nothing to read again yet: the settings that count are being taken up."""


class Orders:
    """What has been ordered so far. Whoever serves sets `opened` and `reload`."""

    def __init__(self) -> None:
        self.stopping = trio.Event()
        """To stop gently: set by the first signal, and by whoever else orders it."""
        self.opened = False
        """As long as nothing is open, there is nothing to stop gently."""
        self.reload: Callable[[], None] = _nothing
        """Read the settings again; must not raise."""


@asynccontextmanager
async def heard_signals() -> AsyncIterator[Orders]:
    """Hear SIGTERM, SIGINT and SIGHUP; a second one of the first two cancels the body.

    A SIGHUP that comes because the terminal has gone stops the node, as whoever closes a terminal expects.
    """
    orders, on_terminal = Orders(), _on_terminal()

    async def hear(scope: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        signalled = False
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP and not (on_terminal and not _on_terminal()):
                    orders.reload()
                    continue
                if signalled or not orders.opened:
                    structlog.get_logger().warning("node.stopped_at_once")
                    scope.cancel()
                signalled = True
                orders.stopping.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(hear, nursery.cancel_scope)
        yield orders
        nursery.cancel_scope.cancel()


def _on_terminal() -> bool:
    return any(os.isatty(fd) for fd in (0, 2))
