"""The keys of tokens: read from a PEM file, a file with a secret, or a JSON Web Key Set (RFC 7517).

Each key is bound to the one algorithm of its kind, and is never used with another: a public key cannot be taken for a
secret. What is unsafe or does not fit is a ConfigError.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from jwt import InvalidKeyError
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm

from yanchat.config import AuthSettings
from yanchat.errors import ConfigError
from yanchat.gateway.renewed import read_bytes

LEAST_SECRET: Final = 32
"""Bytes: RFC 7518, 3.2."""
LEAST_RSA: Final = 2048
"""Bits: RFC 7518, 3.3."""
_PRIVATE: Final = (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey)
_KINDS: Final[dict[str, Any]] = {"oct": HMACAlgorithm, "RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}


class Key:
    """A key and the algorithm that it is for; it has no text form, so that no log can show it."""

    __slots__ = ("algorithm", "key", "kid")

    def __init__(self, key: Any, kid: str | None, where: str) -> None:
        self.algorithm = _algorithm(key, where)
        self.key, self.kid = key, kid


class Keys:
    """The keys that a node checks tokens with."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = {(key.algorithm, key.kid): key.key for key in keys}

    def find(self, algorithm: str, kid: str | None) -> Any | None:
        """The key for this algorithm of this id; a key from a file of its own has none and serves all."""
        key = self._keys.get((algorithm, kid))
        return self._keys.get((algorithm, None)) if key is None else key


def read_keys(auth: AuthSettings) -> Keys:
    """The keys that the settings name. Raises ConfigError."""
    file, setting = (auth.key_file, "auth.key_file") if auth.key_file else (auth.jwks_file, "auth.jwks_file")
    data, where = read_bytes(file, setting), f"{setting}: {file}"
    keys = [_from_file(data, where)] if auth.key_file else _from_jwks(data, where, auth.algorithms)
    fitting = [key for key in keys if key.algorithm in auth.algorithms]
    if not fitting:
        has = " and ".join(sorted({key.algorithm for key in keys})) or "none that can be used"
        wanted = " or ".join(auth.algorithms)
        raise ConfigError(f"{where} holds no key for {wanted} (it has {has}); change auth.algorithms or the file.")
    return Keys(fitting)


def read_signing_key(file: str, setting: str) -> Key:
    """A secret or a private key, to sign tokens with. Raises ConfigError."""
    data, where = read_bytes(file, setting), f"{setting}: {file}"
    if b"-----BEGIN" not in data:
        return Key(_secret(data), None, where)
    try:
        return Key(load_pem_private_key(data, None), None, where)
    except (ValueError, TypeError):
        raise ConfigError(f"{where} holds no private key, or a locked one; name another with --key-file.") from None


def _from_file(data: bytes, where: str) -> Key:
    """A secret, as it stands but for the end of its line; or a public key or a certificate in PEM form."""
    if b"-----BEGIN" not in data:
        return Key(_secret(data), None, where)
    if b"PRIVATE KEY-----" in data:
        raise ConfigError(
            f"{where} holds a private key; a node needs only the public one, keep the other away from it."
        )
    try:
        if b"-----BEGIN CERTIFICATE" in data:
            return Key(x509.load_pem_x509_certificate(data).public_key(), None, where)
        return Key(load_pem_public_key(data), None, where)
    except ValueError:
        raise ConfigError(f"{where} cannot be read as a public key in PEM form.") from None


def _secret(data: bytes) -> bytes:
    return data.removesuffix(b"\n").removesuffix(b"\r")


def _from_jwks(data: bytes, where: str, algorithms: Sequence[str]) -> list[Key]:
    """Those for signatures of these algorithms; others may stand beside them."""
    try:
        document = json.loads(data)
        entries = document["keys"]
        found = [(number, entry) for number, entry in enumerate(entries, 1) if _wanted(entry, algorithms)]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ConfigError(f'{where} is no JSON Web Key Set: {{"keys": [{{"kty": …, "kid": …}}, …]}}.') from None
    keys: list[Key] = []
    for number, entry in found:
        which = f"{where}, key {number},"
        kid = entry.get("kid")
        if not isinstance(kid, str) or not kid:
            raise ConfigError(f"{which} has no kid; tokens say by it which key they are signed with.")
        try:
            key = Key(_KINDS[entry["kty"]].from_jwk(entry), kid, which)
        except (InvalidKeyError, ValueError, TypeError, KeyError):
            raise ConfigError(f"{which} cannot be read as a key of kind {entry['kty']}.") from None
        if isinstance(key.key, _PRIVATE):
            raise ConfigError(f"{which} is a private key; a node needs only the public one.")
        if any((key.algorithm, key.kid) == (other.algorithm, other.kid) for other in keys):
            raise ConfigError(f"{which} has the kid of another one; each needs its own.")
        keys.append(key)
    return keys


def _wanted(entry: dict[str, Any], algorithms: Sequence[str]) -> bool:
    """Whether this JWK is for checking signatures, and not of an algorithm that is not asked for."""
    kinds = {"HS256": ("oct", None), "RS256": ("RSA", None), "ES256": ("EC", "P-256"), "EdDSA": ("OKP", "Ed25519")}
    kind = (entry["kty"], entry.get("crv"))
    named = entry.get("alg")
    return (
        any(kind == kinds[name] and (named is None or named == name) for name in algorithms)
        and entry.get("use", "sig") == "sig"
        and "verify" in entry.get("key_ops", ["verify"])
    )


def _algorithm(key: Any, where: str) -> str:
    """The one algorithm that a key is for."""
    if isinstance(key, bytes):
        if len(key) < LEAST_SECRET:
            raise ConfigError(f"{where} is too weak: a secret has at least {LEAST_SECRET} bytes; make a new one.")
        return "HS256"
    if isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey):
        if key.key_size < LEAST_RSA:
            raise ConfigError(f"{where} is too weak: an RSA key has at least {LEAST_RSA} bits; make a new one.")
        return "RS256"
    if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey) and key.curve.name == "secp256r1":
        return "ES256"
    if isinstance(key, ed25519.Ed25519PublicKey | ed25519.Ed25519PrivateKey):
        return "EdDSA"
    raise ConfigError(f"{where} is of a kind that is not used here; there are RSA, P-256 and Ed25519.")
