"""The statements on the message table: rows and acks. Each function runs inside a transaction of the lane.

A batch is a few `executemany`, whatever its size: how many statements a row takes decides what a message costs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import apsw

from yanchat.backends.sqlite.counters import count, count_rises, counter, keep_highest
from yanchat.backends.sqlite.database import Database
from yanchat.model import ACKED, OPEN, AckEntry, Envelope, Key, MessageId, Node, OpenId, Row, Step
from yanchat.protocol.frames import MAX_RECIPIENTS
from yanchat.protocol.ids import order_from_message_id

COLUMNS: Final = (
    "ord, message_id, recipient, sender, sender_name, request_id, text, file_type, accepted_at,"
    " traceparent, rank, told, attempts, sent_at, arrived_at, settled_at, told_at, moved_at, adopted_at"
)
_ADD = f"INSERT INTO outbox ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,0,0,0,?,0,0,0)"
_STEP = """UPDATE outbox SET settled_at = CASE WHEN ?2 > rank THEN ?7 ELSE settled_at END,
 rank = max(rank, ?2), told_at = CASE WHEN ?3 > told THEN ?8 ELSE told_at END, told = max(told, ?3),
 attempts = max(attempts, ?4), sent_at = CASE WHEN sent_at = 0 THEN ?5 ELSE sent_at END,
 arrived_at = CASE WHEN arrived_at = 0 THEN ?6 ELSE arrived_at END WHERE ord = ?1"""
# What nearly every ack does: a short statement, which also says by the number of rows that changed what rose.
_ACK = f"""UPDATE outbox SET rank = {ACKED}, settled_at = ?4, attempts = max(attempts, ?2),
 sent_at = CASE WHEN sent_at = 0 THEN ?3 ELSE sent_at END WHERE ord = ?1 AND rank = {OPEN} AND moved_at = 0"""
# A row is found by the order that its id carries (between ?3 and ?4), else by the index of ids.
_BY_ORDER = "ord >= ?3 AND ord < ?4 AND message_id = ?1 AND recipient = ?2"
_BY_ID = "ord = (SELECT ord FROM ids WHERE message_id = ?1 AND recipient = ?2)"
_KNOWN = f"""SELECT EXISTS (SELECT 1 FROM inbox WHERE message_id = ?1 AND recipient = ?2)
 OR coalesce((SELECT rank FROM outbox WHERE {_BY_ORDER}), (SELECT rank FROM outbox WHERE {_BY_ID}), 0) = {ACKED}"""
_RECIPIENTS = """SELECT recipient, ord, rank FROM outbox WHERE ord >= ?2 AND ord < ?3 AND message_id = ?1
 AND moved_at = 0 UNION
 SELECT o.recipient, o.ord, o.rank FROM ids i JOIN outbox o ON o.ord = i.ord WHERE i.message_id = ?1 AND moved_at = 0"""


# -- rows --------------------------------------------------------------------------------------------------------------
def add(db: Database, messages: Sequence[Sequence[Envelope]], quiet: Collection[MessageId]) -> list[list[bool]]:
    """Store what is not there yet. For each: was it news?"""
    envelopes = [envelope for message in messages for envelope in message]
    acked = _acked_here(db, envelopes)
    try:
        with db.connection:
            _insert(db, envelopes, quiet, acked)
        return [[envelope.key not in acked for envelope in message] for message in messages]
    except apsw.ConstraintError:  # something is there, which is rare: only now is it asked what
        there = find(db, [envelope.key for envelope in envelopes])
    fresh: dict[Key, Envelope] = {}
    for envelope in envelopes:
        if envelope.key not in there:
            fresh.setdefault(envelope.key, envelope)
    _insert(db, fresh.values(), quiet, acked)
    for key in acked:
        fresh.pop(key, None)
    return [[fresh.pop(envelope.key, None) is not None for envelope in message] for message in messages]


def _acked_here(db: Database, envelopes: Iterable[Envelope]) -> dict[Key, int]:
    """When users here acked these same messages, which then came from another node: only a request can be repeated."""
    sql = "SELECT message_id, recipient, acked_at FROM inbox WHERE message_id = ? AND recipient = ?"
    repeatable = [envelope.key for envelope in envelopes if not order_from_message_id(envelope.message_id)]
    found = db.executemany(sql, [(bytes.fromhex(message_id), user) for message_id, user in repeatable])
    return {(MessageId(blob.hex()), OpenId(user)): at for blob, user, at in found}


def _insert(
    db: Database, envelopes: Collection[Envelope], quiet: Collection[MessageId], acked: Mapping[Key, int]
) -> None:
    values, ids = [], []
    for one in envelopes:
        blob = bytes.fromhex(one.message_id)
        first, end = orders_of(one.message_id)
        if not first <= one.order < end:
            ids.append((blob, one.recipient, one.order))
        done = one.key in acked
        values.append(
            (
                one.order,
                blob,
                one.recipient,
                one.sender,
                one.sender_name,
                one.request_id,
                one.text,
                one.file_type,
                one.accepted_at,
                one.traceparent,
                ACKED if done else OPEN,
                ACKED if done or one.message_id in quiet else OPEN,
                acked[one.key] if done else 0,
            )
        )
    db.executemany("INSERT INTO ids VALUES (?, ?, ?)", ids).fetchall()
    db.executemany(_ADD, values).fetchall()
    count(db, "added", len(values))
    count(db, "delivered", sum(one.key in acked for one in envelopes))


def record(db: Database, steps: Sequence[Step]) -> None:
    count_rises(db, steps)
    values = (
        (
            step.order,
            step.rank,
            step.told,
            step.attempts,
            step.sent_at,
            step.arrived_at,
            step.settled_at,
            step.told_at,
        )
        for step in steps
    )
    db.executemany(_STEP, values).fetchall()


def acked(db: Database, steps: Sequence[Step]) -> None:
    """As `record` of steps that do nothing but raise to ACKED, with when and how often it was sent: quicker."""
    before = db.connection.total_changes()
    db.executemany(_ACK, [(step.order, step.attempts, step.sent_at, step.settled_at) for step in steps]).fetchall()
    risen = db.connection.total_changes() - before
    count(db, "delivered", risen)
    if risen < len(steps):  # repeated, or given up before
        record(db, steps)


def settle(db: Database, keys: Sequence[Key], rank: int, told: int, at: int) -> list[Row]:
    """Raise rank and told; the rows of which either rose, as they were before."""
    found = [one for one in find(db, keys).values() if not one.moved_at]
    rose = [one for one in found if rank > one.rank or told > one.told]
    record(db, [Step(one.envelope.order, rank, told, settled_at=at, told_at=at) for one in rose])
    return rose


def row(columns: Sequence[Any]) -> Row:
    order, blob, *rest = columns
    return Row(Envelope(order, MessageId(blob.hex()), *rest[:8]), *rest[8:])


def find(db: Database, keys: Sequence[Key]) -> dict[Key, Row]:
    found: dict[Key, Row] = {}

    def look(how: str, bindings: Sequence[tuple[Any, ...]]) -> None:
        for columns in db.executemany(f"SELECT {COLUMNS} FROM outbox WHERE {how} LIMIT 1", bindings):
            one = row(columns)
            found[one.envelope.key] = one

    look(_BY_ORDER, [lookup for lookup in _lookups(keys) if lookup[2]])
    look(_BY_ID, [(bytes.fromhex(key[0]), key[1]) for key in keys if key not in found])
    return found


def recipients(db: Database, message_id: MessageId) -> tuple[dict[OpenId, int], list[OpenId]]:
    blob = bytes.fromhex(message_id)
    rows: list[tuple[Any, ...]] = db.execute(_RECIPIENTS, (blob, *orders_of(message_id))).fetchall()
    acked: set[OpenId] = {user for user, _, rank in rows if rank == ACKED}
    acked |= {user for (user,) in db.execute("SELECT recipient FROM inbox WHERE message_id = ?", (blob,))}
    return {user: order for user, order, _ in rows}, sorted(acked)


def purge(db: Database, before: int, limit: int) -> int:
    """Remove the oldest rows that are done or moved, then the oldest acks; how many went."""
    done: list[tuple[Any, ...]] = db.execute(
        "SELECT ord, message_id, recipient, rank, moved_at FROM outbox"
        " WHERE ord < ? AND (rank > 0 AND told >= rank OR moved_at > 0) ORDER BY ord LIMIT ?",
        (before << 16, limit),
    ).fetchall()
    if done:
        ids = ((blob, user) for _, blob, user, *_ in done)
        db.executemany("DELETE FROM ids WHERE message_id = ? AND recipient = ?", ids).fetchall()
        db.executemany("DELETE FROM outbox WHERE ord = ?", ((order,) for order, *_ in done)).fetchall()
        count(db, "delivered_purged", sum(rank == ACKED and not moved_at for *_, rank, moved_at in done))
        count(db, "given_up_purged", sum(rank != ACKED and not moved_at for *_, rank, moved_at in done))
        count(db, "moved_purged", sum(moved_at > 0 for *_, moved_at in done))
        keep_highest(db, "last_purged", done[-1][0])
    acks = db.execute(  # the oldest are looked at and no more: there is no index by time
        "DELETE FROM inbox WHERE place IN (SELECT place FROM (SELECT place, acked_at FROM inbox ORDER BY place LIMIT ?)"
        " WHERE acked_at < ?) RETURNING place",
        (limit - len(done), before),
    ).fetchall()
    return len(done) + len(acks)


def last_order(db: Database) -> int:
    ((last,),) = db.execute("SELECT coalesce(max(ord), 0) FROM outbox")
    return max(int(last), counter(db, "last_purged"))


# -- acks --------------------------------------------------------------------------------------------------------------
def known(db: Database, keys: Sequence[Key]) -> list[bool]:
    return [bool(there) for (there,) in db.executemany(_KNOWN, _lookups(keys))]


def ack(db: Database, entries: Sequence[AckEntry]) -> list[int]:
    """Enter acks at the end of the log. A repeated one moves there, with the origins of both."""
    remote = [(bytes.fromhex(entry.key[0]), entry.key[1]) for entry in entries if entry.origins]
    if not remote:
        return [0] * len(entries)
    before = db.executemany(
        "SELECT message_id, recipient, origins FROM inbox WHERE message_id = ? AND recipient = ?", remote
    )
    origins = {(MessageId(blob.hex()), OpenId(user)): set(text.split()) for blob, user, text in before}
    place, places = counter(db, "place"), []
    values: dict[Key, tuple[int, bytes, OpenId, str, int]] = {}
    for entry in entries:
        if not entry.origins:
            places.append(0)
            continue
        place += 1
        places.append(place)
        nodes = origins.setdefault(entry.key, set())
        nodes.update(entry.origins)
        message_id, user = entry.key
        values[entry.key] = (place, bytes.fromhex(message_id), user, " ".join(sorted(nodes)), entry.at)
    db.executemany("INSERT OR REPLACE INTO inbox VALUES (?, ?, ?, ?, ?)", values.values()).fetchall()
    keep_highest(db, "place", place)
    return places


def unsent(db: Database, after: int, limit: int) -> list[tuple[int, AckEntry]]:
    rows = db.execute(
        "SELECT place, message_id, recipient, origins, acked_at FROM inbox WHERE place > ? ORDER BY place LIMIT ?",
        (max(after, counter(db, "published")), limit),
    )
    return [
        (place, AckEntry((MessageId(blob.hex()), OpenId(user)), tuple(map(Node, origins.split())), at=at))
        for place, blob, user, origins, at in rows
    ]


# -- numbers -----------------------------------------------------------------------------------------------------------
def mark(db: Database, name: str, value: int) -> int:
    """Keep the highest; the one before."""
    found = db.execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()
    before = int(found[0]) if found else 0
    if value > before:
        db.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", (name, value))
    return before


def marks(db: Database, prefix: str) -> dict[str, int]:
    """All whose names begin so, by what follows."""
    sql = "SELECT substr(name, length(?1) + 1), value FROM marks WHERE substr(name, 1, length(?1)) = ?1"
    return dict(db.execute(sql, (prefix,)))


def orders_of(message_id: MessageId) -> tuple[int, int]:
    """Between which orders a row stands whose id carries it; nothing lies between for other ids."""
    first = order_from_message_id(message_id)
    return first, first + MAX_RECIPIENTS if first else 0


def _lookups(keys: Sequence[Key]) -> Iterator[tuple[bytes, OpenId, int, int]]:
    return ((bytes.fromhex(message_id), user, *orders_of(message_id)) for message_id, user in keys)
