"""Whether the threads behind a port live is told without asking them: one that is stuck could not answer."""

from __future__ import annotations

import trio

from tests.contracts.backends import Buses, Store
from tests.contracts.examples import HERE
from yanchat.ports import Registry

SHORT = 5.0
"""Far below the watchdog's 30 s."""


async def test_a_registry_at_work_is_never_silent_for_long(registry: Registry) -> None:
    await registry.nodes()
    assert all(silent < SHORT for silent in registry.lanes().values())


async def test_a_bus_that_has_nothing_to_do_is_not_silent(buses: Buses) -> None:
    """Also not when the loop leaves what was read lying."""
    async with buses.connect(HERE) as bus, bus.subscribe("message") as batches, bus.subscribe("ack"):
        await anext(batches)
        await trio.sleep(0.5)
        assert all(silent < SHORT for silent in bus.lanes().values())
        with trio.fail_after(2 * SHORT):
            while bus.silent() > SHORT / 2:
                await trio.sleep(0.02)


async def test_a_store_at_work_is_never_silent_for_long(store: Store) -> None:
    await store.last_order()
    assert all(silent < SHORT for silent in store.lanes().values())
