-- The catalog with settings of the pool (schema version 3). Never change this file.
PRAGMA application_id = 1314083918;
PRAGMA user_version = 3;
CREATE TABLE pool (
    one          INTEGER PRIMARY KEY CHECK (one = 1),
    uuid         BLOB NOT NULL CHECK (length(uuid) = 16),
    created      INTEGER NOT NULL,
    next_disk_id INTEGER NOT NULL CHECK (next_disk_id BETWEEN 1 AND 4294967296)
) STRICT;
CREATE TABLE drives (
    "index" INTEGER PRIMARY KEY CHECK ("index" BETWEEN 0 AND 63),
    uuid    BLOB NOT NULL UNIQUE CHECK (length(uuid) = 16),
    path    TEXT NOT NULL UNIQUE
) STRICT;
CREATE TABLE disks (
    id          INTEGER PRIMARY KEY CHECK (id BETWEEN 1 AND 4294967295),
    name        TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 257),
    size_bytes  INTEGER NOT NULL CHECK (size_bytes > 0 AND size_bytes % 512 = 0),
    state       TEXT NOT NULL CHECK (state IN ('ready', 'importing', 'deleting')),
    created     INTEGER NOT NULL,
    description TEXT NOT NULL,
    settings    TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(settings)),
    -- The disk that a snapshot is of; it is named DISK@SNAPSHOT.
    snapshot_of INTEGER
) STRICT;
-- A disk that is being deleted has given its name back already.
CREATE UNIQUE INDEX disks_by_name ON disks (name) WHERE state <> 'deleting';
CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL CHECK (json_valid(value))
) STRICT;
INSERT INTO pool VALUES (1, x'00112233445566778899aabbccddeeff', 1764000000, 9);
INSERT INTO drives VALUES (0, x'000000000000000000000000000000a0', '.');
INSERT INTO drives VALUES (1, x'000000000000000000000000000000a1', '/mnt/second');
INSERT INTO disks VALUES (3, 'mail', 21474836480, 'ready', 1764000001, 'the mail server', '{}', NULL);
INSERT INTO disks VALUES (4, 'web', 1099511627776, 'importing', 1764000002, '', '{}', NULL);
INSERT INTO disks VALUES (5, 'web', 512, 'deleting', 1764000003, '', '{"note": 1}', NULL);
INSERT INTO disks VALUES (6, 'mail@monday', 21474836480, 'ready', 1764000004, '', '{}', 3);
INSERT INTO settings VALUES ('scrub_every', '"weekly"');
