"""The rows and acks of all nodes beside one another, in a temporary file: however many they are, memory stays small."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import apsw

from yanchat.model import Key, MessageId, Node, OpenId
from yanchat.protocol.books import Held, HeldAck

_SCHEMA = """
CREATE TABLE held (message_id BLOB, recipient TEXT, node TEXT, ord INTEGER, accepted_at INTEGER, rank INTEGER,
 moved INTEGER, adopted INTEGER, PRIMARY KEY (message_id, recipient, node)) WITHOUT ROWID;
CREATE TABLE acks (message_id BLOB, recipient TEXT, node TEXT, origin TEXT, place INTEGER, at INTEGER, gone INTEGER,
 PRIMARY KEY (message_id, recipient, node, origin)) WITHOUT ROWID;
CREATE TABLE asked (node TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_UNLIKE = """SELECT message_id, recipient FROM held GROUP BY message_id, recipient HAVING count(*) > 1 OR sum(moved) > 0
 UNION SELECT message_id, recipient FROM acks JOIN asked ON asked.node = origin WHERE NOT EXISTS (SELECT 1 FROM held
 WHERE held.message_id = acks.message_id AND held.recipient = acks.recipient AND held.node = origin)"""
_HELD = "SELECT node, ord, accepted_at, rank, moved, adopted FROM held WHERE message_id = ? AND recipient = ?"
_ACKS = """SELECT node, min(place), group_concat(origin, ' '), max(at), min(gone) FROM acks
 WHERE message_id = ? AND recipient = ? GROUP BY node"""


class Comparison:
    """Fill it, then ask for what is not the plain case: one row on one node, known to all who acked it."""

    def __init__(self) -> None:
        self._db = apsw.Connection("")
        self._db.execute(_SCHEMA)
        self._db.execute("BEGIN")

    def close(self) -> None:
        self._db.close()

    def add(self, node: Node, rows: Iterable[Held] = (), acks: Iterable[HeldAck] = ()) -> None:
        """What this node has; a row that comes again is the later one."""
        self._db.execute("INSERT OR IGNORE INTO asked VALUES (?)", (node,))
        self._db.executemany(
            "INSERT OR REPLACE INTO held VALUES (?,?,?,?,?,?,?,?)",
            (
                (
                    bytes.fromhex(one.message_id),
                    one.to,
                    node,
                    one.order,
                    one.accepted_at,
                    one.rank,
                    one.moved,
                    one.adopted,
                )
                for one in rows
            ),
        ).fetchall()
        self._db.executemany(
            "INSERT OR REPLACE INTO acks VALUES (?,?,?,?,?,?,?)",
            (
                (bytes.fromhex(one.message_id), one.to, node, origin, one.place, one.at, one.left)
                for one in acks
                for origin in one.origins
            ),
        ).fetchall()

    def unlike(self) -> Iterator[Key]:
        """The (message, recipient) that several nodes have, that moved, or that an ack's origin does not have."""
        for blob, user in self._db.execute(_UNLIKE):
            yield MessageId(blob.hex()), OpenId(user)

    def held(self, key: Key) -> dict[Node, Held]:
        found = self._db.execute(_HELD, (bytes.fromhex(key[0]), key[1]))
        return {
            Node(node): Held(order, *key, at, rank, bool(moved), bool(adopted))
            for node, order, at, rank, moved, adopted in found
        }

    def acks(self, key: Key) -> dict[Node, HeldAck]:
        found = self._db.execute(_ACKS, (bytes.fromhex(key[0]), key[1]))
        return {
            Node(node): HeldAck(place, *key, tuple(map(Node, origins.split())), at, bool(gone))
            for node, place, origins, at, gone in found
        }
