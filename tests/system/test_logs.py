"""The log: one event a line, the message id on every line about a message, and never what people write."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.running import RunningNode, call, read_line, running, wait_until

SECRET = "Zauberwort-4711 äöü 日本"
ABOUT_MESSAGES = ("message.", "notice.")


def lines(node: RunningNode) -> list[dict[str, Any]]:
    """Every line that the node has logged; each must be an event in JSON."""
    found = [json.loads(line) for line in node.log.read_text().splitlines()]
    for line in found:
        assert {"event", "level", "timestamp"} <= line.keys(), line
    return found


def events(node: RunningNode, message_id: str) -> list[str]:
    return [line["event"] for line in lines(node) if line.get("message_id") == message_id]


def send(node: RunningNode, *more: str) -> str:
    """Ann writes to Bob; the message id."""
    told = call("send", "bob", SECRET, "--as", "ann", "--url", node.url, "--ndjson", *more, state=node.state)
    line = json.loads(told.stdout.splitlines()[-1])
    return str(line["message_id"])


def has(node: RunningNode, message_id: str, *wanted: str) -> Callable[[], bool]:
    return lambda: set(wanted) <= set(events(node, message_id))


def test_each_step_of_a_message_is_a_line_with_its_id_on_both_nodes(tmp_path: Path) -> None:
    """At level debug; what was written is on none of them."""
    with (
        RunningNode(tmp_path, "--log-level", "debug") as n1,
        RunningNode(tmp_path, "--log-level", "debug") as n2,
        running("listen", "--as", "ann", "--url", n1.url, state=tmp_path) as ann,  # she stays, and so is told
        running("listen", "--as", "bob", "--url", n2.url, "--ndjson", state=tmp_path) as bob,
    ):
        for listener in (ann, bob):
            read_line(listener, of_stderr=True)
        message_id = send(n1)
        read_line(bob)
        steps = ("message.accepted", "message.forwarded", "message.arrived", "message.delivered", "notice.forwarded")
        wait_until(has(n1, message_id, *steps, "notice.pushed", "notice.told"), "n1 has told all of it")
        assert events(n2, message_id) == ["message.pushed", "message.acked"]
        for node in (n1, n2):
            assert [
                line for line in lines(node) if line["event"].startswith(ABOUT_MESSAGES) and "message_id" not in line
            ] == []
            assert "Zauberwort" not in node.log.read_text()


def test_at_level_info_nothing_is_said_of_messages_that_go_their_way(tmp_path: Path) -> None:
    with RunningNode(tmp_path) as node, running("listen", "--as", "bob", "--url", node.url, state=tmp_path) as bob:
        read_line(bob, of_stderr=True)
        send(node)
        assert [line for line in lines(node) if line["event"].startswith(ABOUT_MESSAGES)] == []


def test_a_reload_makes_a_running_node_tell_of_each_message_and_stops_it_again(tmp_path: Path) -> None:
    config = tmp_path / "yanchat.toml"

    def level(name: str) -> None:
        config.write_text(f'[log]\nlevel = "{name}"\n')

    level("info")
    with RunningNode(tmp_path / "state", "--config", str(config)) as node:

        def reload(name: str, times: int) -> None:
            level(name)
            os.kill(node.pid, signal.SIGHUP)
            wait_until(lambda: node.log.read_text().count("node.reloaded") == times, "it has reloaded")

        quiet = send(node, "--wait", "accepted")
        reload("debug", 1)
        told = send(node, "--wait", "accepted")
        wait_until(has(node, told, "message.accepted"), "it tells")
        reload("info", 2)
        quiet_again = send(node, "--wait", "accepted")
        assert events(node, quiet) == events(node, quiet_again) == []


def test_a_message_that_is_given_up_is_a_line_at_level_info(tmp_path: Path) -> None:
    short = {"YANCHAT_REDELIVERY_LIFETIME": "1s"}
    with RunningNode(tmp_path, env=short) as node:
        message_id = send(node, "--wait", "accepted")
        wait_until(has(node, message_id, "message.expired"), "it is given up")
        (line,) = [line for line in lines(node) if line.get("message_id") == message_id]
        assert (line["level"], line["sender"], line["recipient"]) == ("info", "ann", "bob")


def test_what_is_refused_is_told_without_what_was_written(tmp_path: Path) -> None:
    """It never was a message and has no id; the request id says which it was."""
    few = {"YANCHAT_LIMITS_PENDING_PER_PAIR": "1"}
    with RunningNode(tmp_path, "--log-level", "debug", env=few) as node:
        send(node, "--wait", "accepted")
        call(
            "send",
            "bob",
            SECRET,
            "--as",
            "ann",
            "--url",
            node.url,
            "--request-id",
            "r-2",
            "--timeout",
            "1",
            state=tmp_path,
        )
        refused = [line for line in lines(node) if line["event"] == "message.refused"]
        assert [(line["status"], line["sender"], line["request_id"]) for line in refused[:1]] == [(429, "ann", "r-2")]
        assert "Zauberwort" not in node.log.read_text()


@pytest.mark.parametrize("form", ["json", "console"])
def test_what_libraries_log_is_one_event_a_line_as_well(form: str) -> None:
    code = f"""
import logging
from yanchat.cli.logs import configure_logs
from yanchat.config import LogSettings
for _ in range(2):
    configure_logs(LogSettings(format={form!r}))
log = logging.getLogger("some.library")
log.info("not this")
log.warning("broker %d is away", 3)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    if form == "json":
        event = json.loads(line)
        assert (event["event"], event["library"], event["level"]) == ("library.log", "some.library", "warning")
        assert event["message"] == "broker 3 is away"
    else:
        assert "library.log" in line
        assert "broker 3" in line
