"""What nobody may see: keys, tokens, passwords, and what people write. Not in logs, help, settings, metrics, errors."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.gateway.credentials import SECRET, bare, mint, pair
from tests.gateway.raw import BINARY, CONT, TEXT, Raw, ack, frame, send, text
from tests.running import RunningNode, call, environment, running, wait_until

HS = pair("HS256")
WORDS = "Zauberwort-4711"
ADMIN_TOKEN = "admin-token-0123456789abcdef"
PASSWORD = "geheim-815"


class Scene(NamedTuple):
    node: RunningNode
    env: dict[str, str]
    admin: str
    token: str


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A node that logs everything, with a key and an admin token."""
    directory = tmp_path_factory.mktemp("scene")
    for name, content in (("key", SECRET), ("admin", ADMIN_TOKEN)):
        (directory / name).write_text(content)
        (directory / name).chmod(0o600)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        admin = f"127.0.0.1:{free.getsockname()[1]}"
    env = {
        "YANCHAT_AUTH_MODE": "jwt",
        "YANCHAT_AUTH_KEY_FILE": str(directory / "key"),
        "YANCHAT_ADMIN_LISTEN": admin,
        "YANCHAT_ADMIN_TOKEN_FILE": str(directory / "admin"),
        "YANCHAT_LIMITS_MESSAGE_SIZE": "4KiB",
        "YANCHAT_LIMITS_USER_MESSAGES_PER_SECOND": "2",
    }
    with RunningNode(directory / "state", "--log-level", "debug", env=env) as node:
        yield Scene(node, env, admin, mint(HS, sub="ann", name="Ann"))


def login(scene: Scene, token: str) -> Raw:
    raw = Raw(scene.node.url)
    raw.login(target="/ws", headers={"Authorization": f"Bearer {token}"})
    return raw


def parts(token: str) -> list[str]:
    """Of a token, what is nobody else's business."""
    return [part for part in token.split(".")[1:] if len(part) > 8]


def test_a_log_at_its_fullest_has_no_token_no_key_and_no_word_that_was_written(scene: Scene) -> None:
    """Whatever a client does with them: good, malformed, too large, too fast, in the wrong place, unread."""
    bob = mint(HS, sub="bob")
    with login(scene, scene.token) as ann, login(scene, bob) as recipient:
        ann.say(text(send("bob", WORDS, requestId="r-1")))
        push = recipient.json(2)
        recipient.say(text(ack(push)))
        assert ann.json(17)["messageId"] == push["messageId"]
        for n in range(20):
            ann.say(text(send("nobody", f"{WORDS} {n}")))
        assert {ann.json(0)["status"] for _ in range(20)} == {200, 429}
    deep = b'{"type":1,"params":{"message":"' + WORDS.encode() + b'","toMessageId":' + b"[" * 1000
    for said in (
        text({"type": 1, "params": {"message": WORDS}}) * 3,
        text(WORDS) * 3,
        text(deep) * 3,
        text({"type": 99, "message": WORDS}) * 3,
        text(send("bob", WORDS * 1000)),
        text(b'{"type":1,"params":{"message":"' + WORDS.encode() + b'\xff"}}'),
        frame(BINARY, WORDS.encode()),
        frame(TEXT, WORDS.encode(), fin=False) + frame(CONT, WORDS.encode(), rsv=1),
        frame(8, b"\x03\xe8" + WORDS.encode()),
    ):
        with login(scene, scene.token) as client:
            client.say(said)
            assert client.ends().code != 1006
    with login(scene, scene.token) as client:
        client.say(text(send("nobody", WORDS))[:-3])
        client.reset()
    expired, foreign = mint(HS, exp=1), mint(HS._replace(private=b"y" * 32))
    forged = bare({"alg": "none"}, {"sub": "ann", "name": WORDS, "exp": 1 << 40})
    for target, token in [
        *(("/ws", token) for token in (expired, foreign, forged, scene.token + "x", f"{WORDS}.x.y")),
        (f"/ws?access_token={scene.token}", ""),
        (f"/nowhere?token={scene.token}", ""),
        (f"/ws?openid={WORDS}", scene.token),
    ]:
        with Raw(scene.node.url) as raw:
            raw.say(raw.request(target=target, headers={"Authorization": f"Bearer {token}"} if token else {}))
            answer = raw.answer()
            assert 400 <= answer.status < 500
            assert not any(part.encode() in answer.body for part in [*parts(token), *parts(scene.token), WORDS])
    order = {"to": ["bob"], "message": WORDS, "fileType": 0, "from": "shop", "requestId": "o-1"}
    for token in (ADMIN_TOKEN, "wrong-" + ADMIN_TOKEN):
        headers = {"Authorization": f"Bearer {token}"}
        for body in (json.dumps(order), json.dumps({**order, "fileType": WORDS}), f'{{"{WORDS}'):
            httpx.post(f"http://{scene.admin}/message/send", content=body, headers=headers)
        for path in (
            "/metrics",
            f"/trace/{push['messageId']}",
            "/clients",
            "/servers",
            "/healthz",
            "/readyz",
            "/nowhere",
        ):
            shown = httpx.get(f"http://{scene.admin}{path}", headers=headers).text
            assert not any(secret in shown for secret in (SECRET, ADMIN_TOKEN, WORDS, *parts(scene.token))), path
    wait_until(lambda: "login.refused" in scene.node.log.read_text(), "refusals are in the log")
    log = scene.node.log.read_text()
    assert "message.accepted" in log, "it is a full one"
    tokens = [scene.token, bob, expired, foreign, forged]
    for secret in (SECRET, ADMIN_TOKEN, WORDS, *(part for token in tokens for part in parts(token))):
        assert secret not in log


