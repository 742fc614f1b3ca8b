"""Real nodes with real Redis and Kafka, under load, while a node or a service fails: nothing receipted is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
import redis
import trio

from tests.running import RunningNode, call, wait_until
from tests.services import KafkaBroker, RedisServer, Server
from tests.system.swarm import Swarm
from yanchat.backends.redis.registry import open_registry
from yanchat.client import connect
from yanchat.config import RedisSettings
from yanchat.node.lease import HEARTBEAT, LEASE

NAMES = [f"user{number}" for number in range(12)]
PATIENCE = 90.0


def settings(
    directory: Path, prefix: str, redis_url: str, brokers: str, librdkafka: str = "", first: str = "1s"
) -> Path:
    """A file for nodes whose names in Redis and Kafka are this test's own; retries within its patience."""
    file = directory / "yanchat.toml"
    file.write_text(
        f"""
        [node]
        profile = "cluster"
        [redis]
        url = "{redis_url}"
        key_prefix = "{prefix}"
        [kafka]
        brokers = ["{brokers}"]
        topic_prefix = "{prefix}websocket-"
        ack_topic_prefix = "{prefix}netty-ack-"
        group_prefix = "{prefix}group"
        [kafka.librdkafka]
        {librdkafka}
        [redelivery]
        first = "{first}"
        longest = "{3 * int(first[:-1])}s"
        """
    )
    return file


class Site:
    """Three nodes, each with a directory of its own, as on three machines."""

    def __init__(self, nodes: list[RunningNode], redis_server: RedisServer, broker: KafkaBroker, prefix: str) -> None:
        self.nodes, self.redis, self.kafka, self.prefix = nodes, redis_server, broker, prefix

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    async def clean(self) -> None:
        """Wait until the registry knows of live nodes only, and does not contradict itself; else TooSlowError."""
        expected = sorted((node.node, "up") for node in self.nodes)
        with trio.fail_after(PATIENCE):
            async with open_registry(RedisSettings(url=self.redis.url, key_prefix=self.prefix), LEASE) as registry:
                while True:
                    nodes = [(record.node, record.state) for record in await registry.nodes()]
                    if nodes == expected and not await registry.contradictions():
                        return
                    await trio.sleep(0.1)


@pytest.fixture
def librdkafka() -> str:
    return ""


@pytest.fixture
def first() -> str:
    """When what was not acked is pushed again. A slow machine makes repeats of short times, with no fault in sight."""
    return "1s"


@pytest.fixture
def site(
    tmp_path: Path, prefix: str, redis_server: RedisServer, kafka_broker: KafkaBroker, librdkafka: str, first: str
) -> Iterator[Site]:
    file = settings(tmp_path, prefix, redis_server.url, kafka_broker.brokers, librdkafka, first)
    with ExitStack() as stack:
        nodes = [RunningNode(tmp_path / name, "--config", str(file)) for name in "abc"]
        yield Site([stack.enter_context(node) for node in nodes], redis_server, kafka_broker, prefix)


@asynccontextmanager
async def talking(site: Site, seed: int = 1) -> AsyncIterator[Swarm]:
    """Users talk while the body does its worst; behind it everything is settled, and the registry is clean."""
    swarm = Swarm(lambda: site.urls, NAMES, seed)
    async with trio.open_nursery() as nursery:
        for user in swarm.users.values():
            nursery.start_soon(user.live)
        await swarm.connected()
        nursery.start_soon(swarm.talk, 600, 0.005)
        await trio.sleep(0.5)
        yield swarm
        await swarm.talk(50)
        await swarm.settled(PATIENCE)
        nursery.cancel_scope.cancel()
    swarm.check()
    await site.clean()


async def started(server: Server) -> None:
    server.start(wait=False)
    await trio.to_thread.run_sync(server.wait)


@pytest.mark.parametrize("first", ["600s"])
async def test_without_faults_nothing_is_repeated_or_out_of_order(site: Site) -> None:
    async with talking(site) as swarm:
        pass
    swarm.check(calm=True)


async def kill_nodes(site: Site) -> None:
    """As the sender's and as the recipient's."""
    for node in site.nodes:
        await trio.to_thread.run_sync(node.restart)


async def stop_a_node_past_its_lease(site: Site) -> None:
    """The others forget it; it goes on as a new incarnation."""
    site.nodes[0].pause()
    await trio.sleep(LEASE + 1)
    site.nodes[0].resume()


async def flush_redis(site: Site) -> None:
    with redis.Redis(port=site.redis.port) as client:
        client.flushall()


async def crash_redis(site: Site) -> None:
    """It comes back empty."""
    site.redis.kill()
    await started(site.redis)


async def take_redis_away(site: Site) -> None:
    """Known routes go on working, and what is sent is stored."""
    site.redis.kill()
    await trio.sleep(LEASE + 2)
    await started(site.redis)


async def pause_redis(site: Site) -> None:
    site.redis.pause()
    await trio.sleep(HEARTBEAT + 1)
    site.redis.resume()


async def crash_kafka(site: Site) -> None:
    site.kafka.kill()
    await started(site.kafka)


async def pause_kafka(site: Site) -> None:
    site.kafka.pause()
    await trio.sleep(5)
    site.kafka.resume()


