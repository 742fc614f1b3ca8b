"""Auth mode jwt: who a client is says its token, where it may stand, and when the session ends with it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.gateway.conftest import Gate, Start
from tests.gateway.credentials import SECRET, Authority, Pair, bare, jwk, mint, pair
from tests.gateway.raw import Answer, Raw, ack, send, text
from tests.running import wait_until

HS, RS, ES, ED = pair("HS256"), pair("RS256"), pair("ES256"), pair("EdDSA")


def ask(gate: Gate, token: str | None, *, target: str = "/ws", **headers: str) -> Answer:
    """Connect with this token in the header field; the node's answer."""
    fields = {**({"Authorization": f"Bearer {token}"} if token is not None else {}), **headers}
    with Raw(gate.url) as raw:
        raw.say(raw.request(target=target, headers=fields))
        return raw.answer()


def login(gate: Gate, token: str, **more: Any) -> Raw:
    raw = Raw(gate.url)
    raw.login(target="/ws", headers={"Authorization": f"Bearer {token}"}, **more)
    return raw


@pytest.fixture(scope="module")
def jwks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "jwks.json"
    keys = [jwk(HS, "h"), jwk(RS, "r", use="sig", alg="RS256"), jwk(ES, "e"), jwk(ED, "d")]
    file.write_text(json.dumps({"keys": [*keys, {"kty": "later"}, jwk(ED, "enc", use="enc")]}))
    return file


@pytest.fixture(scope="module")
def gate(serve: Start, jwks: Path) -> Gate:  # type: ignore[override]
    """A node that takes all four algorithms, each with its key."""
    return serve(
        auth_mode="jwt",
        auth_algorithms="HS256,RS256,ES256,EdDSA",
        auth_jwks_file=jwks,
        auth_audience="chat",
        auth_issuer="https://id.example",
        auth_leeway="2s",
    )


def good(keys: Pair, kid: str, **claims: Any) -> str:
    return mint(keys, kid=kid, **{"aud": "chat", "iss": "https://id.example", **claims})


@pytest.mark.parametrize(("keys", "kid"), [(HS, "h"), (RS, "r"), (ES, "e"), (ED, "d")])
def test_each_algorithm_says_who_a_client_is(gate: Gate, keys: Pair, kid: str) -> None:
    """`sub` and `name` are what others see of it, whatever the query says of a name."""
    token = good(keys, kid, sub=f"ann-{kid}", name="Ann 安", aud=["other", "chat"])
    with Raw(gate.url) as raw:
        headers = {"Authorization": f"bearer {token}"}
        hello = raw.login(target=f"/ws?openid=ann-{kid}&userName=Eve", headers=headers)
    assert (hello["params"]["openid"], hello["params"]["userName"]) == (f"ann-{kid}", "Ann 安")


def test_two_users_with_tokens_close_a_loop(gate: Gate) -> None:
    with login(gate, good(ES, "e", sub="ann")) as ann, login(gate, good(ED, "d", sub="bob")) as bob:
        ann.say(text(send("bob", "hello")))
        assert ann.json(0)["status"] == 200
        push = bob.json(2)
        assert push["msg"]["params"]["fromUser"]["openid"] == "ann"
        bob.say(text(ack(push)))
        assert ann.json(17)["messageId"] == push["messageId"]


def test_a_browser_offers_its_token_as_a_subprotocol_and_gets_only_the_other_back(gate: Gate) -> None:
    token = good(HS, "h", sub="web")
    for offered in (f"yanchat.v1, bearer.{token}", f"bearer.{token},yanchat.v1"):
        with Raw(gate.url) as raw:
            raw.say(raw.request(target="/ws", headers={"Sec-WebSocket-Protocol": offered, "Origin": "https://a.b"}))
            answer = raw.answer()
            assert (answer.status, answer.headers["sec-websocket-protocol"]) == (101, "yanchat.v1")
            assert raw.json()["params"]["openid"] == "web"


