"""A person's questions to the message table, which must not keep the messages waiting, however large the table is."""

from __future__ import annotations

from typing import Any, Final

from yanchat.backends.lane import Lane
from yanchat.backends.sqlite.database import Database
from yanchat.backends.sqlite.rows import COLUMNS, orders_of, row
from yanchat.model import Row
from yanchat.ports import RowFilter

SCANNED: Final = 20_000
"""Rows that are looked at before others have their turn."""
_LAST: Final = (1 << 63) - 1
_STATES = {
    "pending": "rank = 0 AND moved_at = 0",
    "expired": "rank = 1 AND moved_at = 0",
    "delivered": "rank = 2 AND moved_at = 0",
    "untold": "rank > told AND moved_at = 0",
    "moved": "moved_at > 0",
}
_INDEXES = {"pending": "open_messages", "expired": "given_up", "untold": "untold_notices"}
_SEARCH = f"SELECT {COLUMNS} FROM outbox WHERE ord > ? AND ord <= ? AND {{terms}} ORDER BY ord LIMIT ?"


async def search(lane: Lane[Database], what: RowFilter) -> list[Row]:
    """Rows in the order of acceptance. What no index narrows down is read in steps, each a job of its own."""
    sql, values = _terms(what)
    narrow = what.message_id is not None or _rare(what.states)

    def step(db: Database, after: int, limit: int) -> tuple[list[Row], int]:
        end = _LAST if narrow else _scan_end(db, after)
        return [row(columns) for columns in db.execute(sql, (after, end, *values, limit))], end

    found: list[Row] = []
    after = what.after
    while after < _LAST and len(found) < what.limit:
        start, limit = after, what.limit - len(found)
        more, after = await lane.run(lambda db, start=start, limit=limit: step(db, start, limit), writes=False)  # type: ignore[misc]
        found += more
    return found


def _terms(what: RowFilter) -> tuple[str, list[Any]]:
    terms: list[str] = []
    values: list[Any] = []

    def add(term: str, *bound: Any) -> None:
        terms.append(term)
        values.extend(bound)

    if what.recipient is not None:
        add("recipient = ?", what.recipient)
    if what.accepted_before is not None:
        add("accepted_at < ?", what.accepted_before)
    if what.message_id is not None:
        blob, orders = bytes.fromhex(what.message_id), orders_of(what.message_id)
        by_order, by_id = (
            "SELECT ord FROM outbox WHERE ord >= ? AND ord < ?",
            "SELECT ord FROM ids WHERE message_id = ?",
        )
        add(f"message_id = ? AND ord IN ({by_order} UNION {by_id})", blob, *orders, blob)
    if _rare(what.states):
        rows = (f"SELECT ord FROM outbox INDEXED BY {_INDEXES[state]} WHERE {_STATES[state]}" for state in what.states)
        add(f"ord IN ({' UNION '.join(rows)})")
    elif what.states:
        add(f"({' OR '.join(_STATES[state] for state in what.states)})")
    return _SEARCH.format(terms=" AND ".join(terms) or "TRUE"), values


def _rare(states: tuple[str, ...]) -> bool:
    """Whether few rows are in these states, so that an index holds them."""
    return bool(states) and set(states) <= set(_INDEXES)


def _scan_end(db: Database, after: int) -> int:
    """The last order of the next step."""
    found = db.execute("SELECT ord FROM outbox WHERE ord > ? ORDER BY ord LIMIT 1 OFFSET ?", (after, SCANNED - 1))
    return next((int(order) for (order,) in found), _LAST)
