"""A private Redis server and Kafka broker on 127.0.0.1: fetched, started, paused, killed, started again in place.

For the tests, and for `scripts/dev-cluster`. Nothing here touches a service of the machine.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import fcntl
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

KAFKA_VERSION = "4.1.0"
FILES = Path(__file__).parent / "kafka"
CONFIGS = Path(__file__).parents[1] / "configs"
_PACKAGES = {
    "redis-server": "redis-server",
    "java": "default-jre-headless",
    "mvn": "maven",
    "faketime": "faketime",
    "prometheus": "prometheus",
    "promtool": "prometheus",
}


class Missing(Exception):
    """A service cannot be started here; the text says what to install."""


class Server:
    """One server process with a directory and ports of its own."""

    name = ""
    patience = 60.0
    """Seconds within which it answers after a start."""

    def __init__(self, directory: Path, *, outlives_us: bool = False) -> None:
        self.directory, self._outlives_us = directory, outlives_us
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it answers."""
        # The kernel takes the thread for the parent, and a worker thread ends some time.
        lasting = self._outlives_us or threading.current_thread() is not threading.main_thread()
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=None if lasting else die_with_parent,  # noqa: PLW1509 - one system call
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + self.patience
        while not self.answers():
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = (self.directory / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self.name} has not come up; its log ends:\n{tail}")
            time.sleep(0.05)

    def kill(self) -> None:
        """As a crash: SIGKILL."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """It holds its connections and says nothing, until `resume`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.resume()
            self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)


class RedisServer(Server):
    """`more` are further settings; with `sentinel_of` it is a Sentinel that watches that server as `yan`."""

    name = "redis-server"

    def __init__(
        self,
        directory: Path,
        *,
        more: Mapping[str, str] | None = None,
        sentinel_of: RedisServer | None = None,
        outlives_us: bool = False,
    ) -> None:
        super().__init__(directory, outlives_us=outlives_us)
        (self._program,) = _programs("redis-server")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        settings = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(directory)}
        if sentinel_of is None:
            settings |= {"unixsocket": str(directory / "socket"), "maxmemory-policy": "noeviction"}
            settings |= {"save": '""', "appendonly": "no"} | dict(more or {})
        else:
            settings["sentinel monitor yan"] = f"127.0.0.1 {sentinel_of.port} 1"
        (directory / "redis.conf").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        self._mode = ["--sentinel"] if sentinel_of is not None else []

    def command(self) -> list[str]:
        return [self._program, "redis.conf", *self._mode]

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


class KafkaBroker(Server):
    """What its listeners ask for and who may do what is in `kafka/server.properties`."""

    name = "the Kafka broker"

    def __init__(self, directory: Path, *, outlives_us: bool = False) -> None:
        super().__init__(directory, outlives_us=outlives_us)
        (java,), self.jars = _programs("java"), kafka_jars()
        ports = {"PORT": free_port(), "SASL": free_port(), "CONTROLLER": free_port()}
        self.port = ports["PORT"]
        self.brokers, self.sasl_brokers = f"127.0.0.1:{self.port}", f"127.0.0.1:{ports['SASL']}"
        properties = (FILES / "server.properties").read_text()
        for name, port in ports.items():
            properties = properties.replace(f"@{name}@", str(port))
        (directory / "server.properties").write_text(properties)
        self._run = [
            java,
            "-Xms256m",
            "-Xmx512m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-cp",
            f"{self.jars}/*",
        ]
        # The first letter is ours: an id that begins with "-" is an option to the tool.
        cluster = base64.urlsafe_b64encode(b"y" + os.urandom(15)).decode().rstrip("=")
        make = ["kafka.tools.StorageTool", "format", "--standalone", "-t", cluster, "-c", "server.properties"]
        done = _run([*self._run, *make], cwd=directory)
        if done.returncode:
            raise RuntimeError(f"Kafka's directory cannot be made: {done.stdout}")

    def command(self) -> list[str]:
        return [*self._run, "kafka.Kafka", str(self.directory / "server.properties")]

    def answers(self) -> bool:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            quiet: dict[str, Any] = {"bootstrap.servers": self.brokers, "log_level": 0, "error_cb": lambda error: None}
            return bool(AdminClient(quiet).list_topics(timeout=1).brokers)
        except (OSError, KafkaException):
            return False