def test_a_browser_behind_a_password_of_its_proxy_may_come_all_the_same(gate: Gate) -> None:
    """Browsers send `Authorization: Basic` with their WebSockets, too."""
    offered = f"yanchat.v1, bearer.{good(HS, 'h', sub='web')}"
    assert ask(gate, None, Authorization="Basic eDp5", **{"Sec-WebSocket-Protocol": offered}).status == 101


WRONG_KIND = "The token is no JWT that can be read."
TOKENS: dict[str, tuple[str, str]] = {
    "empty": ("", "asks for a token|no JWT"),
    "words": ("hello", WRONG_KIND),
    "dots": ("..", WRONG_KIND),
    "no-base64": ("%%%.%%%.%%%", WRONG_KIND),
    "five-parts": ("a.b.c.d.e", WRONG_KIND),
    "header-no-json": (bare(b"{", {}), WRONG_KIND),
    "header-no-object": (bare([1], {}), WRONG_KIND),
    "header-deep": (bare(b"[" * 5000, b"{}"), WRONG_KIND),
    "header-not-utf-8": (bare(b'{"alg":"\xff"}', {}), WRONG_KIND),
    "algorithm-none": (bare({"alg": "none", "kid": "r"}, {"sub": "ann", "exp": 1 << 40}, b""), "algorithm"),
    "algorithm-None": (bare({"alg": "None", "kid": "r"}, {"sub": "ann", "exp": 1 << 40}, b""), "algorithm"),
    "algorithm-missing": (bare({"kid": "r"}, {"sub": "ann"}), "algorithm"),
    "algorithm-a-list": (bare({"alg": ["RS256"], "kid": "r"}, {"sub": "ann"}), WRONG_KIND),
    "algorithm-lower-case": (bare({"alg": "hs256", "kid": "h"}, {"sub": "ann"}), "algorithm"),
    "algorithm-other": (mint(pair("ES384"), kid="e"), "algorithm"),
    "kid-a-number": (bare({"alg": "RS256", "kid": 1}, {}), WRONG_KIND),
    "kid-missing": (mint(HS), "kid"),
    "kid-unknown": (good(HS, "nobody"), "kid"),
    "kid-a-path": (good(HS, "../../../dev/null"), "kid"),
    "kid-of-a-key-for-encryption": (good(ED, "enc"), "kid"),
    "crit": (mint(HS, kid="h", header={"crit": ["x"], "x": 1}), "crit|no JWT"),
    "other-secret": (good(HS._replace(private=b"y" * 32), "h"), "signature"),
    "other-key": (good(pair("ES256"), "e"), "signature"),
    "no-signature": (good(HS, "h").rpartition(".")[0] + ".", "signature"),
    "half-a-signature": (good(RS, "r")[:-100], "signature|no JWT"),
    "expired": (good(HS, "h", exp=int(time.time()) - 3), "has expired"),
    "not-yet": (good(HS, "h", nbf=int(time.time()) + 600), "not valid yet"),
    "no-end": (good(HS, "h", exp=None), "no exp"),
    "endless": (good(HS, "h", exp=float("inf")), "exp is no number"),
    "no-number-as-end": (good(HS, "h", exp=float("nan")), "exp is no number"),
    "true-as-end": (good(HS, "h", exp=True), "exp is no number"),
    "text-as-end": (good(HS, "h", exp="9999999999"), "exp is no number"),
    "text-as-begin": (good(HS, "h", nbf="0"), "nbf is no number"),
    "nobody": (good(HS, "h", sub=None), "no sub"),
    "empty-name": (good(HS, "h", sub=""), "sub"),
    "no-openid": (good(HS, "h", sub="ann ben"), "sub"),
    "long-openid": (good(HS, "h", sub="a" * 129), "sub"),
    "sub-a-number": (good(HS, "h", sub=7), "no JWT"),
    "name-a-number": (good(HS, "h", name=7), "name"),
    "name-with-a-line": (good(HS, "h", name="a\nb"), "name"),
    "name-too-long": (good(HS, "h", name="x" * 129), "name"),
    "other-audience": (good(HS, "h", aud="mail"), "audience"),
    "no-audience": (good(HS, "h", aud=None), "no aud"),
    "other-issuer": (good(HS, "h", iss="https://evil.example"), "issuer"),
    "no-issuer": (good(HS, "h", iss=None), "no iss"),
}


