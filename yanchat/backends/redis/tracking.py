"""Where users are, remembered for a moment: Redis says when it changes (client-side caching, broadcasting mode).

https://redis.io/docs/latest/develop/reference/client-side-caching/: one connection of its own in RESP3 is told of every
key under the prefix that somebody writes. When it is lost, nothing is remembered until it is there again; a Redis
Cluster, or a server that does not offer it, is asked each time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import redis
import structlog

from yanchat.backends.redis.servers import Client
from yanchat.model import OpenId, SessionRecord

KEPT_FOR: Final = 1.0
"""Seconds for which an answer serves at most: a node whose lease lapses changes no key of its users."""
MOST: Final = 50_000
"""Users that are remembered."""
POLL: Final = 0.2
"""Seconds after which the thread sees that it is to end."""
QUIET: Final = 1.0
SILENT: Final = 2.0
"""Seconds without a word after which the server is asked for one, and after which it counts as lost."""
AGAIN_AFTER: Final = 1.0
REFUSED_FOR: Final = 60.0
"""Seconds after which a server that does not offer it, or not to us, is asked for it again."""

Located = Sequence[SessionRecord]


class Tracking:
    """Used on the trio loop until `close`; what Redis says comes in a thread, which the first question starts."""

    def __init__(self, connect: Callable[[], Client] | None, prefix: str) -> None:
        """`connect` makes a client that speaks RESP3 (None: ask each time); `prefix`: how all keys of users begin."""
        self._connect, self._prefix = connect, prefix
        self._lock = threading.Lock()
        self._on = False
        """The connection is there: what changes is heard."""
        self._kept: dict[OpenId, tuple[float, Located]] = {}
        """Where users are, and when that was answered."""
        self._asked: dict[OpenId, object] = {}
        """Who is being asked for, and by which call; nothing was heard of them since it began."""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="registry-tracking", daemon=True)

    def close(self) -> None:
        """Have the thread end, within a moment; nobody waits for it."""
        self._closing.set()

    # -- on the loop ---------------------------------------------------------------------------------------------------
    def known(self, openids: Sequence[OpenId]) -> dict[OpenId, Located]:
        """Those of these users whose place is known, and who have one: that a user is nowhere is asked each time."""
        since = time.monotonic() - KEPT_FOR
        found: dict[OpenId, Located] = {}
        for openid in openids:
            kept = self._kept.get(openid)
            if kept is not None and kept[0] > since:
                found[openid] = kept[1]
        return found

    def ask(self, openids: Sequence[OpenId]) -> object:
        """Before Redis is asked for these: what changes from now on is not missed. Give the result to `keep`."""
        call = object()
        if self._connect is not None and self._thread.ident is None:
            self._thread.start()
        with self._lock:
            if self._on:
                self._asked.update(dict.fromkeys(openids, call))
        return call

    def keep(self, call: object, openids: Sequence[OpenId], found: Mapping[OpenId, Located]) -> None:
        """What came of it; a call that failed found nothing."""
        now = time.monotonic()
        with self._lock:
            if len(self._kept) > MOST:
                self._kept.clear()
            for openid in openids:
                if self._asked.get(openid) is call:
                    del self._asked[openid]
                    if found.get(openid):
                        self._kept[openid] = now, found[openid]

    def forget(self, openids: Sequence[OpenId]) -> None:
        """These have changed: whoever asks from now on is told how they are now. From any thread."""
        with self._lock:
            for openid in openids:
                self._kept.pop(openid, None)
                self._asked.pop(openid, None)

    def forget_all(self) -> None:
        """Some node has come or gone. From any thread."""
        with self._lock:
            self._kept.clear()
            self._asked.clear()

    # -- the thread ----------------------------------------------------------------------------------------------------
    def _serve(self) -> None:
        assert self._connect is not None
        last = ""
        while not self._closing.is_set():
            rest = AGAIN_AFTER
            try:
                self._follow(self._connect())
            except (redis.RedisError, OSError) as error:
                rest = REFUSED_FOR if isinstance(error, redis.ResponseError) else AGAIN_AFTER
                if str(error) != last or self._on:
                    last = str(error)
                    structlog.get_logger().info("registry.not_tracked", error=last)
            except Exception:
                structlog.get_logger().exception("registry.not_tracked")
            finally:
                self._turn(on=False)
            self._closing.wait(rest)

    def _follow(self, client: Client) -> None:
        assert isinstance(client, redis.Redis)
        pool = client.connection_pool
        connection: Any = pool.get_connection()
        try:
            connection._parser.set_invalidation_push_handler(lambda push: push)
            connection.send_command("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", self._prefix)
            connection.read_response()
            self._turn(on=True)
            self._listen(connection)
        finally:
            connection.disconnect()
            pool.disconnect()

    def _listen(self, connection: Any) -> None:
        heard, asked = time.monotonic(), False
        while not self._closing.is_set():
            if connection.can_read(POLL):
                self._heard(connection.read_response(push_request=True))
                heard, asked = time.monotonic(), False
            elif time.monotonic() - heard > SILENT:
                raise redis.TimeoutError("The server says nothing")
            elif time.monotonic() - heard > QUIET and not asked:
                connection.send_command("PING")
                asked = True

    def _heard(self, said: Any) -> None:
        """`["invalidate", keys]`; no keys: all of them, after a FLUSHALL."""
        if not isinstance(said, list):
            return  # PONG
        keys = said[1]
        if keys is None:
            self.forget_all()
        else:
            self.forget([OpenId(key[len(self._prefix) :]) for key in keys])

    def _turn(self, on: bool) -> None:
        """Whether changes are heard of from now on; what was known before is not any more."""
        with self._lock:
            self._on = on
        self.forget_all()
