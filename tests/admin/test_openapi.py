"""GET /openapi.json is true: it names every route, and what it says of them is what they take and answer."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from starlette.routing import Route

from tests.admin.asking import address_of, admin, token_file, with_tcp
from tests.node.cluster import open_cluster
from tests.running import RunningNode, environment
from yanchat.admin.app import build_app
from yanchat.admin.cluster import Draining
from yanchat.admin.control import Control
from yanchat.admin.openapi import OPERATIONS
from yanchat.config import LimitSettings

TOKEN = "0123456789abcdef-0123456789"
SCHEMATHESIS = Path(sysconfig.get_path("scripts"), "schemathesis")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    directory = tmp_path_factory.mktemp("t")
    with RunningNode(directory / "s", env=with_tcp(token_file(directory, TOKEN))) as running:
        with admin(running) as http:
            for number in range(3):
                http.post("/message/send", json={"to": ["bob", "cid"], "message": "m", "requestId": f"r{number}"})
        yield running


def ask_everything(document: Path, url: str, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Let schemathesis ask what the document allows, and what it forbids, with all of its checks."""
    return subprocess.run(
        [
            SCHEMATHESIS,
            "run",
            document,
            *("--url", url, "--header", f"Authorization: Bearer {TOKEN}", "--checks", "all"),
            *("--max-examples", "15", "--seed", "1", "--generation-database", "none", "--no-color"),
            *("--warnings", "off", *options),
        ],
        cwd=directory,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


async def test_every_route_is_in_the_document_and_no_other() -> None:
    async with open_cluster("n1") as cluster:
        running = cluster.nodes["n1"]
        control = Control(lambda: None, lambda: None, dict, int, LimitSettings)
        app = build_app(running.work, running.store, running.store, control)
    served = {
        (method.lower(), route.path)
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert served == {(one.method, one.path) for one in OPERATIONS}


def test_what_it_says_is_so(node: RunningNode, tmp_path: Path) -> None:
    """Every answer is as it says, what it allows is accepted, what it forbids is refused, nothing without a token.

    All but /drain, which would end the test.
    """
    file = tmp_path / "document.json"
    with admin(node) as http:
        file.write_text(http.get("/openapi.json").text)
    done = ask_everything(file, f"http://{address_of(node)}", tmp_path, "--exclude-path", "/drain")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{node.log.read_text()}"
    assert f"{len(OPERATIONS) - 1} selected / {len(OPERATIONS)} total" in done.stdout
    assert "admin.failed" not in node.log.read_text()


@pytest.mark.parametrize(
    ("path", "type_", "key", "lie"),
    [
        ("/healthz", "Health", "healthy", {"type": "string"}),
        ("/outbox", "ShownRow", "accepted_at", {"type": "null"}),
        ("/message/send", "Push", "requestId", {"type": "integer"}),
    ],
)
def test_a_document_that_lies_is_found_out(
    node: RunningNode, tmp_path: Path, path: str, type_: str, key: str, lie: object
) -> None:
    """So the test above can fail."""
    with admin(node) as http:
        document = http.get("/openapi.json").json()
    document["components"]["schemas"][type_]["properties"][key] = lie
    file = tmp_path / "lie.json"
    file.write_text(json.dumps(document))
    done = ask_everything(file, f"http://{address_of(node)}", tmp_path, "--include-path", path)
    assert done.returncode == 1, done.stdout


def test_what_drain_answers_is_as_the_document_says(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "s") as running, admin(running) as http:
        response = http.post("/drain")
        assert response.status_code == 202
        assert msgspec.convert(response.json(), Draining) == Draining(running.node, running.pid)
        assert running.wait() == 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/kick", 405), ("POST", "/outbox", 405), ("PUT", "/message/send", 405)],
)
def test_what_there_is_not_is_said_in_a_sentence(node: RunningNode, method: str, path: str, status: int) -> None:
    with admin(node) as http:
        response: httpx.Response = http.request(method, path)
    assert response.status_code == status
    assert path in response.json()["error"]
    assert (status == 405) == ("allow" in response.headers)
