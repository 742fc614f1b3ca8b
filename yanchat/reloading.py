"""A reload: what has changed in the settings is taken up while the node runs; what cannot be is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
from msgspec.structs import replace

from yanchat.admin.tcp import Tcp, read_token
from yanchat.backends.sqlite.store import Store
from yanchat.config import LogSettings, Settings
from yanchat.errors import YanchatError
from yanchat.gateway.edge import Edge
from yanchat.gateway.listening import Listening, refuse_strangers
from yanchat.node.assembly import Assembly
from yanchat.systemd import ServiceManager
from yanchat.tracing import Spans
from yanchat.trail import trail_of

SECTIONS: Final = frozenset({"limits", "origins", "auth", "tls", "proxy", "log"})
KEYS: Final = frozenset({("node", "drain"), ("node", "insecure"), ("admin", "token_file")})
"""What is taken up, besides all of those sections."""


class Reloading:
    """`reload` may be called at any time. A bad file, or a key that cannot be used, changes nothing at all."""

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        configure_logs: Callable[[LogSettings], None],
        manager: ServiceManager,
        places: Listening,
        edge: Edge,
        work: Assembly,
        store: Store,
        tcp: Tcp | None,
        spans: Spans | None,
    ) -> None:
        self.settings = settings
        """Those that hold now."""
        self._read, self._configure_logs, self._manager, self._places = read, configure_logs, manager, places
        self._edge, self._work, self._store, self._tcp, self._spans = edge, work, store, tcp, spans

    def reload(self) -> None:
        """Read the settings again, and the keys and certificates that they name. Never raises."""
        if self._work.reception.draining:
            return
        self._manager.reloading()
        try:
            wanted, changed, left = merge(self.settings, self._read())
            self._take_up(wanted)
        except YanchatError as error:
            _say_why(f"{error} The settings from before stay.")
        except Exception:
            structlog.get_logger().exception("node.not_reloaded", error="The settings from before stay.")
        else:
            structlog.get_logger().info("node.reloaded", changed=changed)
            if left:
                fix = "these have changed; restart the node for them"
                structlog.get_logger().warning("node.restart_needed", keys=left, fix=fix)
        self._manager.tell(READY=1)

    def _take_up(self, wanted: Settings) -> None:
        refuse_strangers(wanted, self._places.sockets)
        token = read_token(wanted.admin) if self._tcp is not None else b""
        self._edge.apply(wanted)  # raises before it changes anything; from here on nothing raises
        if self._tcp is not None:
            self._tcp.token = token
        self._work.apply(wanted.limits)
        self._store.keep_free(wanted.limits.disk_reserve)
        self._configure_logs(wanted.log)
        self._work.counters.trail = trail_of(wanted.log.level, self._spans)
        self.settings = wanted


def _say_why(sentence: str) -> None:
    structlog.get_logger().error("node.not_reloaded", error=sentence)


def merge(now: Settings, read: Settings) -> tuple[Settings, list[str], list[str]]:
    """The settings that can hold from now on, which keys are new in them, and which of those read need a restart."""
    changed: list[str] = []
    left: list[str] = []
    sections = {}
    for section in Settings.__struct_fields__:
        before, after = getattr(now, section), getattr(read, section)
        news = {
            key: getattr(after, key) for key in after.__struct_fields__ if getattr(after, key) != getattr(before, key)
        }
        taken = {key: value for key, value in news.items() if _at_once(now, read, section, key)}
        changed += [f"{section}.{key}" for key in taken]
        left += [f"{section}.{key}" for key in news if key not in taken]
        sections[section] = replace(before, **taken)
    return Settings(**sections), changed, left


def _at_once(now: Settings, read: Settings, section: str, key: str) -> bool:
    if (section, key) == ("limits", "message_size"):
        return now.node.profile == "embedded"  # the brokers' own limits follow from it
    if section == "tls":
        return bool(now.tls.cert_file) == bool(read.tls.cert_file)  # the registry says ws:// or wss://
    return section in SECTIONS or (section, key) in KEYS
