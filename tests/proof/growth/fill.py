"""Rows put straight into a message table, as a node would have made them in days."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from yanchat.backends.sqlite import counters
from yanchat.backends.sqlite.database import Database, Schema
from yanchat.backends.sqlite.rows import COLUMNS
from yanchat.backends.sqlite.store import STEPS
from yanchat.model import ACKED, OPEN, MessageId
from yanchat.protocol.ids import Orders, message_id_from_order, request_id

DAY = 86_400_000
TEXT = "x" * 200
SENDERS, RECIPIENTS = 1_000, 10_000
EACH = 10
"""Messages that wait for each of those who are away."""
_ADD = f"INSERT INTO outbox ({COLUMNS}) VALUES ({','.join('?' * 19)})"
AT_ONCE = 50_000


class Table:
    """A message table that no node has open. It grows by rows that are all settled or all pending."""

    def __init__(self, path: Path, most: int, *, settled: bool) -> None:
        """`most` rows at the end: the settled ones were accepted evenly over a week, the pending ones over an hour."""
        self.path, self.rows = path, 0
        now = int(time.time() * 1000)
        self._settled, self._most = settled, most
        self._first, self._span = (now - 8 * DAY, 7 * DAY) if settled else (now - 3_600_000, 3_000_000)
        self._orders, self._rng = Orders(0), random.Random(1)

    def grow(self, to: int) -> None:
        """Have so many rows in all."""
        schema = Schema((files("yanchat.backends.sqlite") / "schema.sql").read_text(), STEPS)
        db = Database(self.path, schema, full=False)
        db.connection.pragma("journal_mode", "off")
        db.connection.pragma("synchronous", 0)
        db.execute("BEGIN")
        counters.begin(db)
        rows, more = self._rows(to), to - self.rows
        while some := list(islice(rows, AT_ONCE)):
            db.executemany(_ADD, some).fetchall()
        counters.count(db, "added", more)
        counters.count(db, "delivered", more if self._settled else 0)
        db.execute("COMMIT")
        db.connection.pragma("journal_mode", "wal")
        db.close()

    def _rows(self, to: int) -> Iterator[tuple[Any, ...]]:
        rank = ACKED if self._settled else OPEN
        while self.rows < to:
            number, self.rows = self.rows, self.rows + 1
            at = self._first + number * self._span // self._most
            order = self._orders.take(at)
            message_id: MessageId = message_id_from_order(order, self._rng)
            sender = f"s{number % SENDERS}"
            away = f"away{number // (RECIPIENTS * EACH)}-{number % RECIPIENTS}"
            recipient = f"r{number % RECIPIENTS}" if self._settled else away
            times = (1, at + 2, at + 4, at + 6, at + 8) if self._settled else (0, 0, 0, 0, 0)
            head = (order, bytes.fromhex(message_id), recipient, sender, sender, request_id(message_id), TEXT, 0, at)
            yield *head, "", rank, rank, *times, 0, 0
