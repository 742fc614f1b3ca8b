"""What one value alone cannot tell: which settings fit together. Opens no file but the table of time zones."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Final

from yanchat.config import BUS_RETENTION, Settings
from yanchat.config.values import wrong_at
from yanchat.errors import YanchatError

_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:\s\[\]]+):\d{1,5}")
_BROKER = re.compile(r"(?:([A-Za-z_]+)://)?(?:\[[0-9A-Fa-f:.%]+\]|[^:/;\s\[\]]+)(?::(\d{1,5}))?")
_ORIGIN = re.compile(r"null|[a-z][a-z0-9+.-]*://[^/?#\s,A-Z]+")
LAST_PORT: Final = 65535
HIGHEST_FACTOR: Final = 1000
LEAST_BUFFER: Final = 4096


def check(settings: Settings, origins: Mapping[tuple[str, str], str]) -> None:
    """Raise ConfigError, for an option UsageError, for values that do not fit together or cannot be."""

    def wrong(section: str, key: str, sentence: str) -> YanchatError:
        where = origins.get((section, key), "defaults")
        return wrong_at(where)(f"{where}: {section}.{key} {sentence}")

    redelivery, limits = settings.redelivery, settings.limits
    if redelivery.first <= 0:
        raise wrong("redelivery", "first", "must be more than 0s.")
    if redelivery.factor > HIGHEST_FACTOR:
        raise wrong("redelivery", "factor", f"must be 1 to {HIGHEST_FACTOR}.")
    if redelivery.longest < redelivery.first:
        raise wrong("redelivery", "longest", "must not be less than redelivery.first.")
    cluster = settings.node.profile == "cluster"
    if redelivery.keep <= redelivery.lifetime + (settings.kafka.retention if cluster else BUS_RETENTION):
        key = "keep" if ("redelivery", "keep") in origins else "lifetime"
        retention = "kafka.retention" if cluster else "7d, the bus's retention"
        raise wrong("redelivery", key, f"is not possible: keep must be more than lifetime + {retention}.")
    if limits.message_size < 1 or limits.message_size > 16 << 20:
        raise wrong("limits", "message_size", "must be 1B to 16MiB.")
    if limits.outgoing_buffer < LEAST_BUFFER:
        raise wrong("limits", "outgoing_buffer", f"must be at least {LEAST_BUFFER >> 10}KiB.")
    if limits.outgoing_buffer < limits.message_size:
        raise wrong("limits", "outgoing_buffer", "must not be less than limits.message_size.")
    if limits.ping <= 0 or limits.idle <= limits.ping:
        raise wrong("limits", "idle", "must be more than limits.ping, and that more than 0s.")
    for section, key in (("node", "listen"), ("node", "advertise"), ("admin", "listen"), ("admin", "advertise")):
        address = getattr(getattr(settings, section), key)
        if (address or (section, key) == ("node", "listen")) and not (
            _HOST_PORT.fullmatch(address) and int(address.rpartition(":")[2]) <= LAST_PORT
        ):
            raise wrong(section, key, f"= {address!r} is not HOST:PORT, as 127.0.0.1:8084 is.")
    _check_security(settings, wrong)
    _check_brokers(settings, wrong)
    try:
        _zone(settings.node.time_zone)
    except (KeyError, ValueError):
        raise wrong("node", "time_zone", "is not the name of a time zone, as Asia/Shanghai or UTC are.") from None


def _check_security(settings: Settings, wrong: Callable[[str, str, str], YanchatError]) -> None:
    """Tokens, TLS, origins and proxies. What the files hold is looked at by whoever opens them."""
    auth, tls, admin = settings.auth, settings.tls, settings.admin
    if admin.listen and not admin.token_file:
        raise wrong("admin", "listen", "is served only to whoever has a token; set admin.token_file, too.")
    if admin.advertise and not admin.listen:
        raise wrong("admin", "advertise", "says where admin.listen is reached; set that, too.")
    if auth.mode == "jwt":
        if not auth.algorithms:
            raise wrong("auth", "algorithms", "is empty; name those that tokens may have, as HS256.")
        if bool(auth.key_file) == bool(auth.jwks_file):
            raise wrong("auth", "mode", "= 'jwt' needs keys: set either auth.key_file or auth.jwks_file.")
    if bool(tls.cert_file) != bool(tls.key_file):
        given, missing = ("cert_file", "key_file") if tls.cert_file else ("key_file", "cert_file")
        raise wrong("tls", given, f"is not enough; set tls.{missing}, too.")
    for origin in settings.origins.allow:
        if not _ORIGIN.fullmatch(origin):
            raise wrong(
                "origins",
                "allow",
                f"has {origin!r}; write origins in lower case and without a path, as https://chat.example.org.",
            )
    for network in settings.proxy.trusted:
        try:
            ipaddress.ip_network(network)
        except ValueError:
            raise wrong("proxy", "trusted", f"has {network!r}; write addresses and networks as 10.0.0.0/8.") from None


def _check_brokers(settings: Settings, wrong: Callable[[str, str, str], YanchatError]) -> None:
    """What librdkafka takes; the rest it leaves out without a word, and waits for ever for those that are left."""
    kafka = settings.kafka
    used = str(kafka.librdkafka.get("security.protocol", "plaintext")).lower()
    for broker in (part.strip() for entry in kafka.brokers for part in entry.split(",")):
        match = _BROKER.fullmatch(broker)
        if match is None or not 0 < int(match[2] or LAST_PORT) <= LAST_PORT:
            raise wrong("kafka", "brokers", f"has {broker!r}; write each as HOST:PORT, as 127.0.0.1:9092 is.")
        if match[1] and match[1].lower() != used:
            fix = f"leave {match[1]}:// out, and set the protocol as security.protocol in [kafka.librdkafka]"
            raise wrong("kafka", "brokers", f"has {broker!r}, and the protocol is {used}; {fix}.")


def _zone(name: str) -> None:
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - most calls name no zone

    if name != "UTC":
        ZoneInfo(name)
