"""From the settings to a client of Redis: one server, a service behind Sentinels, or a Redis Cluster."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry
from redis.sentinel import Sentinel

from yanchat.config import RedisSettings
from yanchat.errors import ConfigError

Client = redis.Redis | redis.RedisCluster
TIMEOUT: Final = 1.0
_FORMS: Final = (
    "redis://HOST:PORT/DB, rediss://HOST:PORT/DB, unix:///PATH?db=DB, redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB"
    " or redis+cluster://HOST:PORT,HOST:PORT"
)


def connector(settings: RedisSettings, protocol: int = 2) -> Callable[[], Client]:
    """How to make the client, which speaks that version of RESP. Raises ConfigError for a URL or a file that cannot be.

    Calling it connects to nothing yet, but for a Redis Cluster, which is asked for its slots.
    """
    try:
        url = urlsplit(settings.url)
        scheme, tls = url.scheme.replace("rediss", "redis"), url.scheme.startswith("rediss")
        options = {**_options(settings, url, tls), "protocol": protocol}
        if scheme in ("redis", "unix"):
            return _single(settings.url, url, options)
        if scheme == "redis+sentinel":
            return _sentinel(settings, url, options, tls)
        if scheme == "redis+cluster":
            return _cluster(url, options, tls)
    except ValueError as error:
        raise ConfigError(f"redis.url cannot be read: {error}; write {_FORMS}.") from None
    raise ConfigError(f"redis.url cannot begin with {url.scheme!r}; write {_FORMS}.")


def run_ids(client: Client) -> str:
    """Which server processes answer: the run ids of all that hold data, in order."""
    if isinstance(client, redis.RedisCluster):
        found: dict[str, Any] = client.info("server", target_nodes=redis.RedisCluster.PRIMARIES)
        infos = [found] if "run_id" in found else list(found.values())
        return ",".join(sorted(str(info["run_id"]) for info in infos))
    return str(client.info("server")["run_id"])


def _options(settings: RedisSettings, url: SplitResult, tls: bool) -> dict[str, Any]:
    """What holds for every connection. A hung server costs a second, never a minute: callers repeat by themselves."""
    options: dict[str, Any] = {
        "socket_timeout": TIMEOUT,
        "socket_connect_timeout": TIMEOUT,
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": True,
        "encoding_errors": "replace",  # what others have written cannot be read, and no more than that
    }
    user, _, password = url.netloc.rpartition("@")[0].partition(":")
    options["username"] = settings.username or unquote(user) or None
    options["password"] = _secret(settings.password_file, "redis.password_file") or unquote(password) or None
    files = {"ssl_ca_certs": "ca_file", "ssl_certfile": "cert_file", "ssl_keyfile": "key_file"}
    for option, key in files.items():
        path = getattr(settings, key)
        if path:
            _readable(path, f"redis.{key}")
            if not tls:
                raise ConfigError(f"redis.{key} is set, but redis.url asks for no TLS; begin it with rediss.")
            options[option] = path
    if settings.ca_file:
        try:
            ssl.create_default_context(cafile=settings.ca_file)
        except ssl.SSLError:
            raise ConfigError(f"redis.ca_file: there is no certificate in {settings.ca_file}.") from None
    return options


def _single(whole: str, url: SplitResult, options: dict[str, Any]) -> Callable[[], Client]:
    if url.scheme != "unix" and url.path.strip("/") and not url.path.strip("/").isdigit():
        raise ValueError(f"{url.path.strip('/')!r} is not the number of a database")
    user, at, _ = url.netloc.rpartition("@")
    plain = whole.replace(user + at, "", 1)  # who we are is in the options
    redis.Redis.from_url(plain, **options)  # raises for what it cannot read
    return lambda: redis.Redis.from_url(plain, **options)


def _sentinel(settings: RedisSettings, url: SplitResult, options: dict[str, Any], tls: bool) -> Callable[[], Client]:
    service, _, database = url.path.strip("/").partition("/")
    if not service:
        raise ValueError("the name of the service is missing")
    asking = {key: value for key, value in options.items() if key not in ("username", "password")}
    asking["username"] = settings.sentinel_username or None
    asking["password"] = _secret(settings.sentinel_password_file, "redis.sentinel_password_file")
    asking["ssl"] = options["ssl"] = tls
    seeds, number = _seeds(url, 26379), int(database or 0)

    def connect() -> Client:
        sentinel = Sentinel(seeds, sentinel_kwargs=asking, **options)  # type: ignore[no-untyped-call]
        client: redis.Redis = sentinel.master_for(service, db=number)  # type: ignore[no-untyped-call]
        return client

    return connect


def _cluster(url: SplitResult, options: dict[str, Any], tls: bool) -> Callable[[], Client]:
    if url.path.strip("/") not in ("", "0"):
        raise ValueError("a Redis Cluster has database 0 only")
    seeds = _seeds(url, 6379)

    def connect() -> Client:
        first = [ClusterNode(host, port) for host, port in seeds]  # type: ignore[no-untyped-call]
        return redis.RedisCluster(startup_nodes=first, dynamic_startup_nodes=False, ssl=tls, **options)

    return connect


def _seeds(url: SplitResult, port: int) -> list[tuple[str, int]]:
    seeds = []
    for place in url.netloc.rpartition("@")[2].split(","):
        one = urlsplit(f"//{place}")
        if not one.hostname:
            raise ValueError(f"{place!r} is not HOST:PORT")
        seeds.append((one.hostname, one.port or port))
    return seeds


def _secret(path: str, key: str) -> str | None:
    return _readable(path, key).strip("\r\n") if path else None


def _readable(path: str, key: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error}.") from None
