-- The local message table. Rows are keyed by `ord`, which only grows. Most ids carry the order themselves; those that
-- do not (made from a requestId) are random by nature and stand in `ids`. rank: 0 open, 1 given up, 2 acked; `told` is
-- the rank that the sender knows. A row that has `moved_at` belongs to another node, and one that has `adopted_at` came
-- from one. Times are milliseconds since the epoch, 0 for never.
CREATE TABLE IF NOT EXISTS outbox (
    ord INTEGER PRIMARY KEY,
    message_id BLOB NOT NULL,
    recipient TEXT NOT NULL,
    sender TEXT NOT NULL,
    sender_name TEXT NOT NULL,
    request_id TEXT NOT NULL,
    text TEXT NOT NULL,
    file_type INTEGER NOT NULL,
    accepted_at INTEGER NOT NULL,
    traceparent TEXT NOT NULL DEFAULT '',
    rank INTEGER NOT NULL DEFAULT 0,
    told INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    sent_at INTEGER NOT NULL DEFAULT 0,
    arrived_at INTEGER NOT NULL DEFAULT 0,
    settled_at INTEGER NOT NULL DEFAULT 0,
    told_at INTEGER NOT NULL DEFAULT 0,
    moved_at INTEGER NOT NULL DEFAULT 0,
    adopted_at INTEGER NOT NULL DEFAULT 0
) STRICT;
-- Small ones: a row leaves the first two when it is done, and few are ever given up.
CREATE INDEX IF NOT EXISTS open_messages ON outbox (recipient, ord, sender) WHERE rank = 0 AND moved_at = 0;
CREATE INDEX IF NOT EXISTS untold_notices ON outbox (sender, ord) WHERE rank > told AND moved_at = 0;
CREATE INDEX IF NOT EXISTS given_up ON outbox (ord) WHERE rank = 1 AND moved_at = 0;

CREATE TABLE IF NOT EXISTS ids (
    message_id BLOB NOT NULL,
    recipient TEXT NOT NULL,
    ord INTEGER NOT NULL,
    PRIMARY KEY (message_id, recipient)
) STRICT, WITHOUT ROWID;

-- What users here have acked of other nodes' messages; `place` orders the acks for their way back.
CREATE TABLE IF NOT EXISTS inbox (
    place INTEGER PRIMARY KEY,
    message_id BLOB NOT NULL,
    recipient TEXT NOT NULL,
    origins TEXT NOT NULL,
    acked_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS inbox_keys ON inbox (message_id, recipient);

-- Of the store itself: rows by what became of them (counters.py says how they add up), the highest `order` purged, the
-- last `place`, the place up to which acks are `published`.
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS marks (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
