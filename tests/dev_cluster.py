"""`scripts/dev-cluster`: a private Redis, a Kafka broker and two nodes for those who develop, in one folder.

Each process is known by its pid and its command line, so that nothing else is ever stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.services import KafkaBroker, Missing, RedisServer, free_port
from yanchat.names import ack_topic, message_topic

NAMES = ("redis", "kafka", "node1", "node2")
READY_WITHIN, STOPPED_WITHIN = 60.0, 15.0


class Process(NamedTuple):
    """One of ours: what it is started with tells it from a stranger that has got its pid."""

    pid: int
    mark: str

    @property
    def running(self) -> bool:
        try:
            return self.mark.encode() in Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except OSError:
            return False


class DevCluster:
    """All that it keeps is in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known, self._config = folder / "processes.json", folder / "yanchat.toml"

    def up(self) -> int:
        """Start everything; prints what to try."""
        running = [name for name, process in self.processes().items() if process.running]
        if running:
            say(f"{', '.join(running)} run already; stop them with: scripts/dev-cluster down")
            return 1
        shutil.rmtree(self.folder, ignore_errors=True)
        begun = time.monotonic()
        try:
            redis = RedisServer(self.folder / "redis", outlives_us=True)
            redis.start(wait=False)
            self._remember("redis", redis.pid, str(redis.port))
            say("Kafka's files are fetched the first time.")
            kafka = KafkaBroker(self.folder / "kafka", outlives_us=True)
            kafka.start(wait=False)
            self._remember("kafka", kafka.pid, str(kafka.directory))
            self._configure(redis, kafka)
            self._start_node("node1")
            self._start_node("node2")
            redis.wait()
            kafka.wait()
            first, second = self._url("node1"), self._url("node2")
        except (Missing, RuntimeError) as error:
            say(str(error))
            self.down()
            return 1
        say(f"Ready after {time.monotonic() - begun:.0f} s.")
        print(self._what_to_try(redis, kafka, first, second))
        return 0

    def _configure(self, redis: RedisServer, kafka: KafkaBroker) -> None:
        self._config.write_text(
            f"""\
[node]
profile = "cluster"
state_dir = "{self.folder / "state"}"

[redis]
url = "{redis.url}"

[kafka]
brokers = ["{kafka.brokers}"]
"""
        )

    def _start_node(self, name: str) -> None:
        """It waits for the services by itself."""
        address = f"127.0.0.1:{free_port()}"
        serve = [sys.executable, "-m", "yanchat", "serve", "--config", str(self._config), "--listen", address, "--json"]
        (self.folder / name).mkdir()
        with (self.folder / name / "log").open("ab") as log, (self.folder / name / "ready").open("wb") as ready:
            process = subprocess.Popen(
                serve, stdin=subprocess.DEVNULL, stdout=ready, stderr=log, start_new_session=True
            )
        self._remember(name, process.pid, address)

    def _url(self, name: str) -> str:
        """Where the node serves, when it does."""
        ready, process = self.folder / name / "ready", self.processes()[name]
        deadline = time.monotonic() + READY_WITHIN
        while not ready.read_text().endswith("\n"):
            if not process.running or time.monotonic() > deadline:
                raise RuntimeError(f"{name} has not come up; its log is {self.folder / name / 'log'}.")
            time.sleep(0.05)
        return str(json.loads(ready.read_text())["url"])

    def _what_to_try(self, redis: RedisServer, kafka: KafkaBroker, first: str, second: str) -> str:
        consumer = f"java -cp '{kafka.jars}/*' org.apache.kafka.tools.consumer.ConsoleConsumer --from-beginning"
        consumer += f" --property print.headers=true --bootstrap-server {kafka.brokers} --topic"
        sender, recipient = (url.removeprefix("ws://").removesuffix("/ws") for url in (first, second))
        return f"""
  . .venv/bin/activate
  export YANCHAT_CONFIG={self._config}

  yanchat servers
  yanchat listen --as bob --url {second}         # in a second terminal
  yanchat clients
  yanchat send bob "hello" --as ann --url {first}

  redis-cli -p {redis.port} keys 'yan_*'
  redis-cli -p {redis.port} hgetall yan_client_bob
  {consumer} {message_topic(recipient)} 2>/dev/null
  {consumer} {ack_topic(sender)} 2>/dev/null

  scripts/dev-cluster down"""

    def down(self) -> int:
        """Stop what runs, the nodes first; the folder stays, with its logs."""
        known = self.processes()
        for name in reversed(NAMES):
            if name in known and known[name].running:
                stop(known[name])
                say(f"{name} is stopped")
        self._known.unlink(missing_ok=True)
        return 0

    def status(self) -> int:
        known = self.processes()
        for name in NAMES:
            process = known.get(name)
            print(f"{name:<6} {f'runs, pid {process.pid}' if process and process.running else 'does not run'}")
        return 0 if len(known) == len(NAMES) and all(process.running for process in known.values()) else 10

    def logs(self, name: str | None) -> int:
        """The last lines, and what comes, until Ctrl-C."""
        files = [self.folder / one / "log" for one in NAMES if name in (None, one)]
        if not all(file.exists() for file in files):
            say("There are no logs; start it with: scripts/dev-cluster up")
            return 3
        try:
            return subprocess.call(["tail", "-n", "20", "-F", *map(str, files)])
        except KeyboardInterrupt:
            return 130

    def processes(self) -> dict[str, Process]:
        """Those that were started, running or not."""
        if not self._known.exists():
            return {}
        found: dict[str, Any] = json.loads(self._known.read_text())
        return {name: Process(*one) for name, one in found.items()}

    def _remember(self, name: str, pid: int, mark: str) -> None:
        self._known.write_text(json.dumps({**self.processes(), name: Process(pid, mark)}))


def stop(process: Process) -> None:
    os.kill(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOPPED_WITHIN
    while process.running:
        if time.monotonic() > deadline:
            os.kill(process.pid, signal.SIGKILL)
            return
        time.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/dev-cluster", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".dev-cluster"), help="where all that it keeps is")
    commands = parser.add_subparsers(dest="what", required=True)
    for name, about in (("up", "start it"), ("down", "stop it"), ("status", "exit 10 when something does not run")):
        commands.add_parser(name, help=about)
    commands.add_parser("logs", help="follow the logs").add_argument("name", nargs="?", choices=NAMES)
    arguments = parser.parse_args()
    cluster = DevCluster(arguments.folder.absolute())
    if arguments.what == "logs":
        return cluster.logs(arguments.name)
    return {"up": cluster.up, "down": cluster.down, "status": cluster.status}[arguments.what]()


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
