"""The connection to Redis that one thread owns: it sends pipelines, and says what an error means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import redis
import structlog

from yanchat.backends.redis.servers import Client
from yanchat.errors import ConfigError, RegistryUnavailable, YanchatError

Command = tuple[str | int, ...]
_WRONG_SETTINGS: Final = (
    redis.exceptions.AuthenticationError,
    redis.exceptions.AuthorizationError,
    redis.exceptions.AuthenticationWrongNumberOfArgsError,
    redis.exceptions.NoPermissionError,
)
_WRONG_TEXTS: Final = (
    "unauthenticated",  # said of a long command, before any password is asked for
    "certificate verify failed",
    "certificate required",
    "unknown ca",
    "invalid database",
    "DB index is out of range",
)
_NOTHING: Final[dict[str | int, Any]] = {
    "HGETALL": {},
    "HGET": None,
    "HDEL": 0,
    "SMEMBERS": set(),
    "SCARD": 0,
    "SADD": 0,
    "SREM": 0,
}
"""What a key of another type answers: as if it were not there. Whose it is cannot be told, and others must not wait."""
_ASK_ANOTHER: Final = (redis.ConnectionError, redis.ReadOnlyError)
_DRIVERS: Final = (redis.RedisError, redis.exceptions.RedisClusterException, OSError)


class Connection:
    """The client, made when it is first needed and again after every failure."""

    def __init__(self, connect: Callable[[], Client]) -> None:
        self._connect = connect
        self._client: Client | None = None
        self._wrong: set[str | int] = set()
        """Keys of another type, each named once."""
        self.proven = False
        """It has served once: what goes wrong from now on is no wrong setting. Set by the registry."""

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = self._connect()
        return self._client

    def send(self, commands: Sequence[Command]) -> list[Any]:
        """One reply for each command, in order; the error of a single command is its reply."""
        try:
            pipeline = self.client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            replies: list[Any] = pipeline.execute(raise_on_error=False)
        except Exception:
            self.close()
            raise
        for place, reply in enumerate(replies):
            if isinstance(reply, _ASK_ANOTHER):
                self.close()
            elif isinstance(reply, redis.ResponseError):
                replies[place] = self._judged(commands[place], reply)
        return replies

    def _judged(self, command: Command, error: redis.ResponseError) -> Any:
        """The reply of a command that met what somebody else has written; else the error, which names the key."""
        key = command[3 if command[0] == "EVAL" else 1] if len(command) > 1 else ""
        if command[0] not in _NOTHING or not str(error).startswith("WRONGTYPE"):
            error.args = (f"{error} (key {key})",)
            return error
        if key not in self._wrong:
            self._wrong.add(key)
            structlog.get_logger().warning("registry.wrong_type", key=key, do="remove the key; it is not yanchat's")
        return _NOTHING[command[0]]

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            try:
                client.close()
            except _DRIVERS as error:
                structlog.get_logger().debug("redis.close_failed", error=str(error))

    def map_error(self, error: Exception) -> Exception:
        """What the caller of the port gets for a driver's error; our own pass through."""
        if isinstance(error, YanchatError) or not isinstance(error, _DRIVERS):
            return error
        reason = str(error).rstrip(".")
        wrong = isinstance(error, _WRONG_SETTINGS) or any(text in reason for text in _WRONG_TEXTS)
        check = "check redis.url, the user, password and TLS files"
        if wrong and not self.proven:
            return ConfigError(f"Redis refuses this node: {reason}; {check}.")
        fix = check if wrong else "look at the server, or at redis.url"
        return RegistryUnavailable(f"Redis does not serve: {reason}; {fix}.")
