"""Tokens as a developer meets them: minted, handed to `send` and `listen`, refused in words."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from tests.cli.terminal import on_terminal
from tests.gateway.credentials import SECRET, jwk, pair
from tests.running import RunningNode, call, read_line, running


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "secret"
    file.write_text(SECRET + "\n")
    return file


@pytest.fixture(scope="module")
def env(key_file: Path) -> dict[str, str]:
    return {"YANCHAT_AUTH_MODE": "jwt", "YANCHAT_AUTH_KEY_FILE": str(key_file), "YANCHAT_AUTH_AUDIENCE": "chat"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> Iterator[RunningNode]:
    with RunningNode(tmp_path_factory.mktemp("node"), env=env) as running:
        yield running


def mint(env: dict[str, str], *options: str) -> str:
    done = call("token", *options, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_token_says_who_until_when_and_for_whom(env: dict[str, str]) -> None:
    """The audience and the issuer are those of the settings; stdout has the token and nothing else."""
    minted = mint({**env, "YANCHAT_AUTH_ISSUER": "me"}, "--sub", "ann", "--name", "Ann", "--ttl", "8h")
    claims = jwt.decode(minted, SECRET, ["HS256"], audience="chat", issuer="me")
    assert (claims["sub"], claims["name"]) == ("ann", "Ann")
    assert abs(claims["exp"] - time.time() - 8 * 3600) < 60
    shown = json.loads(mint(env, "--sub", "ann", "--json"))
    assert set(shown) == {"token", "sub", "expires_at"}
    assert abs(shown["expires_at"] - time.time() - 3600) < 60


def test_on_a_terminal_a_token_stays_one_line(env: dict[str, str]) -> None:
    """So that it can be copied."""
    code, shown = on_terminal("token", "--sub", "ann", "--name", "x" * 100, **env)
    assert (code, shown.splitlines()[0].count("."), len(shown.splitlines()[0]) > 200) == (0, 2, True)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_private_key_signs_for_nodes_that_have_the_public_one(tmp_path: Path, algorithm: str) -> None:
    keys, private, public = pair(algorithm), tmp_path / "private.pem", tmp_path / "public.pem"
    private.write_bytes(keys.private_pem())
    public.write_bytes(keys.public)
    minted = mint({}, "--sub", "ann", "--key-file", str(private), "--kid", "k1")
    assert jwt.get_unverified_header(minted)["kid"] == "k1"
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [jwk(keys, "k1")]}))
    env = {
        "YANCHAT_AUTH_MODE": "jwt",
        "YANCHAT_AUTH_ALGORITHMS": algorithm,
        "YANCHAT_AUTH_JWKS_FILE": str(tmp_path / "jwks.json"),
    }
    with RunningNode(tmp_path / "node", env=env) as node:
        done = call("send", "ann", "to myself", "--wait", "accepted", "--token", minted, state=node.state)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--sub", "ann ben"), 2, "--sub 'ann ben'"),
        (("--sub", "ann", "--ttl", "soon"), 2, '--ttl soon is not possible: write a duration as "500ms", "5s"'),
        (("--sub", "ann", "--ttl", "90"), 2, "--ttl 90"),
        (("--sub", "ann", "--ttl", "0s"), 2, "--ttl 0s"),
        (("--sub", "ann", "--name", "x" * 200), 2, "--name"),
        (("--sub", "ann", "--key-file", "/nowhere"), 78, "--key-file: /nowhere cannot be read"),
        ((), 2, "--sub"),
    ],
)
def test_what_cannot_be_minted_is_said(env: dict[str, str], options: tuple[str, ...], code: int, words: str) -> None:
    done = call("token", *options, env=env)
    assert done.returncode == code
    assert words in done.stderr
    assert done.stdout == ""


def test_without_a_key_it_is_said_how_to_make_one() -> None:
    done = call("token", "--sub", "ann")
    assert done.returncode == 2
    assert "openssl rand -hex 32" in done.stderr


def test_a_public_key_signs_nothing_and_another_family_is_warned_about(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "public.pem").write_bytes(pair("ES256").public)
    (tmp_path / "private.pem").write_bytes(pair("ES256").private_pem())
    done = call("token", "--sub", "ann", "--key-file", tmp_path / "public.pem", env=env)
    assert (done.returncode, "holds no private key" in done.stderr) == (78, True)
    done = call("token", "--sub", "ann", "--key-file", tmp_path / "private.pem", env=env)
    assert (done.returncode, "take HS256 only; this is ES256" in done.stderr) == (0, True)


def test_listen_and_send_are_whoever_the_token_is_of(node: RunningNode, env: dict[str, str]) -> None:
    """Given as an option or in YANCHAT_TOKEN; the name is the token's, too."""
    ann = mint(env, "--sub", "ann", "--name", "Ann")
    bob = {"YANCHAT_TOKEN": mint(env, "--sub", "bob")}
    with running("listen", "--count", "1", "--ndjson", state=node.state, env=bob) as listener:
        done = call("send", "bob", "hello", "--token", ann, "--name", "Eve", state=node.state)
        assert done.returncode == 0, done.stderr
        heard = json.loads(read_line(listener))
        assert (heard["from"], heard["from_name"], heard["text"]) == ("ann", "Ann", "hello")
        listener.communicate(timeout=20)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ((), 5, "asks for a token"),
        (("--token", "no.token.at-all"), 2, "is no JWT"),
        (("--as", "carol", "--token", "{ann}"), 5, "another user"),
        (("--token", "{late}"), 5, "has expired"),
        (("--token", "{other}"), 5, "signature is wrong"),
    ],
)
def test_a_refused_token_is_said_in_one_sentence_that_does_not_show_it(
    node: RunningNode, env: dict[str, str], options: tuple[str, ...], code: int, words: str
) -> None:
    claims = {"sub": "ann", "aud": "chat", "exp": 1}
    tokens = {
        "ann": mint(env, "--sub", "ann"),
        "late": jwt.encode(claims, SECRET),
        "other": jwt.encode({**claims, "exp": 1 << 40}, "y" * 32),
    }
    given = [option.format(**tokens) for option in options]
    done = call("send", "bob", "hello", *given, state=node.state)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert not any(token.split(".")[2] in done.stderr for token in tokens.values())


def test_listen_ends_when_its_token_does(tmp_path: Path, key_file: Path, env: dict[str, str]) -> None:
    """It would not be let in again: it says so, and does not try."""
    with RunningNode(tmp_path / "node", env={**env, "YANCHAT_AUTH_LEEWAY": "0s"}) as node:
        short = mint(env, "--sub", "ann", "--ttl", "6s")  # more than a start takes
        done = call("listen", "--token", short, state=node.state)
        assert done.returncode == 4
        assert "the token has expired" in done.stderr


def test_listen_without_a_name_or_a_token_says_what_to_give() -> None:
    done = call("listen")
    assert (done.returncode, "--as OPENID" in done.stderr) == (2, True)
