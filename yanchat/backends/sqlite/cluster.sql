-- What nodes that share a directory know of each other. Times are milliseconds of the boot clock: one machine, one
-- clock that never steps; `boot` is the boot they belong to, so that nothing outlives a restart of the machine.
CREATE TABLE IF NOT EXISTS nodes (
    node TEXT PRIMARY KEY,
    boot TEXT NOT NULL,
    expires INTEGER NOT NULL,
    incarnation TEXT NOT NULL,
    store TEXT NOT NULL,
    record TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS sessions (
    openid TEXT NOT NULL,
    session_id TEXT NOT NULL,
    node TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    user_name TEXT NOT NULL,
    connected_at INTEGER NOT NULL,
    remote TEXT NOT NULL,
    stamp INTEGER NOT NULL,
    PRIMARY KEY (openid, session_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sessions_by_node ON sessions (node, incarnation);

CREATE TABLE IF NOT EXISTS pending (
    openid TEXT NOT NULL,
    node TEXT NOT NULL,
    PRIMARY KEY (openid, node)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS bus (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL,
    at INTEGER NOT NULL,
    headers TEXT NOT NULL,
    value BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS bus_topic ON bus (topic, place);

CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
INSERT OR IGNORE INTO meta VALUES ('epoch', lower(hex(randomblob(8))));
