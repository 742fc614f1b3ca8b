"""Sending all clients of a stopping node away, in jittered waves: so that the other nodes are not stormed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Final

import trio

from yanchat.gateway.connection import SHAKING_HANDS
from yanchat.gateway.edge import Edge
from yanchat.gateway.wire import Wire

RESTARTS: Final = 1012
REASON: Final = "this node restarts; connect again"
WAVE_SECONDS: Final = 0.1
SMALLEST_WAVE: Final = 10
"""Few clients storm nobody: there are only as many waves as it takes."""
SHAKEN_WITHIN: Final = 1.0
ANSWERED_WITHIN: Final = 5.0


async def send_away(edge: Edge, within: float, rng: Random) -> None:
    """Close every connection with 1012, over at most about `within` seconds. Cancelled: some are still there.

    Whoever is not away yet is served as before. Of each, no more is read first, and what was read is answered, unless
    that takes more than 5 s. Who is still shaking hands gets a second to come in, so that nobody is refused.
    """
    wires = edge.wires()
    rng.shuffle(wires)
    waves = max(1, min(int(within / WAVE_SECONDS), math.ceil(len(wires) / SMALLEST_WAVE)))
    size = math.ceil(len(wires) / waves) or 1
    async with trio.open_nursery() as nursery:
        for first in range(0, len(wires), size):
            nursery.start_soon(_send_away, edge, wires[first : first + size])
            if first + size < len(wires):
                await trio.sleep(WAVE_SECONDS * rng.uniform(0.5, 1.5))


async def _send_away(edge: Edge, wave: Sequence[Wire]) -> None:
    with trio.move_on_after(SHAKEN_WITHIN):
        while any(wire.phase == SHAKING_HANDS for wire in wave):  # noqa: ASYNC110 - once for each wave
            await trio.sleep(0.005)
    edge.hold(wave)
    with trio.move_on_after(ANSWERED_WITHIN):
        while any(wire.session is not None and wire.session.inflight for wire in wave):  # noqa: ASYNC110
            await trio.sleep(0.005)
    edge.close(wave, RESTARTS, REASON)
