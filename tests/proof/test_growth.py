"""`scripts/growth` in small: each measurement closes loops, and leaves figures and a plot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.proof.growth.fill import Table
from tests.proof.growth.site import ROOT
from tests.running import RunningNode, call, environment


def growth(out: Path, *arguments: str) -> dict[str, Any]:
    """Run it in this interpreter's environment; growth.json."""
    command = [sys.executable, "-m", "tests.proof.growth.run", "--quick", "--out", str(out), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((out / "growth.json").read_text())
    return found


def test_figures_and_plots_of_each_measurement_are_kept(tmp_path: Path) -> None:
    """One that is repeated alone leaves the others as they are."""
    first = growth(tmp_path, "--only", "connections")
    assert [point["connections"] for point in first["connections"]["points"]] == [0, 50]
    assert first["connections"]["points"][1]["memory_kib_per_connection"] < 1000
    both = growth(tmp_path, "--only", "slow", "storm")
    assert both["connections"] == first["connections"]
    for name in ("connections", "slow"):
        assert both[name]["notes"] == []
        assert both[name]["machine"]["cores"] >= 1
        for point in both[name]["points"]:
            assert point["loops_per_s"] > 0
            assert 0 < point["p50_ms"] <= point["p99_ms"]
            assert point["processor_us_per_loop"] > 0
            assert 1 < point["memory_mib"] < 10_000
    none, drips, deaf = both["slow"]["points"]
    assert none["pending_each"] is None
    assert min(drips["pending_each"], deaf["pending_each"]) >= 10  # nothing is lost of what they do not read
    for storm in both["storm"]["points"]:
        assert storm["lease_kept"]
        assert storm["registry_consistent"]
        assert storm["sessions"] == storm["there"][-1] == storm["clients"] == 50
        assert min(storm["there"]) == 0
    for name in both:
        plot = (tmp_path / f"{name}.svg").read_text()
        assert ElementTree.fromstring(plot).tag.endswith("svg")
        assert len(plot) < 60_000


@pytest.mark.parametrize("settled", [True, False])
def test_rows_that_were_put_there_are_a_node_s_own(tmp_path: Path, settled: bool) -> None:
    """Its books balance, and it finds them by their ids."""
    with RunningNode(tmp_path) as node:
        assert node.terminate() == 0
        (node.directory / "node.db").unlink()
        table = Table(node.directory / "node.db", 300, settled=settled)
        table.grow(100)
        table.grow(300)
        node.start()
        audit = call("audit", "--json", state=tmp_path)
        assert audit.returncode == 0, audit.stdout + audit.stderr
        state = "delivered" if settled else "pending"
        rows = json.loads(call("outbox", "--state", state, "--limit", "1000", "--json", state=tmp_path).stdout)
        assert len(rows) == 300
        trace = call("trace", rows[0]["message_id"], "--json", state=tmp_path)
        assert trace.returncode == 0, trace.stdout + trace.stderr
