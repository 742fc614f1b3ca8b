"""Memory that a flood needed for a while goes back to the system."""

from __future__ import annotations

import pytest
import trio

from yanchat import allocator


async def test_what_was_freed_in_pieces_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few long-lived texts among those that were freed: by itself the allocator keeps everything around them."""
    monkeypatch.setattr(allocator, "SHORTEST_REST", 0.01)
    texts = [bytes(range(256)) * 120 for _ in range(6000)]
    kept = texts[::50]
    peak = allocator.resident()
    del texts
    assert allocator.resident() > peak - (60 << 20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(allocator.give_back_memory)
        with trio.fail_after(20):
            while allocator.resident() > peak - (120 << 20):
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert len(kept) == 120
