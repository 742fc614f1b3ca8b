"""The durable numbers of a message table. Each is written in the transaction that it counts.

As many rows as `added` and `adopted` say ever came; as many as `delivered`, `given_up` and `moved` say are in those
states, the purged ones included; all others are open. `books.py` holds that against the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from yanchat.backends.sqlite.database import Database
from yanchat.model import ACKED, GIVEN_UP, OPEN, Step, Totals

Counter = Literal[
    "added",
    "adopted",
    "delivered",
    "given_up",
    "moved",
    "delivered_purged",
    "given_up_purged",
    "moved_purged",
    "last_purged",
    "place",
    "published",
]
STATE: Final[dict[int, Counter]] = {ACKED: "delivered", GIVEN_UP: "given_up"}
_RISES = "SELECT rank, ?2 FROM outbox WHERE ord = ?1 AND rank < ?2 AND moved_at = 0"


def begin(db: Database) -> None:
    """In a file that an earlier version has written the books begin with what is in it."""
    if db.execute("SELECT 1 FROM counters WHERE name = 'delivered'").fetchone():
        return
    here = db.execute(
        "SELECT coalesce(sum(rank = 2 AND moved_at = 0), 0), coalesce(sum(rank = 1 AND moved_at = 0), 0),"
        " coalesce(sum(rank = 0 AND moved_at = 0), 0), coalesce(sum(moved_at > 0), 0) FROM outbox"
    )
    ((delivered, given_up, pending, moved),) = here
    given_up += counter(db, "given_up_purged")
    all_moved = counter(db, "moved")
    all_delivered = counter(db, "added") + counter(db, "adopted") - pending - given_up - all_moved
    for name, value in (
        ("delivered", all_delivered),
        ("given_up", given_up),
        ("delivered_purged", all_delivered - delivered),
        ("moved_purged", all_moved - moved),
    ):
        db.execute("INSERT INTO counters VALUES (?, ?)", (name, value))


def counter(db: Database, name: Counter) -> int:
    found = db.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
    return int(found[0]) if found else 0


def count(db: Database, name: Counter, by: int) -> None:
    if by:
        db.execute(
            "INSERT INTO counters VALUES (?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value", (name, by)
        )


def count_rises(db: Database, steps: Sequence[Step]) -> None:
    """Count the rows that these steps, which are about to be written, will raise."""
    highest: dict[int, int] = {}
    for step in steps:
        if step.rank > highest.get(step.order, OPEN):
            highest[step.order] = step.rank
    if not highest:
        return
    delivered = given_up = 0
    for before, rank in db.executemany(_RISES, highest.items()):
        delivered += rank == ACKED
        given_up += (rank == GIVEN_UP) - (before == GIVEN_UP)
    count(db, "delivered", delivered)
    count(db, "given_up", given_up)


def count_state(db: Database, rank: int, by: int) -> None:
    """So many rows of this rank have come, or have moved away."""
    if rank in STATE:
        count(db, STATE[rank], by)


def keep_highest(db: Database, name: Counter, value: int) -> None:
    db.execute(
        "INSERT INTO counters VALUES (?, ?) ON CONFLICT DO UPDATE SET value = max(value, excluded.value)", (name, value)
    )


def totals(db: Database) -> Totals:
    """From counters and the small indexes: nobody counts the whole table."""

    def rows(index: str, where: str) -> int:
        ((number,),) = db.execute(f"SELECT count(*) FROM outbox INDEXED BY {index} WHERE {where} AND moved_at = 0")
        return int(number)

    return Totals(
        pending=rows("open_messages", "rank = 0"),
        delivered=counter(db, "delivered"),
        expired=counter(db, "given_up"),
        untold=rows("untold_notices", "rank > told"),
        moved=counter(db, "moved"),
        adopted=counter(db, "adopted"),
    )
