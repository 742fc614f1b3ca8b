"""Admin over TCP: to whoever has the token, and to nobody else; or the node does not start."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest

from tests.admin.asking import address_of, admin, token_file, with_tcp
from tests.running import RunningNode, call, environment
from yanchat.admin.client import NotRunning, Remote, ask_node
from yanchat.config import AdminSettings
from yanchat.config.load import load
from yanchat.errors import ConfigError, NotAllowed

TOKEN = "0123456789abcdef-0123456789"


def test_the_whole_of_it_is_served_over_tcp_to_whoever_has_the_token(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "s", env=with_tcp(token_file(tmp_path, TOKEN))) as node, admin(node, TOKEN) as http:
        assert http.get("/healthz").json()["healthy"] is True
        assert http.post("/message/send", json={"to": "bob", "message": "hello"}).status_code == 200
        assert http.get("/outbox").json()["rows"][0]["to"] == "bob"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "")],
        [("Authorization", "Bearer")],
        [("Authorization", f"Bearer {TOKEN}x")],
        [("Authorization", f"Bearer {TOKEN[:-1]}")],
        [("Authorization", TOKEN)],
        [("Authorization", f"Basic {TOKEN}")],
        [("Authorization", "Bearer wrong"), ("Authorization", f"Bearer {TOKEN}")],
        [("X-Authorization", f"Bearer {TOKEN}")],
    ],
)
@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/openapi.json", "/nothing", f"/healthz?token={TOKEN}"])
def test_nobody_is_told_anything_without_it(tcp_node: RunningNode, headers: list[tuple[str, str]], path: str) -> None:
    """401 with one and the same sentence, also for what there is not."""
    response = httpx.get(f"http://{address_of(tcp_node)}{path}", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert list(response.json()) == ["error"]
    assert tcp_node.node not in response.text


@pytest.fixture(scope="module")
def tcp_node(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    directory = tmp_path_factory.mktemp("t")
    with RunningNode(directory / "s", env=with_tcp(token_file(directory, TOKEN))) as node:
        yield node


def test_an_order_without_the_token_is_not_even_read(tcp_node: RunningNode) -> None:
    """A stranger's body is answered before it has come, and its connection closed."""
    host, _, port = address_of(tcp_node).rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"POST /drain HTTP/1.1\r\nHost: n\r\nContent-Length: 1000000\r\n\r\n")
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    assert answer.startswith(b"HTTP/1.1 401")
    assert tcp_node.process is not None
    assert tcp_node.process.poll() is None


def test_the_token_is_in_no_log(tmp_path: Path) -> None:
    env = with_tcp(token_file(tmp_path, TOKEN)) | {"YANCHAT_LOG_LEVEL": "debug"}
    with RunningNode(tmp_path / "s", env=env) as node, admin(node, TOKEN) as http:
        http.get("/healthz")
        http.get("/healthz", headers={"Authorization": f"Bearer {TOKEN}x"})
        node.terminate()
        assert TOKEN not in node.log.read_text()


async def test_a_node_is_asked_over_tcp_like_over_its_socket(tcp_node: RunningNode) -> None:
    """And whoever has another token, or asks where nothing is, is told so."""
    address = address_of(tcp_node)
    assert (await ask_node(Remote(address, TOKEN), "GET", "/readyz"))["node"] == tcp_node.node
    with pytest.raises(NotAllowed, match=r"admin\.token_file"):
        await ask_node(Remote(address, "x" * 20), "GET", "/readyz")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(NotRunning, match="Nothing answers"):
            await ask_node(Remote(f"127.0.0.1:{nobody.getsockname()[1]}", TOKEN), "GET", "/readyz")
    assert TOKEN not in repr(Remote(address, TOKEN))


def test_the_web_libraries_are_loaded_at_the_first_question_over_tcp(tmp_path: Path) -> None:
    """A node starts as quickly with TCP as without: nothing that only admin needs is loaded before."""
    with RunningNode(tmp_path / "s", env=with_tcp(token_file(tmp_path, TOKEN)) | {"PYTHONVERBOSE": "1"}) as node:
        assert "import 'yanchat.admin.server'" in node.log.read_text()
        for library in ("starlette", "hypercorn", "prometheus_client"):
            assert f"import '{library}" not in node.log.read_text()
        with admin(node, TOKEN) as http:
            assert http.get("/healthz").status_code == 200
        assert "import 'starlette" in node.log.read_text()


