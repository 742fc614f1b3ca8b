"""Another program answers where the registry says that a node does: admin.advertise is wrong, or an address moved."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.admin.asking import token_file, with_tcp
from tests.cli.calls import quick
from tests.running import RunningNode

TOKEN = "0123456789abcdef-0123456789"
DEEP = "[" * 100_000


class Foreign:
    """Answers everything in the same way, whatever is asked."""

    def __init__(self) -> None:
        self.status, self.body, self.headers = 200, "{}", {"Content-Type": "application/json"}

    @contextmanager
    def serving(self) -> Iterator[str]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805 - http.server's word
                body = self.body.encode()
                handler.send_response(self.status)
                for name, value in {**self.headers, "Content-Length": str(len(body))}.items():
                    handler.send_header(name, value)
                handler.end_headers()
                handler.wfile.write(body)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"127.0.0.1:{server.server_port}"
            server.shutdown()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Foreign, RunningNode, Path, Path]]:
    """A node whose admin address is another program's; the token's file; a state directory with the registry alone."""
    directory, foreign = tmp_path_factory.mktemp("site"), Foreign()
    token, elsewhere = token_file(directory, TOKEN), directory / "e"
    elsewhere.mkdir()
    with foreign.serving() as address:
        env = {**with_tcp(token), "YANCHAT_ADMIN_ADVERTISE": address}
        with RunningNode(directory / "s", env=env) as node:
            for name in ("cluster.db", "cluster.db-wal", "cluster.db-shm"):
                (elsewhere / name).symlink_to(node.state / name)
            yield foreign, node, token, elsewhere


JSON, TEXT = {"Content-Type": "application/json"}, {"Content-Type": "text/plain"}
ANSWERS = [
    (200, "{}", JSON),
    (200, "[]", JSON),
    (200, "null", JSON),
    (200, '{"pid": "x", "kicked": [{}], "rows": 1, "ready": []}', JSON),
    (200, "{", JSON),
    (200, DEEP, JSON),
    (503, DEEP, JSON),
    (404, "[]", JSON),
    (200, "<html>welcome</html>", TEXT),
    (200, 'a{b="', TEXT),
    (200, "no gzip", {**TEXT, "Content-Encoding": "gzip"}),
    (302, "", {**TEXT, "Location": "http://127.0.0.1:1/"}),
]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # httpx, where an answer is no gzip
@pytest.mark.parametrize("number", range(len(ANSWERS)))
def test_what_no_node_answers_is_named(number: int, site: tuple[Foreign, RunningNode, Path, Path]) -> None:
    """By every command that asks there; and nobody is told that the node has stopped, or is well."""
    foreign, node, token, elsewhere = site
    foreign.status, foreign.body, foreign.headers = ANSWERS[number]
    for order in (
        ("drain", "--node", node.node),
        ("kick", "--openid", "bob"),
        ("trace", "0" * 32),
        ("trace", "--request-id", "r", "--from", "ann"),
        ("audit",),
        ("top", "--json", "--interval", "0.2"),
        ("doctor", "--json"),
    ):
        done = quick(*order, "--admin-token-file", token, state=elsewhere)
        said = done.stdout + done.stderr
        assert "should not happen" not in said, said
        assert "Traceback" not in said
        assert done.returncode in {0, 1, 3, 4, 10}, said
        if order[0] in {"drain", "kick", "audit"}:
            assert done.returncode in {1, 3, 4}
            assert done.stdout == "", said
        if order[0] == "doctor":
            (ready,) = [one for one in json.loads(done.stdout) if one["check"] == "nodes.ready"]
            assert ready["status"] == "fail"
            assert ready["detail"].startswith(f"{node.node} is not ready: The node")
    if foreign.status == 200 and foreign.headers is JSON:
        done = quick("drain", "--node", node.node, "--admin-token-file", token, state=elsewhere)
        assert (done.returncode, "answers what is not understood" in done.stderr) == (4, True)
