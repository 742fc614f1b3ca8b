"""What a node tells at `/metrics`, and a real Prometheus with the dashboard and the alarms that come with yanchat."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.running import RunningNode, call, read_line, running, wait_until
from tests.services import CONFIGS, Missing, PrometheusServer, free_port, promtool

TOKEN = "f0e1d2c3b4a5968778695a4b3c2d1e0f"
LABELS = {"le", "status", "lane", "topic", "node", "python", "version", "build"}
"""Whose values are few; no user, session, address or message is among them."""
NAMES = re.compile(r"\b(?:yanchat_\w+|process_\w+)\b")
ALERTS = (CONFIGS / "prometheus-alerts.yml").read_text()
DASHBOARD = json.loads((CONFIGS / "grafana-dashboard.json").read_text())
RULES = re.findall(r"- alert: (\w+)", ALERTS)
Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def samples(node: RunningNode) -> Samples:
    """All that the node tells over its admin socket: by name, by labels."""
    transport = httpx.HTTPTransport(uds=str(node.directory / "admin.sock"))
    with httpx.Client(transport=transport, base_url="http://node") as http:
        answer = http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found: Samples = defaultdict(dict)
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found[sample.name][tuple(sorted(sample.labels.items()))] = sample.value
    return found


def total(node: RunningNode, name: str) -> float:
    return sum(samples(node)[name].values())


def send(node: RunningNode, to: str, *more: str) -> None:
    assert call("send", to, "hello", "--as", "ann", "--url", node.url, *more, state=node.state).returncode == 0


def test_a_node_counts_what_becomes_of_messages(tmp_path: Path) -> None:
    with (
        RunningNode(tmp_path) as n1,
        RunningNode(tmp_path) as n2,
        running("listen", "--as", "bob", "--url", n2.url, "--ndjson", state=tmp_path) as bob,
    ):
        read_line(bob, of_stderr=True)
        for _ in range(3):
            send(n1, "bob")
        send(n1, "cid", "--wait", "accepted")
        wait_until(lambda: total(n2, "yanchat_messages_acked_total") == 3, "the acks are counted")
        wait_until(lambda: total(n1, "yanchat_messages_delivered_total") == 3, "the acks have arrived")
        wait_until(lambda: total(n1, "yanchat_peers") == 1, "the other node is known")
        seen = samples(n1)
        numbers = {name: sum(found.values()) for name, found in seen.items()}
        assert numbers["yanchat_messages_accepted_total"] == 4
        assert numbers["yanchat_messages_delivered_total"] == 3
        assert numbers["yanchat_outbox_pending_messages"] == 1
        assert 0 < numbers["yanchat_outbox_oldest_pending_age_seconds"] < 600
        assert numbers["yanchat_accept_seconds_count"] == 4
        assert numbers["yanchat_delivery_seconds_count"] == 3
        assert numbers["yanchat_delivery_seconds_sum"] < 600
        assert numbers["yanchat_accept_batch_messages_sum"] == 4
        assert numbers["yanchat_bus_published_records_total"] >= 3
        assert numbers["yanchat_peers"] == 1
        assert numbers["yanchat_ready"] == numbers["yanchat_store_healthy"] == 1
        assert 0 <= numbers["yanchat_registry_heartbeat_age_seconds"] < 60
        assert 0 <= numbers["yanchat_bus_silent_seconds"] < 60
        assert numbers["yanchat_store_commit_seconds_count"] > 0
        assert numbers["yanchat_logins_total"] == 4
        assert seen["yanchat_bus_lag_records"].keys() == {(("topic", "message"),), (("topic", "ack"),)}
        assert ("node", n1.node) in next(iter(seen["yanchat_build_info"]))
        assert total(n2, "yanchat_messages_pushed_total") == 3
        assert total(n2, "yanchat_sessions") == total(n2, "yanchat_users") == total(n2, "yanchat_connections") == 1


def test_buckets_grow_up_to_the_count(tmp_path: Path) -> None:
    """As Prometheus has it: each holds those before, and the last one, +Inf, all."""
    with RunningNode(tmp_path) as node:
        send(node, "bob", "--wait", "accepted")
        seen = samples(node)
    histograms = [name.removesuffix("_bucket") for name in seen if name.endswith("_bucket")]
    assert len(histograms) == 5
    for name in histograms:
        buckets = {float(dict(labels)["le"]): value for labels, value in seen[f"{name}_bucket"].items()}
        values = [buckets[bound] for bound in sorted(buckets)]
        assert values == sorted(values)
        assert [values[-1]] == list(seen[f"{name}_count"].values())
        assert float("inf") in buckets


def test_labels_are_bounded_and_units_are_base_units(tmp_path: Path) -> None:
    """A thousand users cost no series more than one does."""
    with RunningNode(tmp_path) as node:
        send(node, "bob", "--wait", "accepted")
        before = samples(node)
        send(node, ",".join(f"user{number}" for number in range(100)), "--wait", "accepted")
        after = samples(node)
    assert {name: set(found) for name, found in before.items()} == {name: set(found) for name, found in after.items()}
    assert {label for found in after.values() for labels in found for label, _ in labels} <= LABELS
    assert not [name for name in after if re.search(r"_(ms|millis|minutes|hours|kb|mb|percent)(_|$)", name)]


def test_a_node_whose_disk_does_not_answer_still_tells_the_rest(tmp_path: Path) -> None:
    """What must be asked of the message table is left out; an alarm about it needs the answer all the same."""
    with RunningNode(tmp_path) as node:
        assert "yanchat_outbox_pending_messages" in samples(node)
        (node.directory / "node.db").rename(node.directory / "elsewhere")
        send_ = call("send", "bob", "hello", "--as", "ann", "--url", node.url, "--timeout", "1", state=tmp_path)
        assert send_.returncode != 0
        seen = samples(node)
        assert list(seen["yanchat_store_healthy"].values()) == [0]
        assert seen["yanchat_messages_refused_total"][("status", "503"),] >= 1


def give_up(missing: Missing) -> NoReturn:
    """Prometheus cannot be had here: that is a failure where everything should be."""
    if os.environ.get("CI"):
        pytest.fail(f"Prometheus is missing; {missing}", pytrace=False)
    pytest.skip(f"Prometheus is missing; {missing}")


# -- Prometheus --------------------------------------------------------------------------------------------------------
@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[RunningNode, RunningNode, PrometheusServer]]:
    """Two nodes, with clients, and a Prometheus that scrapes them."""
    token, ports = tmp_path / "admin-token", [free_port(), free_port()]
    token.write_text(f"{TOKEN}\n")
    token.chmod(0o600)
    state = tmp_path / "state"

    def node(port: int) -> RunningNode:
        admin = {"YANCHAT_ADMIN_LISTEN": f"127.0.0.1:{port}", "YANCHAT_ADMIN_TOKEN_FILE": str(token)}
        return RunningNode(state, env=admin)

    try:
        prometheus = PrometheusServer(tmp_path / "prometheus", [f"127.0.0.1:{port}" for port in ports], token)
    except Missing as missing:
        give_up(missing)
    with (
        node(ports[0]) as n1,
        node(ports[1]) as n2,
        running("listen", "--as", "bob", "--url", n2.url, state=state) as bob,
    ):
        read_line(bob, of_stderr=True)
        prometheus.start()
        try:
            yield n1, n2, prometheus
        finally:
            prometheus.stop()


def firing(prometheus: PrometheusServer) -> set[str]:
    alerts = prometheus.ask("alerts")["alerts"]
    return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


def expressions() -> list[str]:
    """All that the dashboard asks for, as Grafana would ask it when all nodes are chosen."""
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    assert len(found) > 40
    return [expr.replace("$__rate_interval", "5s").replace("$instance", ".*") for expr in found]


def test_all_that_the_dashboard_asks_for_has_an_answer(
    watched: tuple[RunningNode, RunningNode, PrometheusServer],
) -> None:
    """Its expressions are understood by a real Prometheus, and each finds what it names."""
    n1, n2, prometheus = watched
    for node in (n1, n2):
        send(node, "bob")
    wait_until(lambda: len(prometheus.ask("query", query='up{job="yanchat"} == 1')["result"]) == 2, "both are scraped")
    for expr in expressions():
        wait_until(lambda: prometheus.ask("query", query=expr)["result"], f"something for {expr}")  # noqa: B023
    for starts in DASHBOARD["annotations"]["list"]:
        prometheus.ask("query", query=starts["expr"])
    known = set(prometheus.ask("label/__name__/values"))
    asked = {name for text in (ALERTS, *expressions()) for name in NAMES.findall(text)}
    assert asked <= known
    assert len(asked) > 30


def test_alarms_fire_when_something_is_made_to_go_wrong_and_not_before(
    watched: tuple[RunningNode, RunningNode, PrometheusServer],
) -> None:
    n1, n2, prometheus = watched
    send(n1, "bob")
    wait_until(lambda: len(prometheus.ask("query", query="yanchat_peers == 1")["result"]) == 2, "they know each other")
    rules = [rule["name"] for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert rules == RULES
    wait_until(lambda: not firing(prometheus), "nothing fires")

    (n1.directory / "node.db").rename(n1.directory / "elsewhere")
    call("send", "bob", "hello", "--as", "ann", "--url", n1.url, "--timeout", "1", state=n1.state)
    wanted = {"YanchatStoreFails", "YanchatSendsRefused", "YanchatNotReady"}
    wait_until(lambda: wanted <= firing(prometheus), f"{wanted} fire")
    assert "YanchatNodeDown" not in firing(prometheus)

    n2.kill()
    wait_until(lambda: "YanchatNodeDown" in firing(prometheus), "the dead node is noticed")


def test_nobody_reads_the_metrics_over_tcp_without_the_token(
    watched: tuple[RunningNode, RunningNode, PrometheusServer],
) -> None:
    _, _, prometheus = watched
    targets: list[dict[str, Any]] = []

    def scraped() -> bool:
        targets[:] = prometheus.ask("targets")["activeTargets"]
        return all(target["health"] == "up" for target in targets)

    wait_until(scraped, "both are scraped")
    for target in targets:
        assert httpx.get(target["scrapeUrl"]).status_code == 401


def test_promtool_finds_no_mistake_in_the_rules_and_their_tests_hold() -> None:
    try:
        assert f"{len(RULES)} rules found" in promtool("check", "rules", "prometheus-alerts.yml")
        promtool("check", "config", "--syntax-only", "prometheus.yml")
        promtool("test", "rules", "prometheus-alerts.test.yml")
    except Missing as missing:
        give_up(missing)


def test_each_alarm_has_a_test_and_a_passage_that_says_what_to_do() -> None:
    tested = re.findall(r"- name: (\w+)$", (CONFIGS / "prometheus-alerts.test.yml").read_text(), re.MULTILINE)
    assert tested == RULES
    told = re.findall(r"^\| `(Yanchat\w+)` ", (CONFIGS.parent / "docs" / "operating.md").read_text(), re.MULTILINE)
    assert sorted(told) == sorted(RULES)
