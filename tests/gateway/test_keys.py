"""Keys that cannot be used keep a node from starting, with one sentence that says which and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed448, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm

from tests.gateway.credentials import SECRET, jwk, pair
from tests.running import call
from yanchat.config import AuthSettings
from yanchat.errors import ConfigError
from yanchat.gateway.keys import Key, Keys, read_keys

RS, ES, ED, HS = pair("RS256"), pair("ES256"), pair("EdDSA"), pair("HS256")


def public_pem(private: Any) -> bytes:
    pem: bytes = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


WEAK_RSA = public_pem(rsa.generate_private_key(65537, 1024))
ED448 = public_pem(ed448.Ed448PrivateKey.generate())


@pytest.mark.parametrize(
    ("content", "algorithms", "words"),
    [
        (b"x" * 31 + b"\n", "HS256", "is too weak: a secret has at least 32 bytes"),
        (b"", "HS256", "is too weak"),
        (RS.public, "HS256", r"holds no key for HS256 \(it has RS256\)"),
        (HS.public, "RS256 ES256", r"holds no key for RS256 or ES256 \(it has HS256\)"),
        (ES.public, "RS256", r"holds no key for RS256 \(it has ES256\)"),
        (ES.private_pem(), "ES256", "holds a private key"),
        (WEAK_RSA, "RS256", "is too weak: an RSA key has at least 2048 bits"),
        (pair("ES384").public, "ES256", "is of a kind that is not used here"),
        (ED448, "EdDSA", "is of a kind that is not used here"),
        (ES.public[:60], "ES256", "cannot be read as a public key in PEM form"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "RS256", "cannot be read as a public key"),
    ],
)
def test_a_key_file_that_cannot_be_used(tmp_path: Path, content: bytes, algorithms: str, words: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^auth\.key_file: {file}.*{words}"):
        read_keys(AuthSettings(mode="jwt", key_file=str(file), algorithms=tuple(algorithms.split())))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no JSON Web Key Set"),
        ("[]", "is no JSON Web Key Set"),
        ('{"keys": 7}', "is no JSON Web Key Set"),
        ('{"keys": [7]}', "is no JSON Web Key Set"),
        ("[" * 100_000, "is no JSON Web Key Set"),
        ('{"keys": []}', r"holds no key for ES256 \(it has none that can be used\)"),
        (json.dumps({"keys": [jwk(RS, "r"), jwk(HS, "h")]}), "holds no key for ES256"),
        (json.dumps({"keys": [jwk(ES, "e", use="enc")]}), "holds no key for ES256"),
        (json.dumps({"keys": [jwk(ES, "e", alg="ES384")]}), "holds no key for ES256"),
        (json.dumps({"keys": [jwk(ES, "e", key_ops=["sign"])]}), "holds no key for ES256"),
        (json.dumps({"keys": [jwk(RS, "r"), jwk(ES, "")]}), "key 2, has no kid"),
        (json.dumps({"keys": [jwk(ES, "e"), jwk(pair("ES256"), "e")]}), "key 2, has the kid of another one"),
        (json.dumps({"keys": [jwk(ES, "e") | {"x": "AAAA"}]}), "key 1, cannot be read as a key of kind EC"),
        (json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "kid": "e"}]}), "key 1, cannot be read"),
    ],
)
def test_a_key_set_that_cannot_be_used(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=rf"^auth\.jwks_file: {file}.*{words}"):
        read_keys(AuthSettings(mode="jwt", jwks_file=str(file), algorithms=("ES256",)))


def test_a_key_set_with_a_private_or_a_weak_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    private = json.loads(ECAlgorithm.to_jwk(ES.private))
    file.write_text(json.dumps({"keys": [private | {"kid": "e"}, {"kty": "oct", "kid": "h", "k": "c2hvcnQ"}]}))
    with pytest.raises(ConfigError, match="key 1, is a private key"):
        read_keys(AuthSettings(mode="jwt", jwks_file=str(file), algorithms=("ES256",)))
    with pytest.raises(ConfigError, match="key 2, is too weak"):
        read_keys(AuthSettings(mode="jwt", jwks_file=str(file), algorithms=("HS256",)))


def test_the_end_of_the_line_is_no_part_of_a_secret(tmp_path: Path) -> None:
    for end in ("", "\n", "\r\n"):
        file = tmp_path / "secret"
        file.write_bytes(f"{SECRET}{end}".encode())
        keys = read_keys(AuthSettings(mode="jwt", key_file=str(file)))
        assert keys.find("HS256", None) == SECRET.encode()


def test_keys_have_no_text_form() -> None:
    """So that no traceback and no log can show one."""
    key = Key(SECRET.encode(), None, "here")
    assert SECRET not in f"{key!r} {Keys([key])!r}"


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"AUTH_KEY_FILE": "{tmp}/none"}, "auth.key_file: {tmp}/none cannot be read: No such file or directory."),
        ({"AUTH_KEY_FILE": "{tmp}"}, "auth.key_file: {tmp} cannot be read: Is a directory."),
        ({"AUTH_JWKS_FILE": "{tmp}/none"}, "auth.jwks_file: {tmp}/none cannot be read: No such file or directory."),
        ({"AUTH_KEY_FILE": "{tmp}/short"}, "auth.key_file: {tmp}/short is too weak: a secret has at least 32 bytes"),
        ({}, "auth.mode = 'jwt' needs keys"),
    ],
)
def test_such_a_node_does_not_start_and_ends_with_78(tmp_path: Path, env: dict[str, str], sentence: str) -> None:
    (tmp_path / "short").write_text("too-short")
    given = {f"YANCHAT_{key}": value.format(tmp=tmp_path) for key, value in env.items()}
    done = call("serve", "--listen", "127.0.0.1:0", state=tmp_path / "s", env={"YANCHAT_AUTH_MODE": "jwt", **given})
    assert done.returncode == 78
    assert sentence.format(tmp=tmp_path) in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "too-short" not in done.stderr


def test_with_tokens_a_node_may_listen_everywhere(tmp_path: Path) -> None:
    """What --insecure allows to a node without them."""
    options = ("--listen", "0.0.0.0:0", "--advertise", "127.0.0.1:1")
    without = call("serve", *options, state=tmp_path / "s")
    assert without.returncode == 78
    assert "--insecure" in without.stderr
    with_tokens = call(
        "serve", *options, state=tmp_path / "s", env={"YANCHAT_AUTH_MODE": "jwt", "YANCHAT_AUTH_KEY_FILE": "/none"}
    )
    assert with_tokens.returncode == 78
    assert "auth.key_file: /none cannot be read" in with_tokens.stderr
