"""What stands before the application: bodies that are too long or too slow, in virtual time."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import trio
from trio.testing import MockClock

from yanchat.admin.guard import BODY_WITHIN, Guard
from yanchat.config import LimitSettings

SCOPE = {"type": "http", "method": "POST", "path": "/", "headers": []}


async def answer(*parts: bytes | float, limits: LimitSettings | None = None) -> tuple[int, list[bytes]]:
    """The status for a body that comes in these parts, with pauses between them; and what the application read."""
    coming = list(parts)
    read: list[bytes] = []
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        while coming and isinstance(coming[0], float):
            await trio.sleep(coming.pop(0))  # type: ignore[arg-type]
        if not coming:
            await trio.sleep_forever()
        body = coming.pop(0)
        return {"type": "http.request", "body": body, "more_body": any(isinstance(part, bytes) for part in coming)}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        read.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    await Guard(application, None, lambda: limits or LimitSettings())(SCOPE, receive, send)
    return sent[0]["status"], read


async def test_a_body_reaches_the_application_whole(autojump_clock: MockClock) -> None:
    assert await answer(b"one ", 1.0, b"two") == (200, [b"one two"])


async def test_a_body_that_does_not_come_in_time_reaches_nobody(autojump_clock: MockClock) -> None:
    """408, however it dribbles."""
    assert await answer(*(part for _ in range(40) for part in (b"x", 1.0)), b"end") == (408, [])
    assert trio.current_time() <= BODY_WITHIN + 1


async def test_a_body_that_is_too_long_is_refused_as_soon_as_that_is_known(autojump_clock: MockClock) -> None:
    """413, before it has come to its end; how much may come follows from limits.message_size."""
    limits = LimitSettings(message_size=1000)
    assert await answer(b"x" * 70_000, b"end", limits=limits) == (413, [])
    assert (await answer(b"x" * 65_000, b"end", limits=limits))[0] == 200