def test_who_was_refused_and_why_is_in_the_log_without_his_token(scene: Scene) -> None:
    with Raw(scene.node.url, source="127.0.0.77") as raw:
        raw.say(raw.request(target="/ws", headers={"Authorization": f"Bearer {mint(HS, exp=1)}"}))
        raw.answer()
    wait_until(lambda: "127.0.0.77" in scene.node.log.read_text(), "it is logged")
    (line,) = [json.loads(one) for one in scene.node.log.read_text().splitlines() if "127.0.0.77" in one]
    assert (line["event"], line["level"], line["status"]) == ("login.refused", "info", 401)
    assert line["reason"] == "The token has expired; get a new one."


def test_a_flood_of_refusals_does_not_fill_the_log(scene: Scene) -> None:
    """The node sums it up by itself when the flood is over."""
    expired = {"Authorization": f"Bearer {mint(HS, exp=1)}"}

    def summed_up() -> bool:
        for _ in range(50):
            with Raw(scene.node.url) as raw:
                raw.say(raw.request(target="/ws", headers=expired))
                raw.answer()
        return "login.refused_more" in scene.node.log.read_text()

    wait_until(summed_up, "it is said how many more there were")


@pytest.mark.parametrize("command", ["send", "listen", "bench", "serve", "token"])
def test_help_does_not_show_what_is_in_the_environment(scene: Scene, command: str) -> None:
    done = call(
        command,
        "--help",
        env={**scene.env, "YANCHAT_TOKEN": scene.token, "YANCHAT_REDIS_URL": f"redis://:{PASSWORD}@h"},
    )
    assert done.returncode == 0
    assert not any(part in done.stdout for part in (*parts(scene.token), PASSWORD))


@pytest.mark.parametrize(
    "url",
    [
        f"redis://chat:{PASSWORD}@127.0.0.1:1/0",
        f"redis://chat:a@{PASSWORD}@127.0.0.1:1/0",
        f"redis://chat@there:{PASSWORD}@127.0.0.1:1/0",
        f"redis://chat:a/{PASSWORD}@127.0.0.1:1/0",
        f"redis://127.0.0.1:1/0?db=1&password={PASSWORD}",
        f"unix:///run/redis?password={PASSWORD}",
    ],
)
def test_settings_are_shown_without_passwords(tmp_path: Path, scene: Scene, url: str) -> None:
    file = tmp_path / "yanchat.toml"
    file.write_text(
        f'[redis]\nurl = "{url}"\n'
        f'[kafka.librdkafka]\n"sasl.password" = "{PASSWORD}"\n"ssl.key.password" = "{PASSWORD}"\n'
    )
    for options in ((), ("--json",), ("--origin",)):
        done = call("config", "show", *options, "--config", file, env=scene.env)
        assert done.returncode == 0, done.stderr
        assert not any(secret in done.stdout + done.stderr for secret in (PASSWORD, SECRET, ADMIN_TOKEN))