@pytest.mark.parametrize("name", TOKENS)
def test_a_wrong_token_is_answered_with_401_and_a_sentence(gate: Gate, name: str) -> None:
    """Nothing of the token comes back, and the node stays well."""
    token, words = TOKENS[name]
    answer = ask(gate, token)
    sentence = answer.body.decode()
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert any(word in sentence for word in words.split("|")), sentence
    assert len(sentence) < 250
    assert not any(part in sentence for part in token.split(".") if len(part) > 5)
    assert "Traceback" not in gate.running.log.read_text()


@pytest.mark.parametrize(
    ("claimed", "kid"), [("HS256", "r"), ("HS256", "e"), ("HS256", "d"), ("RS256", "h"), ("ES256", "r"), ("EdDSA", "e")]
)
def test_a_key_checks_no_algorithm_but_its_own(gate: Gate, claimed: str, kid: str) -> None:
    """The old trick: a public key, which everybody knows, taken for a secret."""
    public = {"r": RS, "e": ES, "d": ED, "h": HS}[kid].public
    header, payload = ({"alg": claimed, "kid": kid}, {"sub": "root", "exp": 1 << 40, "aud": "chat"})
    unsigned = bare(header, payload).rpartition(".")[0]
    signature = base64.urlsafe_b64encode(hmac.digest(public, unsigned.encode(), hashlib.sha256)).rstrip(b"=").decode()
    answer = ask(gate, f"{unsigned}.{signature}")
    assert (answer.status, b"kid" in answer.body) == (401, True)


@pytest.mark.parametrize("header", [{"jwk": jwk(ED, "x")}, {"jku": "https://evil.example/keys"}, {"x5u": "file:///x"}])
def test_a_token_does_not_bring_its_own_key(gate: Gate, header: dict[str, Any]) -> None:
    mine = pair("EdDSA")
    claims = {"aud": "chat", "iss": "https://id.example"}
    answer = ask(
        gate, mint(mine, kid="d", header={**header, **({"jwk": jwk(mine, "d")} if "jwk" in header else {})}, **claims)
    )
    assert (answer.status, answer.body) == (401, b"The token's signature is wrong.\n")


@pytest.mark.parametrize("name", ["token", "access_token", "Authorization", "jwt", "bearer"])
def test_a_token_in_the_query_is_refused_even_a_good_one(gate: Gate, name: str) -> None:
    answer = ask(gate, None, target=f"/ws?openid=ann&{name}={good(HS, 'h')}")
    assert answer.status == 400
    assert b"must not stand in the query" in answer.body
    assert good(HS, "h").encode() not in answer.body


def test_without_a_token_or_with_two_nobody_comes_in(gate: Gate) -> None:
    token = good(HS, "h")
    assert ask(gate, None).status == 401
    assert ask(gate, None, target="/ws?openid=ann").status == 401
    assert ask(gate, None, Authorization=f"Basic {token}").status == 401
    assert ask(gate, token, **{"Sec-WebSocket-Protocol": f"yanchat.v1, bearer.{token}"}).status == 400
    assert ask(gate, None, **{"Sec-WebSocket-Protocol": f"bearer.{token}"}).status == 400
    with Raw(gate.url) as raw:
        fields = {"Authorization": f"Bearer {token}", "authorization": f"Bearer {token}"}
        raw.say(raw.request(target="/ws", headers=fields))
        assert raw.answer().status == 401


