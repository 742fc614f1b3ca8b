"""Keys, tokens and certificates for tests, each made where it is needed."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

SECRET = "0123456789abcdef0123456789abcdef"
_RSA = rsa.generate_private_key(65537, 2048)


class Pair(NamedTuple):
    """A private key, and what a node is given of it."""

    algorithm: str
    private: Any
    public: bytes
    """PEM; of HS256 the secret."""

    def private_pem(self) -> bytes:
        pem: bytes = self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return pem


def pair(algorithm: str) -> Pair:
    if algorithm == "HS256":
        return Pair(algorithm, SECRET.encode(), SECRET.encode())
    private: Any = {
        "RS256": lambda: _RSA,
        "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate,
    }[algorithm]()
    return Pair(algorithm, private, private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def jwk(keys: Pair, kid: str, **more: Any) -> dict[str, Any]:
    """A key as it stands in a JSON Web Key Set."""
    algorithms = jwt.algorithms.get_default_algorithms()
    algorithm: Any = algorithms[keys.algorithm]
    public = keys.private if keys.algorithm == "HS256" else keys.private.public_key()
    return {**algorithm.to_jwk(public, as_dict=True), "kid": kid, **more}


def mint(keys: Pair, *, kid: str | None = None, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token of ann for an hour; a claim that is None is left out."""
    given = {"sub": "ann", "exp": int(time.time()) + 3600, **claims}
    payload = {name: value for name, value in given.items() if value is not None}
    headers = {**({"kid": kid} if kid else {}), **(header or {})}
    return jwt.encode(payload, keys.private, keys.algorithm, headers=headers)


def bare(header: Any, payload: Any, signature: bytes = b"x") -> str:
    """A token of any parts; bytes are taken as they are."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (*parts, signature))


class Authority:
    """A certificate authority of its own, and what it issues."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        basic = x509.BasicConstraints(ca=True, path_length=None)
        certificate = self._issue(self._name, self._key, days=30).add_extension(basic, critical=True)
        self.file = directory / "ca.pem"
        self.file.write_bytes(certificate.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def issue(self, name: str = "node", *, days: float = 30) -> tuple[Path, Path]:
        """A certificate for 127.0.0.1 and localhost, and its key, as files of this name; below 0 days: expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName(
            [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        )
        certificate = self._issue(subject, key, days).add_extension(names, critical=False)
        cert_file, key_file = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        pem = certificate.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        cert_file.write_bytes(pem)
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        key_file.chmod(0o600)
        return cert_file, key_file

    def _issue(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: float) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=90))
            .not_valid_after(now + datetime.timedelta(days=days))
        )
