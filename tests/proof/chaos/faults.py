"""The faults of a chaos run, drawn from its seed. Each begins and ends in the history."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import trio

from tests.proof.chaos.site import ChaosNode, Site
from tests.services import Server

LEASE = 10.0
DRAINED_WITHIN = 45.0


class Faults:
    """`run` strikes until it is cancelled; `mend` brings everything back."""

    def __init__(self, site: Site, rng: random.Random, kinds: Sequence[str], minutes: float) -> None:
        self._site, self._rng, self._minutes = site, rng, minutes
        self._busy: set[object] = set()
        self._kinds = [kind for kind in kinds or KINDS if kind != "disk full" or site.nodes[-1].small_disk]

    async def run(self) -> None:
        """One after another, now and then two at a time; each kind comes before one comes again."""
        left: list[str] = []
        async with trio.open_nursery() as nursery:
            while True:
                left = left or self._rng.sample(self._kinds, len(self._kinds))
                kind = left.pop()
                await trio.sleep(0.5 + self._rng.random() * 3)
                if self._rng.random() < 0.3:
                    nursery.start_soon(self._strike, kind)
                else:
                    await self._strike(kind)

    async def _strike(self, kind: str) -> None:
        site, rng = self._site, self._rng
        shared = site.redis if kind.startswith("redis") else site.kafka if kind.startswith("kafka") else None
        node = site.nodes[-1] if kind == "disk full" else rng.choice(site.nodes)
        target: object = shared or node
        if target in self._busy or (target is node and node.meant_to_be_down):
            return
        self._busy.add(target)
        name = shared.name if shared is not None else node.name
        site.history.note("fault", kind=kind, target=name)
        try:
            await KINDS[kind](self, node)
        finally:
            self._busy.discard(target)
            site.history.note("fault ends", kind=kind, target=name)

    async def mend(self) -> None:
        """Nothing fails any more, and everything runs."""
        site = self._site
        for link in (*site.redis_links, *site.kafka.links):
            link.delay = 0.0
            link.mend()
        for server in (site.redis, site.kafka):
            assert server.process is not None
            if server.process.poll() is None:
                server.resume()
            else:
                await self._start(server)
        for node in site.nodes:
            node.resume()
            node.clock.step_to(0)
            if node.small_disk:
                (node.directory / "filling").unlink(missing_ok=True)
            assert node.process is not None
            if node.process.poll() is not None:
                site.start_node(node)

    # -- nodes ---------------------------------------------------------------------------------------------------------
    async def kill(self, node: ChaosNode) -> None:
        node.meant_to_be_down = True
        await trio.to_thread.run_sync(node.kill)
        await trio.sleep(self._rng.choice((0.0, 1.0, LEASE + 2)))
        self._site.start_node(node)

    async def stop_past_the_lease(self, node: ChaosNode) -> None:
        node.pause()
        await trio.sleep(LEASE + 1 + 4 * self._rng.random())
        node.resume()

    async def drain(self, node: ChaosNode) -> None:
        assert node.process is not None
        node.meant_to_be_down, begun = True, trio.current_time()
        node.process.terminate()
        with trio.move_on_after(DRAINED_WITHIN):
            while node.process.poll() is None:
                await trio.sleep(0.1)
        code = node.process.poll()
        self._site.history.note("drained", node=node.name, code=code, seconds=round(trio.current_time() - begun, 1))
        await trio.to_thread.run_sync(node.kill)
        self._site.start_node(node)

    async def step_the_clock(self, node: ChaosNode) -> None:
        node.clock.step_to(self._rng.choice((-3600, -2, 2, 3600)))
        await trio.sleep(2 + 6 * self._rng.random())
        node.clock.step_to(0)

    async def fill_the_disk(self, node: ChaosNode) -> None:
        await trio.to_thread.run_sync(fill, node.directory / "filling")
        await trio.sleep(2 + 5 * self._rng.random())
        (node.directory / "filling").unlink(missing_ok=True)

    # -- the network ---------------------------------------------------------------------------------------------------
    async def cut_off(self, node: ChaosNode) -> None:
        links = self._rng.choice(((node.redis_link,), (node.kafka_link,), (node.redis_link, node.kafka_link)))
        for link in links:
            link.cut()
        await trio.sleep(self._rng.choice((2.0, 6.0, LEASE + 3)))
        for link in links:
            link.mend()

    async def slow_network(self, node: ChaosNode) -> None:
        node.redis_link.delay = node.kafka_link.delay = self._rng.choice((0.02, 0.2, 1.0))
        await trio.sleep(3 + 6 * self._rng.random())
        node.redis_link.delay = node.kafka_link.delay = 0.0

    # -- the services --------------------------------------------------------------------------------------------------
    async def _start(self, server: Server) -> None:
        server.start(wait=False)
        await trio.to_thread.run_sync(server.wait, abandon_on_cancel=True)

    async def kill_redis(self, _: ChaosNode) -> None:
        """It comes back empty."""
        self._site.redis.kill()
        await trio.sleep(4 * self._rng.random())
        await self._start(self._site.redis)

    async def flush_redis(self, _: ChaosNode) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", self._site.redis.port)
        async with stream:
            await stream.send_all(b"FLUSHALL\r\n")
            await stream.receive_some(16)

    async def pause_redis(self, _: ChaosNode) -> None:
        self._site.redis.pause()
        await trio.sleep(self._rng.choice((2.0, LEASE + 2)))
        self._site.redis.resume()

    async def kill_kafka(self, _: ChaosNode) -> None:
        self._site.kafka.kill()
        await self._start(self._site.kafka)

    async def stop_kafka(self, _: ChaosNode) -> None:
        """For two minutes, in a run that is long enough for it."""
        await trio.to_thread.run_sync(self._site.kafka.stop)
        await trio.sleep(min(120.0, 6 * self._minutes))
        await self._start(self._site.kafka)

    async def pause_kafka(self, _: ChaosNode) -> None:
        self._site.kafka.pause()
        await trio.sleep(2 + 8 * self._rng.random())
        self._site.kafka.resume()


def fill(path: Path) -> None:
    """Until the disk takes nothing more."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


KINDS: dict[str, Callable[[Faults, ChaosNode], Awaitable[None]]] = {
    "kill": Faults.kill,
    "stop past the lease": Faults.stop_past_the_lease,
    "drain": Faults.drain,
    "cut off": Faults.cut_off,
    "slow network": Faults.slow_network,
    "redis killed": Faults.kill_redis,
    "redis flushed": Faults.flush_redis,
    "redis paused": Faults.pause_redis,
    "kafka killed": Faults.kill_kafka,
    "kafka stopped": Faults.stop_kafka,
    "kafka paused": Faults.pause_kafka,
    "disk full": Faults.fill_the_disk,
    "clock stepped": Faults.step_the_clock,
}
