"""Three nodes with a real Redis and a real Kafka, each way between them through a link that can be cut."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from tests.proof.chaos.history import History
from tests.proof.chaos.link import Link
from tests.proof.chaos.node import SteppedClock
from tests.running import RunningNode, command, environment
from tests.services import KafkaBroker, RedisServer, die_with_parent, free_port

ROOT = Path(__file__).parents[3]
SMALL_DISK, MORE_A_MINUTE = 48, 6
"""MiB of the disk that is filled: rows stay in it for days, so that a longer run needs more."""
"""MiB of the disk that can be filled."""
SETTINGS = """
[node]
profile = "cluster"
drain = "2s"
[limits]
disk_reserve = "2MiB"
connections_per_address = 100000
[redelivery]
first = "2s"
longest = "20s"
"""


class Broker(KafkaBroker):
    """With a listener for each node, which clients are told to reach through that node's link."""

    def __init__(self, directory: Path, nodes: int) -> None:
        self.inside = [free_port() for _ in range(nodes)]
        self.links = [Link(port) for port in self.inside]
        super().__init__(directory)
        file = directory / "server.properties"
        lines = []
        for line in file.read_text().splitlines():
            more = {
                "listeners": [f"NODE{n}://127.0.0.1:{port}" for n, port in enumerate(self.inside)],
                "advertised.listeners": [f"NODE{n}://127.0.0.1:{link.port}" for n, link in enumerate(self.links)],
                "listener.security.protocol.map": [f"NODE{n}:PLAINTEXT" for n in range(nodes)],
            }.get(line.partition("=")[0], [])
            lines.append(",".join([line, *more]))
        file.write_text("\n".join(lines) + "\n")


class ChaosNode(RunningNode):
    """A node whose clock can be stepped."""

    def __init__(self, number: int, state: Path, redis: Link, kafka: Link, env: dict[str, str]) -> None:
        options: tuple[str, ...] = ("--config", str(state.parent / "yanchat.toml"))
        options += ("--redis", f"redis://127.0.0.1:{redis.port}/0", "--kafka", f"127.0.0.1:{kafka.port}")
        clock = state.parent / f"clock{number}"
        self.clock = SteppedClock(clock)
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        env = {**env, "CHAOS_CLOCK": str(clock), "PYTHONPATH": path}
        super().__init__(state, *options, port=free_port(), env=env)
        self.name, self.redis_link, self.kafka_link = f"n{number}", redis, kafka
        self.log = state.parent / f"{self.name}.log"
        self.meant_to_be_down = False
        self.small_disk = False

    def launch(self, **env: str) -> None:
        serve = command("serve", "--listen", self.node, "--json", *self.options, state=self.state)
        serve[1:3] = ["-m", "tests.proof.chaos.node"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                serve,
                env=environment(**self.env, **env),
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call
            )


class Site:
    """All that runs, in one directory."""

    def __init__(self, directory: Path, history: History, nodes: int, env: dict[str, str]) -> None:
        self.directory, self.history = directory, history
        self.state = directory / "state"
        self.redis = RedisServer(directory / "redis")
        self.kafka = Broker(directory / "kafka", nodes)
        self.redis_links = [Link(self.redis.port) for _ in range(nodes)]
        (directory / "yanchat.toml").write_text(SETTINGS)
        links = zip(self.redis_links, self.kafka.links, strict=True)
        self.nodes = [ChaosNode(number, self.state, redis, kafka, env) for number, (redis, kafka) in enumerate(links)]

    @property
    def urls(self) -> list[str]:
        return [f"ws://{node.node}/ws" for node in self.nodes]

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The links, and an eye on all processes."""
        async with trio.open_nursery() as nursery:
            for link in (*self.redis_links, *self.kafka.links):
                await nursery.start(link.run)
            nursery.start_soon(self._watch)
            task_status.started()

    async def start(self) -> None:
        await trio.to_thread.run_sync(self.redis.start)
        await trio.to_thread.run_sync(self.kafka.start)
        for node in self.nodes:
            self.start_node(node)
        for node in self.nodes:
            await trio.to_thread.run_sync(node.wait_ready, abandon_on_cancel=True)

    def start_node(self, node: ChaosNode) -> None:
        """Start it; it may have to wait for what it needs."""
        node.launch()
        node.meant_to_be_down = False
        self.history.note("started", node=node.name, pid=node.pid)

    async def _watch(self) -> None:
        """Who has gone without being killed, and what each takes."""
        gone: set[int] = set()
        while True:
            await trio.sleep(1)
            for node in self.nodes:
                if node.process is None or node.pid in gone:
                    continue
                code = node.process.poll()
                if code is not None and not node.meant_to_be_down:
                    gone.add(node.pid)
                    self.history.note("gone", node=node.name, pid=node.pid, code=code)
                elif code is None:
                    with suppress(OSError):
                        pages = int(Path(f"/proc/{node.pid}/statm").read_text().split()[1])
                        files = len(os.listdir(f"/proc/{node.pid}/fd"))
                        self.history.note("takes", node=node.name, pid=node.pid, mib=pages >> 8, files=files)

    async def ask(self, *arguments: str) -> tuple[int, Any]:
        """What `yanchat … --json` says: exit code, and the document."""
        import json

        run = command(*arguments, "--config", str(self.directory / "yanchat.toml"), "--json", state=self.state)
        run += ["--redis", self.redis.url, "--kafka", self.kafka.brokers]
        done = await trio.run_process(run, capture_stdout=True, capture_stderr=True, check=False, env=environment())
        try:
            return done.returncode, json.loads(done.stdout)
        except ValueError:
            return done.returncode, done.stderr.decode()[-500:]

    def stop(self) -> None:
        for node in self.nodes:
            if node.process is not None:
                node.resume()
                node.kill()
        self.redis.stop()
        self.kafka.stop()


@contextmanager
def small_disk(site: Site, node: ChaosNode, minutes: float) -> Iterator[None]:
    """The node's directory on a disk of its own that can be filled, where mounting is possible; else said aloud."""
    node.directory.mkdir(parents=True)
    size = SMALL_DISK + round(MORE_A_MINUTE * minutes)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}m,mode=0700", "tmpfs", str(node.directory)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    node.small_disk = done.returncode == 0
    if not node.small_disk:
        print(f"no disk is filled in this run: {done.stderr.strip()}", file=sys.stderr)
        site.history.note("skipped", kind="disk full", why=done.stderr.strip())
    try:
        yield
    finally:
        if node.small_disk:
            subprocess.run(["umount", "-l", str(node.directory)], check=False)