@pytest.mark.parametrize(
    "fault",
    [
        kill_nodes,
        stop_a_node_past_its_lease,
        flush_redis,
        crash_redis,
        take_redis_away,
        pause_redis,
        crash_kafka,
        pause_kafka,
    ],
)
async def test_nothing_is_lost_over_a_fault(site: Site, fault: Callable[[Site], Awaitable[None]]) -> None:
    """Every receipted message arrives, its sender is told, nothing comes twice, and nobody ends who was not killed."""
    before = [node.pid for node in site.nodes]
    async with talking(site) as swarm:
        await fault(site)
    if fault not in (kill_nodes, stop_a_node_past_its_lease):
        assert not sum(user.reconnects for user in swarm.users.values()), "a service's failure is not the clients'"
    if fault is not kill_nodes:
        assert [node.pid for node in site.nodes] == before
        assert all(node.process and node.process.poll() is None for node in site.nodes)


@pytest.mark.parametrize("librdkafka", ['"message.timeout.ms" = 2000'])
async def test_kafka_may_be_away_for_longer_than_the_message_timeout(site: Site) -> None:
    """What the producer has given up is in the outbox, and goes out with the next retry."""
    async with talking(site):
        site.kafka.kill()
        await trio.sleep(8)
        await started(site.kafka)


async def test_a_user_who_hops_between_nodes_misses_nothing(site: Site) -> None:
    """Every 200 ms he is on another node, while everybody writes to him."""
    async with talking(site) as swarm:
        hopper = swarm.users[NAMES[0]]
        for _ in range(30):
            hopper.hop()
            for name in NAMES[1:4]:
                await swarm.users[name].send(hopper.name)
            await trio.sleep(0.2)


# -- start and end -----------------------------------------------------------------------------------------------------
def test_services_that_are_away_at_the_start_are_waited_for(
    tmp_path: Path, prefix: str, redis_server: RedisServer, kafka_broker: KafkaBroker
) -> None:
    """No client is let in meanwhile; a node that is told to stop while it waits ends at once."""
    file = settings(tmp_path, prefix, redis_server.url, kafka_broker.brokers)
    redis_server.kill()
    kafka_broker.kill()
    try:
        waiting = RunningNode(tmp_path / "a", "--config", str(file))
        waiting.launch()
        wait_until(lambda: "registry.not_there" in waiting.log.read_text(), "it says that Redis is not there")
        assert waiting.terminate() == 0
        waiting.launch()
    finally:
        redis_server.start()
        kafka_broker.start()
    waiting.wait_ready()
    assert waiting.terminate() == 0


def test_a_kafka_that_is_not_there_is_named(tmp_path: Path, prefix: str, redis_url: str) -> None:
    """Once, in the words that `doctor` has, and with the brokers that it may have from a wrong setting."""
    file = settings(tmp_path, prefix, redis_url, "127.0.0.1:1")
    waiting = RunningNode(tmp_path / "a", "--config", str(file))
    waiting.launch()
    sentence = "Kafka does not answer at 127.0.0.1:1; look at the brokers, or at kafka.brokers."
    try:
        wait_until(lambda: sentence in waiting.log.read_text(), "it says for whom it waits")
        assert waiting.terminate() == 0
    finally:
        waiting.kill()
    assert waiting.log.read_text().count(sentence) == 1


def test_a_wrong_password_ends_with_a_sentence(
    tmp_path: Path, prefix: str, redis_server: RedisServer, kafka_broker: KafkaBroker
) -> None:
    """Exit code 78, for either service."""
    wrong_redis = redis_server.url.replace("//", "//nobody:guess@")
    sasl = '"security.protocol" = "SASL_PLAINTEXT"\n"sasl.mechanism" = "PLAIN"\n"sasl.username" = "nobody"\n'
    sasl += '"sasl.password" = "guess"'
    for url, brokers, librdkafka, name in (
        (wrong_redis, kafka_broker.brokers, "", "Redis"),
        (redis_server.url, kafka_broker.sasl_brokers, sasl, "Kafka"),
    ):
        file = settings(tmp_path, prefix, url, brokers, librdkafka)
        ended = call("serve", "--listen", "127.0.0.1:0", "--config", str(file), state=tmp_path / "a")
        assert ended.returncode == 78, ended.stderr
        assert f"{name} refuses this node" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert "guess" not in ended.stderr


def test_the_second_node_of_a_name_ends_and_the_first_serves_on(site: Site, tmp_path: Path) -> None:
    """Two machines with one advertised address: exit code 4."""
    taken = site.nodes[0].node
    second = call(
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--advertise",
        taken,
        "--config",
        str(tmp_path / "yanchat.toml"),
        state=tmp_path / "second",
    )
    assert second.returncode == 4
    assert "held by another live node" in second.stderr
    assert "Traceback" not in second.stderr
    assert site.nodes[0].process is not None
    assert site.nodes[0].process.poll() is None


async def test_a_node_leaves_nothing_behind(site: Site) -> None:
    """After SIGTERM neither its record nor its sessions are in Redis."""
    node = site.nodes.pop()
    async with connect(node.url, "ann"):
        with redis.Redis(port=site.redis.port, decode_responses=True) as client:
            assert client.scard(f"{site.prefix}serverclients_{node.node}") == 1
            assert await trio.to_thread.run_sync(node.terminate) == 0
            assert not client.exists(f"{site.prefix}client_ann", f"{site.prefix}serverclients_{node.node}")
    await site.clean()