def test_a_token_of_one_user_does_not_let_another_in(gate: Gate) -> None:
    answer = ask(gate, good(HS, "h", sub="ann"), target="/ws?openid=bob")
    assert (answer.status, b"another user" in answer.body) == (403, True)


def test_a_session_ends_when_its_token_does(gate: Gate) -> None:
    """With 4003, at its `exp` and the leeway, while others stay."""
    end = int(time.time()) + 1
    with login(gate, good(HS, "h", sub="short", exp=end)) as short, login(gate, good(HS, "h", sub="long")) as long:
        closed = short.ends()
        assert (closed.code, closed.reason) == (4003, "the token has expired")
        assert time.time() >= end + 2
        long.say(text('{"type":11}'))
        assert long.json()["type"] == 12
        wait_until(lambda: gate.sockets() == 2, "the closed one has gone")


# -- keys that change --------------------------------------------------------------------------------------------------
def replace(file: Path, content: str | bytes) -> None:
    """As a careful tool does it: whole or not at all."""
    new = file.with_suffix(".new")
    new.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(new, file)


def test_keys_are_rotated_by_their_kid_without_a_restart(serve: Start, tmp_path: Path) -> None:
    """Both are good as long as both are there; who is here with the old one stays until his token ends."""
    old, new, file = pair("ES256"), pair("ES256"), tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [jwk(old, "2024")]}))
    gate = serve(auth_mode="jwt", auth_algorithms="ES256", auth_jwks_file=file)
    with login(gate, mint(old, kid="2024")) as early:
        assert ask(gate, mint(new, kid="2025")).status == 401
        replace(file, json.dumps({"keys": [jwk(old, "2024"), jwk(new, "2025")]}))
        assert ask(gate, mint(new, kid="2025")).status == 101
        assert ask(gate, mint(old, kid="2024")).status == 101
        replace(file, json.dumps({"keys": [jwk(new, "2025")]}))
        assert ask(gate, mint(old, kid="2024")).status == 401
        early.say(text('{"type":11}'))
        assert early.json()["type"] == 12


def test_a_file_that_cannot_be_used_leaves_the_keys_that_were_there_and_is_said_once(
    serve: Start, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    gate = serve(auth_mode="jwt", auth_key_file=file)
    for content in ("short", ""):
        replace(file, content)
        for _ in range(3):
            assert ask(gate, mint(HS)).status == 101
    file.unlink()
    assert ask(gate, mint(HS)).status == 101
    log = [line for line in gate.running.log.read_text().splitlines() if "auth.keys.not_renewed" in line]
    assert len(log) == 3
    assert "too weak" in log[0]
    assert "cannot be read" in log[2]
    replace(file, "f" * 32 + "\n")
    assert ask(gate, mint(HS._replace(private=b"f" * 32))).status == 101
    assert ask(gate, mint(HS)).status == 401


def test_a_key_file_serves_tokens_of_any_kid_and_a_certificate_is_a_public_key(serve: Start, tmp_path: Path) -> None:
    cert_file, key_file = Authority(tmp_path).issue()
    keys = Pair("ES256", load_pem_private_key(key_file.read_bytes(), None), b"")
    gate = serve(auth_mode="jwt", auth_algorithms="ES256", auth_key_file=cert_file)
    assert ask(gate, mint(keys)).status == 101
    assert ask(gate, mint(keys, kid="whatever")).status == 101


def test_a_token_for_somebody_is_not_for_a_node_that_knows_of_no_audience(serve: Start, tmp_path: Path) -> None:
    """RFC 7519, 4.1.3."""
    (tmp_path / "secret").write_text(SECRET)
    gate = serve(auth_mode="jwt", auth_key_file=tmp_path / "secret")
    assert ask(gate, mint(HS)).status == 101
    assert ask(gate, mint(HS, aud="chat")).status == 401
    with login(gate, mint(HS, exp=int(time.time()) - 29)) as late:  # the leeway is 30 s
        assert late.ends().code == 4003