@pytest.mark.parametrize(
    "env",
    [
        {"YANCHAT_REDIS_URL": f"redis://chat:{PASSWORD}@127.0.0.1:1/0"},
        {"YANCHAT_REDIS_URL": f"redis://chat:{PASSWORD}@127.0.0.1:port/0"},
        {"YANCHAT_REDIS_URL": f"http://chat:{PASSWORD}@127.0.0.1:1/0"},
        {"YANCHAT_REDIS_URL": f"redis://chat:{PASSWORD}@[::1/0"},
        {"YANCHAT_REDIS_URL": f"redis+sentinel://chat:{PASSWORD}@127.0.0.1:1/service/0"},
        {"YANCHAT_REDIS_URL": f"rediss://chat:{PASSWORD}@127.0.0.1:1/0"},
    ],
)
def test_no_error_shows_the_password_of_a_url_not_even_with_its_traceback(tmp_path: Path, env: dict[str, str]) -> None:
    for options in ((), ("--debug",)):
        done = call("servers", "--profile", "cluster", *options, state=tmp_path, env=env)
        assert done.returncode in (4, 78), done.stderr
        assert PASSWORD not in done.stdout + done.stderr


def test_a_node_that_cannot_reach_its_servers_logs_no_password(tmp_path: Path) -> None:
    file = tmp_path / "yanchat.toml"
    file.write_text(
        f'[node]\nprofile = "cluster"\n[redis]\nurl = "redis://chat:{PASSWORD}@127.0.0.1:1/0"\n'
        f'[kafka]\nbrokers = ["127.0.0.1:1"]\n[kafka.librdkafka]\n"security.protocol" = "SASL_PLAINTEXT"\n'
        f'"sasl.mechanism" = "PLAIN"\n"sasl.username" = "chat"\n"sasl.password" = "{PASSWORD}"\n'
    )
    with (tmp_path / "log").open("wb") as log:
        options = ("--listen", "127.0.0.1:0", "--log-level", "debug", "--config", str(file), "--debug")
        with running("serve", *options, state=tmp_path / "s", stderr=log) as process:
            wait_until(lambda: (tmp_path / "log").stat().st_size > 0 or process.poll() is not None, "it says something")
            process.terminate()
            process.wait(20)
    assert PASSWORD not in (tmp_path / "log").read_text()


FAULTY = """
from yanchat.cli.logs import configure_logs
from yanchat.config import LogSettings
import sys, structlog
configure_logs(LogSettings(format=sys.argv[1], level="debug"))
def handle(text):
    raise ZeroDivisionError("a fault of ours")
try:
    handle(sys.argv[2])
except ZeroDivisionError:
    structlog.get_logger().exception("edge.connection_failed")
"""


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_traceback_in_the_log_shows_where_and_not_what(form: str) -> None:
    """Lines of code, and the values of no variable."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTY, form, WORDS], env=environment(), capture_output=True, text=True, check=True
    )
    assert "ZeroDivisionError" in done.stderr
    assert "handle" in done.stderr
    assert WORDS not in done.stderr


def test_a_secret_that_everybody_may_read_is_said_when_the_node_starts(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(SECRET)
    key.chmod(0o644)
    with RunningNode(tmp_path / "s", env={"YANCHAT_AUTH_MODE": "jwt", "YANCHAT_AUTH_KEY_FILE": str(key)}) as node:
        (line,) = [json.loads(one) for one in node.log.read_text().splitlines() if "secret.readable" in one]
        assert (line["level"], line["file"]) == ("warning", str(key))
