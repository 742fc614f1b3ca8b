"""The statements that move rows between message tables. Each function runs inside a transaction of the lane."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from yanchat.backends.sqlite.counters import count, count_state
from yanchat.backends.sqlite.database import Database
from yanchat.backends.sqlite.rows import COLUMNS, find, orders_of, record
from yanchat.model import ACKED, Key, Row, Step

MOVABLE: Final = f"""NOT INDEXED WHERE ord > ? AND moved_at = 0 AND NOT (rank = {ACKED} AND told = {ACKED})
 ORDER BY ord LIMIT ?"""
"""In passing over the table once: whoever asks goes through all of it, and nobody else uses a dead node's."""
_INSERT = f"INSERT INTO outbox ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,0,?)"
_FREE = """SELECT CASE WHEN NOT EXISTS (SELECT 1 FROM outbox WHERE ord = ?1) THEN ?1 ELSE
 (SELECT ord + 1 FROM outbox AS taken WHERE ord >= ?1 AND NOT EXISTS (SELECT 1 FROM outbox WHERE ord = taken.ord + 1)
  ORDER BY ord LIMIT 1) END"""


def adopt(db: Database, rows: Sequence[Row], at: int) -> list[Row]:
    """Insert what is not there, in the old sequence; raise what is, and take back what was moved away."""
    here = find(db, [one.envelope.key for one in rows])
    came: list[Row] = []
    order = 0
    for one in sorted(rows, key=lambda one: one.envelope.order):
        key = one.envelope.key
        known = here.get(key)
        if known is None:
            order = _free(db, max(order + 1, one.envelope.order))
            new = replace(one, envelope=replace(one.envelope, order=order), moved_at=0, adopted_at=at)
            _insert(db, new)
            here[key] = new
            came.append(new)
            continue
        record(db, [_step(known.envelope.order, one)])
        if known.moved_at:
            here[key] = _take_back(db, key, known.envelope.order, at)
            came.append(here[key])
    return came


def moved(db: Database, keys: Sequence[Key], at: int) -> None:
    """Mark rows that are not marked yet."""
    going = [one for one in find(db, keys).values() if not one.moved_at]
    marks = ((at, one.envelope.order) for one in going)
    db.executemany("UPDATE outbox SET moved_at = ? WHERE ord = ?", marks).fetchall()
    for rank, rows in Counter(one.rank for one in going).items():
        count_state(db, rank, -rows)
    count(db, "moved", len(going))


def _free(db: Database, order: int) -> int:
    """This order, or the next one that no row has."""
    ((free,),) = db.execute(_FREE, (order,))
    return int(free)


def _insert(db: Database, one: Row) -> None:
    envelope = one.envelope
    blob = bytes.fromhex(envelope.message_id)
    first, end = orders_of(envelope.message_id)
    if not first <= envelope.order < end:
        db.execute("INSERT INTO ids VALUES (?, ?, ?)", (blob, envelope.recipient, envelope.order))
    db.execute(
        _INSERT,
        (
            envelope.order,
            blob,
            envelope.recipient,
            envelope.sender,
            envelope.sender_name,
            envelope.request_id,
            envelope.text,
            envelope.file_type,
            envelope.accepted_at,
            envelope.traceparent,
            one.rank,
            one.told,
            one.attempts,
            one.sent_at,
            one.arrived_at,
            one.settled_at,
            one.told_at,
            one.adopted_at,
        ),
    )
    count(db, "adopted", 1)
    count_state(db, one.rank, 1)


def _take_back(db: Database, key: Key, order: int, at: int) -> Row:
    db.execute("UPDATE outbox SET moved_at = 0, adopted_at = ? WHERE ord = ?", (at, order))
    (row,) = find(db, [key]).values()
    count(db, "moved", -1)
    count_state(db, row.rank, 1)
    return row


def _step(order: int, one: Row) -> Step:
    """All that another node knew of a row, to be written into ours."""
    return Step(order, one.rank, one.told, one.attempts, one.sent_at, one.arrived_at, one.settled_at, one.told_at)
