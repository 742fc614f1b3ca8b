"""The values in Redis: a session's entry as JSON, a node's record as the fields of a hash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
import structlog

from yanchat.model import Node, NodeRecord, OpenId, SessionId, SessionRecord

MOST_DIGITS: Final = 20


class Entry(msgspec.Struct, frozen=True, rename="camel"):
    """A session in its user's hash, under the session's id."""

    node: Node
    incarnation: str
    user_name: str = ""
    login_status: str = "1"
    connected_at: int = 0
    remote: str = ""
    stamp: int = 0

    @classmethod
    def of(cls, session: SessionRecord) -> Entry:
        return cls(
            session.node,
            session.incarnation,
            session.user_name,
            connected_at=session.connected_at,
            remote=session.remote,
            stamp=session.stamp,
        )

    @staticmethod
    def read(text: str) -> Entry:
        """Raises msgspec.DecodeError."""
        return _read(text)

    def text(self) -> str:
        return msgspec.json.encode(self).decode()

    def unstamped(self) -> str:
        """The text without its stamp and its end: the server adds both."""
        return self.text().rpartition(',"stamp":')[0]

    def record(self, session_id: SessionId, openid: OpenId) -> SessionRecord:
        return SessionRecord(
            session_id,
            openid,
            self.node,
            self.incarnation,
            self.user_name,
            self.connected_at,
            self.remote,
            self.stamp,
        )


_read = msgspec.json.Decoder(Entry).decode


def session_records(openid: OpenId, entries: Mapping[str, str]) -> list[SessionRecord]:
    """A user's sessions; what this version cannot read is not ours to judge."""
    found = []
    for session_id, text in entries.items():
        try:
            found.append(Entry.read(text).record(SessionId(session_id), openid))
        except msgspec.DecodeError:
            structlog.get_logger().warning("registry.unreadable", openid=openid, session_id=session_id)
    return found


def node_fields(record: NodeRecord) -> list[str | int]:
    """The hash of a node: fields and values in turn."""
    fields: dict[str, str | int] = {
        "incarnation": record.incarnation,
        "store": record.store,
        "state": record.state,
        "url": record.url,
        "startedAt": record.started_at,
        "version": record.version,
    }
    if record.admin:
        fields["admin"] = record.admin
    return [part for pair in fields.items() for part in pair]


def node_record(node: Node, fields: Mapping[str, str], age: float, sessions: int) -> NodeRecord:
    """The record out of its hash; when the hash has lapsed, all that is known of the node."""
    if not fields:
        return NodeRecord(node, "", "", "", 0, "", state="dead", age=age, sessions=sessions)
    started = fields.get("startedAt", "")
    return NodeRecord(
        node,
        fields.get("incarnation", ""),
        fields.get("store", ""),
        fields.get("url", ""),
        int(started) if started.isascii() and started.isdigit() and len(started) < MOST_DIGITS else 0,
        fields.get("version", ""),
        fields.get("state", "up"),
        fields.get("admin", ""),
        age,
        sessions,
    )
