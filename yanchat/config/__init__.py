"""The settings: frozen, complete, checked. Defaults < TOML file < environment < flags; what is unknown is an error."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from yanchat.names import ACK_TOPIC_PREFIX, GROUP_PREFIX, KEY_PREFIX, TOPIC_PREFIX

Duration = Annotated[float, msgspec.Meta(ge=0, extra={"unit": "duration"})]
"""Seconds; written as "5s", "10m", "7d"."""
Size = Annotated[int, msgspec.Meta(ge=0, extra={"unit": "size"})]
"""Bytes; written as "64KiB"."""
Count = Annotated[int, msgspec.Meta(ge=1)]
Rate = Annotated[float, msgspec.Meta(ge=0)]
"""A second; 0 for no limit."""

KiB: Final = 1024
MiB: Final = 1024 * KiB
DAY: Final = 86400.0
BUS_RETENTION: Final = 7 * DAY
"""Seconds that the bus of the embedded profile keeps a record for a node that does not fetch it."""


class NodeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    listen: str = "127.0.0.1:8084"
    advertise: str = ""
    """`host:port` under which the other nodes know this one; empty: the listen address."""
    state_dir: str = ""
    profile: Literal["embedded", "cluster"] = "embedded"
    """embedded: registry and bus are a file in the state directory; cluster: Redis and Kafka."""
    sessions: Literal["multi", "single"] = "multi"
    time_zone: str = "UTC"
    """IANA name; for the `date` of frames."""
    insecure: bool = False
    """Allow auth mode none on an address that is not loopback."""
    reuse_port: bool = False
    """Share the listen address with other nodes of this machine; the kernel spreads the clients (SO_REUSEPORT)."""
    drain: Duration = 10.0
    """Over how many seconds the clients of a stopping node are sent away, in jittered waves."""


class RedisSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The registry of the cluster profile."""

    url: str = "redis://127.0.0.1:6379/0"
    """`redis://`, `rediss://` (TLS), `unix://`, `redis+sentinel://h1:26379,h2:26379/service/0`, `redis+cluster://h1,h2`;
    the last two with TLS as `rediss+…`."""
    username: str = ""
    password_file: str = ""
    sentinel_username: str = ""
    sentinel_password_file: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    key_prefix: str = KEY_PREFIX


class KafkaSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The bus of the cluster profile. What is said of topics holds for those that a node makes for itself."""

    brokers: tuple[str, ...] = ("127.0.0.1:9092",)
    topic_prefix: str = TOPIC_PREFIX
    ack_topic_prefix: str = ACK_TOPIC_PREFIX
    group_prefix: str = GROUP_PREFIX
    partitions: Count = 1
    replication_factor: Annotated[int, msgspec.Meta(ge=0)] = 0
    """0: what the brokers have as their default."""
    min_insync_replicas: Annotated[int, msgspec.Meta(ge=0)] = 0
    """0: what the brokers have as their default."""
    retention: Duration = BUS_RETENTION
    librdkafka: dict[str, str | int | float | bool] = {}
    """Any setting of librdkafka but those that carry our promises."""


Algorithm = Literal["HS256", "RS256", "ES256", "EdDSA"]


class AuthSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mode: Literal["none", "jwt"] = "none"
    algorithms: tuple[Algorithm, ...] = ("HS256",)
    key_file: str = ""
    """HS256: the secret; else a public key in PEM form."""
    jwks_file: str = ""
    """A JSON Web Key Set (RFC 7517); the token's `kid` says which key."""
    audience: str = ""
    issuer: str = ""
    leeway: Duration = 30.0
    """How far the clocks of who mints tokens and of this node may be apart."""


class TlsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Both or none; PEM files, the chain in the first."""

    cert_file: str = ""
    key_file: str = ""


class ProxySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whom to believe about a client's address."""

    trusted: tuple[str, ...] = ()
    """Addresses and networks of proxies, as "10.0.0.0/8"."""
    header: Literal["x-forwarded-for", "proxy-protocol"] = "x-forwarded-for"


class OriginSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    allow: tuple[str, ...] = ()
    """Origins of browsers that may connect; empty: any."""


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes in bytes, times in seconds; a rate of 0 means no limit."""

    message_size: Size = 64 * KiB
    inflight: Count = 256
    outgoing_buffer: Size = 1 * MiB
    handshake: Duration = 5.0
    ping: Duration = 25.0
    idle: Duration = 60.0
    stalled: Duration = 10.0
    """How long a client may read nothing of what waits for it (4008)."""
    sessions_per_user: Count = 8
    connections: Count = 100_000
    connections_per_address: Count = 10_000
    messages_per_second: Rate = 2000.0
    bytes_per_second: Rate = 16.0 * MiB
    user_messages_per_second: Rate = 0.0
    """Of all connections of one user to this node together; so are the bytes."""
    user_bytes_per_second: Rate = 0.0
    address_messages_per_second: Rate = 0.0
    """Of all connections from one address to this node together; so are the bytes."""
    address_bytes_per_second: Rate = 0.0
    pending_per_sender: Count = 100_000
    pending_per_pair: Count = 10_000
    pending_per_recipient: Count = 50_000
    window: Count = 64
    window_bytes: Size = 256 * KiB
    disk_reserve: Size = 256 * MiB


class RedeliverySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds."""

    first: Duration = 5.0
    factor: Annotated[float, msgspec.Meta(ge=1)] = 3.0
    longest: Duration = 300.0
    lifetime: Duration = 7 * DAY
    keep: Duration = 15 * DAY


class AdminSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Admin HTTP over TCP, besides the Unix socket in the node's directory."""

    listen: str = ""
    """`host:port`; empty: the Unix socket only."""
    advertise: str = ""
    """`host:port` under which other machines reach it; empty: the listen address."""
    token_file: str = ""
    """The bearer token that TCP asks for; the same on all nodes that are to be asked together."""


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["auto", "console", "json"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class TracingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    otel: bool = False
    """Spans through OpenTelemetry (the extra `otel`), whose own variables OTEL_… say where to."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings of one node, each section a struct of its own."""

    node: NodeSettings = NodeSettings()
    redis: RedisSettings = RedisSettings()
    kafka: KafkaSettings = KafkaSettings()
    auth: AuthSettings = AuthSettings()
    tls: TlsSettings = TlsSettings()
    origins: OriginSettings = OriginSettings()
    proxy: ProxySettings = ProxySettings()
    limits: LimitSettings = LimitSettings()
    redelivery: RedeliverySettings = RedeliverySettings()
    admin: AdminSettings = AdminSettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()
