-- A message table as the first version wrote it: messages open, given up, acked, moved and adopted, and an ack.
BEGIN TRANSACTION;
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO counters VALUES('added',7);
INSERT INTO counters VALUES('adopted',1);
INSERT INTO counters VALUES('moved',1);
INSERT INTO counters VALUES('place',1);
INSERT INTO counters VALUES('published',1);
CREATE TABLE ids (
    message_id BLOB NOT NULL,
    recipient TEXT NOT NULL,
    ord INTEGER NOT NULL,
    PRIMARY KEY (message_id, recipient)
) STRICT, WITHOUT ROWID;
INSERT INTO ids VALUES(X'9D315F6969548B22B4416BBE42357A4A','bob',131072000);
CREATE TABLE inbox (
    place INTEGER PRIMARY KEY,
    message_id BLOB NOT NULL,
    recipient TEXT NOT NULL,
    origins TEXT NOT NULL,
    acked_at INTEGER NOT NULL
) STRICT;
INSERT INTO inbox VALUES(1,X'000000001F40700083FF533BDD726ADC','ann','127.0.0.1:8002',8100);
CREATE UNIQUE INDEX inbox_keys ON inbox (message_id, recipient);
CREATE TABLE marks (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO marks VALUES('session-second',9);
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES('store','4fbe047df0410ca215bfb67109621eae');
CREATE TABLE outbox (
    ord INTEGER PRIMARY KEY,
    message_id BLOB NOT NULL,
    recipient TEXT NOT NULL,
    sender TEXT NOT NULL,
    sender_name TEXT NOT NULL,
    request_id TEXT NOT NULL,
    text TEXT NOT NULL,
    file_type INTEGER NOT NULL,
    accepted_at INTEGER NOT NULL,
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
INSERT INTO outbox VALUES(65536000,X'0000000003E8700080DF5A710173B387','bob','ann','Ann','r','hello',0,1000,2,2,1,1100,1200,1300,1400,0,0);
INSERT INTO outbox VALUES(65536001,X'0000000003E8700080DF5A710173B387','cid','ann','Ann','r','hello',0,1000,0,0,0,0,0,0,0,0,0);
INSERT INTO outbox VALUES(131072000,X'9D315F6969548B22B4416BBE42357A4A','bob','ann','Ann','r-1','hello',0,2000,2,0,2,2100,2200,2300,0,0,0);
INSERT INTO outbox VALUES(196608000,X'000000000BB8700082C1983C6595EBC9','bob','ann','Ann','r','日本 ''quoted''',0,3000,0,0,0,0,0,0,0,0,0);
INSERT INTO outbox VALUES(262144000,X'000000000FA0700081140EB7CEA79BC6','bob','bob','Bob','r','hello',0,4000,1,1,3,0,0,4300,4400,0,0);
INSERT INTO outbox VALUES(327680000,X'0000000013887000827A06F45CCAE3F9','bob','ann','Ann','r','hello',0,5000,0,0,0,0,0,0,0,5500,0);
INSERT INTO outbox VALUES(393216000,X'00000000177070008237605261994640','cid','ann','Ann','r','hello',0,6000,0,0,0,0,0,0,0,0,0);
INSERT INTO outbox VALUES(458752000,X'000000001B58700082E1F601A5C7114E','cid','bob','Bob','r','hello',0,7000,0,0,1,7100,0,0,0,0,7500);
CREATE INDEX given_up ON outbox (ord) WHERE rank = 1 AND moved_at = 0;
CREATE INDEX open_messages ON outbox (recipient, ord, sender) WHERE rank = 0 AND moved_at = 0;
CREATE INDEX untold_notices ON outbox (sender, ord) WHERE rank > told AND moved_at = 0;
pragma user_version=1;
COMMIT TRANSACTION;