# -- a node that cannot keep its admin to itself does not start --------------------------------------------------------
@pytest.mark.parametrize(
    ("token", "mode", "says"),
    [
        ("", 0o600, "holds no token"),
        ("\n\n", 0o600, "holds no token"),
        ("short", 0o600, "holds no token"),
        ("a token with spaces", 0o600, "holds no token"),
        (TOKEN, 0o644, "others may use"),
        (TOKEN, 0o602, "others may use"),
    ],
)
def test_a_token_that_protects_nothing_is_refused_at_the_start(
    tmp_path: Path, token: str, mode: int, says: str
) -> None:
    """Exit code 78, with what to do; the token itself is not shown."""
    file = token_file(tmp_path, token, mode)
    result = call("serve", "--listen", "127.0.0.1:0", state=tmp_path / "s", env=with_tcp(file))
    assert result.returncode == 78
    assert says in result.stderr
    assert str(file) in result.stderr
    assert TOKEN not in result.stderr


def test_a_missing_token_is_refused_at_the_start(tmp_path: Path) -> None:
    result = call("serve", "--listen", "127.0.0.1:0", state=tmp_path / "s", env=with_tcp(tmp_path / "none"))
    assert (result.returncode, result.stderr.count("\n")) == (78, 1)
    assert "none cannot be read: No such file or directory" in result.stderr


def test_a_token_that_its_group_may_read_will_do(tmp_path: Path) -> None:
    """As one has that root owns and the node's group reads."""
    with RunningNode(tmp_path / "s", env=with_tcp(token_file(tmp_path, TOKEN, 0o640))):
        pass


def test_tcp_without_a_token_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"admin\.listen .* set admin\.token_file"):
        load(None, {"YANCHAT_ADMIN_LISTEN": "127.0.0.1:9"}, {})


def test_an_address_where_admin_is_reached_needs_one_where_it_listens() -> None:
    with pytest.raises(ConfigError, match=r"admin\.advertise .* set that, too"):
        load(None, {"YANCHAT_ADMIN_ADVERTISE": "chat-1:9"}, {})


@pytest.mark.parametrize("key", ["LISTEN", "ADVERTISE"])
@pytest.mark.parametrize("address", ["9090", "host", "host:99999", "host:", ":1"])
def test_an_address_that_is_none_is_refused(key: str, address: str) -> None:
    with pytest.raises(ConfigError, match=rf"admin\.{key.lower()} = '{address}' is not HOST:PORT"):
        load(None, {f"YANCHAT_ADMIN_{key}": address}, {})


def test_who_listens_everywhere_says_where_he_is_reached(tmp_path: Path) -> None:
    env = {"YANCHAT_ADMIN_LISTEN": "0.0.0.0:0", "YANCHAT_ADMIN_TOKEN_FILE": str(token_file(tmp_path, TOKEN))}
    result = call("serve", "--listen", "127.0.0.1:0", state=tmp_path / "s", env=env)
    assert result.returncode == 78
    assert "admin.advertise" in result.stderr
    with RunningNode(tmp_path / "s", env=env | {"YANCHAT_ADMIN_ADVERTISE": "chat-1.example.org:9090"}) as node:
        assert address_of(node) == "chat-1.example.org:9090"


def test_a_taken_address_ends_the_start(tmp_path: Path) -> None:
    """Exit code 4."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        env = with_tcp(token_file(tmp_path, TOKEN)) | {"YANCHAT_ADMIN_LISTEN": f"127.0.0.1:{other.getsockname()[1]}"}
        result = call("serve", "--listen", "127.0.0.1:0", state=tmp_path / "s", env=env)
    assert result.returncode == 4
    assert "admin.listen" in result.stderr


def test_without_the_setting_there_is_no_address(tmp_path: Path) -> None:
    assert AdminSettings().listen == ""
    with RunningNode(tmp_path / "s", env=environment()) as node:
        assert address_of(node) == ""
