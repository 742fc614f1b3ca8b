"""The certificate and key of a node, as an SSL context; read again when they are renewed."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Callable

import structlog

from yanchat.config import TlsSettings
from yanchat.errors import ConfigError
from yanchat.gateway.renewed import Renewed, read_bytes, warn_of_readers

Contexts = Callable[[], ssl.SSLContext]
"""The context for a new connection; those that are there keep theirs."""


def open_tls(settings: TlsSettings) -> Contexts | None:
    """Contexts of the certificate that the settings name; None when they name none. Raises ConfigError."""
    if not settings.cert_file:
        return None
    contexts = Renewed("tls", (settings.cert_file, settings.key_file), lambda: _context(settings))
    warn_of_readers(settings.key_file, "tls.key_file")
    return contexts.get


def _context(settings: TlsSettings) -> ssl.SSLContext:
    """TLS 1.2 and 1.3, with OpenSSL's choice of ciphers."""
    cert_file, key_file = settings.cert_file, settings.key_file
    certificate = read_bytes(cert_file, "tls.cert_file")
    if b"ENCRYPTED" in read_bytes(key_file, "tls.key_file"):
        raise ConfigError(f"tls.key_file: {key_file} has a password; a node cannot be asked for one, take it off.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert_file, key_file)
    except ssl.SSLError as error:
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            raise ConfigError(f"tls.key_file: {key_file} is not the key of the certificate in {cert_file}.") from None
        raise ConfigError(
            f"tls.cert_file, tls.key_file: {cert_file} must hold a certificate in PEM form, and {key_file} its key:"
            f" {(error.reason or 'not so').lower().replace('_', ' ')}."
        ) from None
    _warn_of_its_end(certificate, cert_file)
    return context


def _warn_of_its_end(certificate: bytes, file: str) -> None:
    from cryptography import x509  # noqa: PLC0415 - nodes without TLS need none

    until = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    if until < datetime.datetime.now(datetime.UTC):
        structlog.get_logger().warning(
            "tls.expired", file=file, until=until.isoformat(), fix="renew the certificate; clients will not connect"
        )