class PrometheusServer(Server):
    """Scrapes these admin addresses as `configs/prometheus.yml` says, with its rules, but once a second.

    Alarms fire at once, not after a while.
    """

    name = "prometheus"

    def __init__(self, directory: Path, targets: Sequence[str], token_file: Path) -> None:
        super().__init__(directory)
        (self._program,) = _programs("prometheus")
        self.port = free_port()
        config = (CONFIGS / "prometheus.yml").read_text().replace("15s", "1s")
        config = config.replace("/etc/yanchat/admin-token", str(token_file))
        listed, places = config.split("- targets:")[0], "".join(f"\n          - {target}" for target in targets)
        (directory / "prometheus.yml").write_text(f"{listed}- targets:{places}\n")
        rules = (CONFIGS / "prometheus-alerts.yml").read_text()
        (directory / "prometheus-alerts.yml").write_text(re.sub(r"(?m)^ +for: \w+\n", "", rules))

    def command(self) -> list[str]:
        options = {
            "config.file": "prometheus.yml",
            "storage.tsdb.path": "data",
            "web.listen-address": f"127.0.0.1:{self.port}",
        }
        return [self._program, *(f"--{name}={value}" for name, value in options.items())]

    def answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self.port}/-/ready").is_success
        return False

    def ask(self, path: str, **query: str) -> Any:
        """The `data` of an answer of its HTTP API; AssertionError when it is an error."""
        answer = httpx.get(f"http://127.0.0.1:{self.port}/api/v1/{path}", params=query).json()
        assert answer["status"] == "success", (query, answer)
        return answer["data"]


def promtool(*arguments: str | Path) -> str:
    """Run it in `configs`; what it says. AssertionError when it finds a mistake."""
    (program,) = _programs("promtool")
    done = _run([program, *map(str, arguments)], cwd=CONFIGS)
    assert done.returncode == 0, done.stdout
    return done.stdout


def kafka_jars() -> Path:
    """The folder with the broker's jars, fetched by Maven the first time."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yanchat"
    jars = cache / f"kafka-{KAFKA_VERSION}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another session of tests may be fetching them
        if not (jars / f"kafka-tools-{KAFKA_VERSION}.jar").exists():
            (maven,) = _programs("mvn")
            fetched = cache / "fetching"
            shutil.rmtree(fetched, ignore_errors=True)
            fetch = ["dependency:copy-dependencies", f"-DoutputDirectory={fetched}", "-DincludeScope=runtime"]
            done = _run([maven, "-q", "-B", "-f", str(FILES / "pom.xml"), *fetch])
            if done.returncode:
                raise Missing(f"Kafka's jars cannot be fetched by Maven: {done.stdout[-1000:]}")
            shutil.rmtree(jars, ignore_errors=True)
            fetched.rename(jars)
    return jars


def wrong_clock(seconds: float) -> dict[str, str]:
    """What lets a process believe that it is so many seconds later than it is; its monotonic clock stays right."""
    _programs("faketime")
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        raise Missing("install it with: apt-get install faketime")
    return {"LD_PRELOAD": str(library), "FAKETIME": f"{seconds:+}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def _programs(*names: str) -> list[str]:
    """Where these programs are; as root on Debian they are installed when they are missing."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        # RUNLEVEL=1: the machine's own service is not to start.
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        install = ["install", "-y", "--no-install-recommends", *(_PACKAGES[name] for name in missing)]
        _run(["apt-get", "update"], env=environment)
        _run(["apt-get", *install], env=environment)
    found = [shutil.which(name) for name in names]
    if None in found:
        packages = [_PACKAGES[name] for name in names if shutil.which(name) is None]
        raise Missing(f"install it with: apt-get install {' '.join(packages)}")
    return [path for path in found if path is not None]


def _run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(command, check=False, text=True, **pipes, **options)  # type: ignore[call-overload,no-any-return]


def free_port() -> int:
    """A free port below those that the kernel gives to clients.

    A client that keeps trying to connect to one of those while its server is down ends up connected to itself, and
    then the server cannot have it back.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def die_with_parent() -> None:
    """For `preexec_fn`: a process of the tests does not outlive them."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: also when the tests are killed
