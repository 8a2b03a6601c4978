"""The catalog: names, sizes and settings of a pool's disks, and the pool's drives, in SQLite.

The catalog is the authority for which disks exist and how large they are; their data lives in the
core's files. It is small and changes rarely, so every change is one transaction, durable when the
call returns (WAL, synchronous=FULL).

Invariants
- A disk's id is never given twice, not even after the disk is gone: `allocate_disk_id` commits the
  counter before the core hears of the id.
- `user_version` is the version of the schema. Older ones are upgraded at open, newer ones refused.
- ``catalog.reserve`` occupies space that a change can be given when the drive is full, so that
  disks can still be deleted and cut down then.

Concurrency: one connection guarded by one lock; every method may be called from any thread.
"""

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID

from storage.errors import (
    CatalogDamaged,
    CatalogTooNew,
    DiskNotFound,
    InvalidRequest,
    NameTaken,
    NoSpace,
    PoolClosed,
)
from storage.service import DiskState
from storage.settings import Settings
from storage.units import DISK_ID_MAX, ByteSize, DiskId, DriveIndex, UnixSeconds

T = TypeVar("T")

CATALOG_FILE: Final = "catalog.sqlite"
SCHEMA_VERSION: Final = 3
APPLICATION_ID: Final = int.from_bytes(b"NSTN", "big")

RESERVE_FILE: Final = "catalog.reserve"
_RESERVE_SIZE_BYTES: Final = 1 << 20
# Enough for one change, the write-ahead log and its index included.
_RESERVE_PIECE_BYTES: Final = _RESERVE_SIZE_BYTES // 4
# Checkpointed often, so that the write-ahead log never outgrows the reserve: 64 pages are 256 KiB.
_WAL_PAGES_MAX: Final = 64

_SCHEMA: Final = """
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
"""

_DISKS_SCHEMA: Final = (
    """CREATE TABLE disks (
    id          INTEGER PRIMARY KEY CHECK (id BETWEEN 1 AND 4294967295),
    name        TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 257),
    size_bytes  INTEGER NOT NULL CHECK (size_bytes > 0 AND size_bytes % 512 = 0),
    state       TEXT NOT NULL CHECK (state IN ('ready', 'importing', 'deleting')),
    created     INTEGER NOT NULL,
    description TEXT NOT NULL,
    settings    TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(settings)),
    -- The disk that a snapshot is of; it is named DISK@SNAPSHOT.
    snapshot_of INTEGER
) STRICT""",
    # A disk that is being deleted has given its name back already.
    "CREATE UNIQUE INDEX disks_by_name ON disks (name) WHERE state <> 'deleting'",
)

_SETTINGS_SCHEMA: Final = """CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL CHECK (json_valid(value))
) STRICT"""


@dataclass(frozen=True)
class DiskRow:
    """A disk as the catalog has it."""

    id: DiskId
    name: str
    size_bytes: ByteSize
    state: DiskState
    created: UnixSeconds
    description: str
    snapshot_of: DiskId | None = None


@dataclass(frozen=True)
class DriveRow:
    """A drive as the catalog has it; `path` is absolute, or "." for the pool's own folder."""

    index: DriveIndex
    uuid: UUID
    path: str


def create_catalog(
    path: Path, pool_uuid: UUID, created: UnixSeconds, drives: Sequence[DriveRow]
) -> None:
    """Writes the catalog of a new pool at `path`, which does not exist.

    Durability: the file is on stable storage at return; its folder's entry is the caller's to sync.
    """
    with _sqlite_errors(path):
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.executescript(
                f"PRAGMA synchronous = FULL; BEGIN; PRAGMA application_id = {APPLICATION_ID};"
                f"PRAGMA user_version = {SCHEMA_VERSION};"
                f"{_SCHEMA} {'; '.join(_DISKS_SCHEMA)}; {_SETTINGS_SCHEMA};"
            )
            connection.execute("INSERT INTO pool VALUES (1, ?, ?, 1)", (pool_uuid.bytes, created))
            connection.executemany(
                "INSERT INTO drives VALUES (?, ?, ?)",
                [(drive.index, drive.uuid.bytes, drive.path) for drive in drives],
            )
            connection.execute("COMMIT")
        finally:
            connection.close()
    path.chmod(0o600)


class Catalog:
    """An open catalog. The pool's lock is held by whoever opens it."""

    def __init__(self, path: Path) -> None:
        """Opens the catalog at `path`. Raises: CatalogDamaged, CatalogTooNew, NoSpace."""
        self._path = path
        self._mutex = threading.Lock()
        self._is_closed = False
        self._reserve = path.with_name(RESERVE_FILE)
        with _sqlite_errors(path):
            self._connection = self._with_reserve(lambda: _connect(path))
            self._with_reserve(lambda: _upgrade(self._connection))
            row = self._connection.execute("SELECT uuid, created FROM pool").fetchone()
        if row is None:
            self._connection.close()
            raise CatalogDamaged(path=str(path), detail="it describes no pool")
        self.pool_uuid = UUID(bytes=row[0])
        self.created = UnixSeconds(row[1])

    def close(self) -> None:
        """Later calls raise PoolClosed; safe to call again."""
        with self._mutex:
            self._is_closed = True
            self._connection.close()

    def drives(self) -> list[DriveRow]:
        """The pool's drives by index."""
        with self._reading() as connection:
            rows = connection.execute('SELECT "index", uuid, path FROM drives ORDER BY 1')
            return [DriveRow(index, UUID(bytes=uuid), path) for index, uuid, path in rows]

    def disks(self) -> list[DiskRow]:
        """All disks in every state, by name."""
        with self._reading() as connection:
            return [
                _disk_row(row) for row in connection.execute(f"{_SELECT_DISK} ORDER BY name, id")
            ]

    def snapshots(self, disk_id: DiskId) -> list[DiskRow]:
        """The snapshots of a disk that are not being deleted, oldest first."""
        with self._reading() as connection:
            rows = connection.execute(
                f"{_SELECT_DISK} WHERE snapshot_of = ? AND state <> ? ORDER BY id",
                (disk_id, DiskState.DELETING),
            )
            return [_disk_row(row) for row in rows]

    def disk(self, name: str) -> DiskRow:
        """The disk of that name, unless it is being deleted. Raises: DiskNotFound."""
        with self._reading() as connection:
            found = connection.execute(
                f"{_SELECT_DISK} WHERE name = ? AND state <> ?", (name, DiskState.DELETING)
            )
            row = found.fetchone()
        if row is None:
            raise DiskNotFound(disk=name)
        return _disk_row(row)

    def disk_numbered(self, disk_id: DiskId) -> DiskRow:
        """The disk of that id, in whatever state. Raises: DiskNotFound."""
        with self._reading() as connection:
            row = connection.execute(f"{_SELECT_DISK} WHERE id = ?", (disk_id,)).fetchone()
        if row is None:
            raise DiskNotFound(disk=disk_id)
        return _disk_row(row)

    def settings(self, disk_id: DiskId) -> Settings:
        """What was set for the disk. Raises: DiskNotFound, CatalogDamaged."""
        with self._reading() as connection:
            query = "SELECT settings FROM disks WHERE id = ?"
            row = connection.execute(query, (disk_id,)).fetchone()
        if row is None:
            raise DiskNotFound(disk=disk_id)
        settings = json.loads(row[0])
        if not isinstance(settings, dict):
            raise CatalogDamaged(path=str(self._path), detail=f"settings of disk {disk_id}")
        return settings

    def pool_settings(self) -> Settings:
        """What was set for the pool as a whole, and what it keeps for itself."""
        with self._reading() as connection:
            rows = connection.execute("SELECT name, value FROM settings")
            return {name: json.loads(value) for name, value in rows}

    def set_pool_settings(self, changes: Mapping[str, Any]) -> None:
        """Those that are named, None removing them; durable at return."""
        kept = [(name, json.dumps(value)) for name, value in changes.items() if value is not None]
        gone = [(name,) for name, value in changes.items() if value is None]

        def change(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", kept)
            connection.executemany("DELETE FROM settings WHERE name = ?", gone)

        self._write(change)

    def allocate_disk_id(self) -> DiskId:
        """An id that no disk of this pool ever had or will have. Durable at return."""

        def allocate(connection: sqlite3.Connection) -> int:
            (disk_id,) = connection.execute("SELECT next_disk_id FROM pool").fetchone()
            if disk_id > DISK_ID_MAX:
                raise InvalidRequest(reason="this pool has used up its disk ids")
            connection.execute("UPDATE pool SET next_disk_id = ?", (disk_id + 1,))
            return int(disk_id)

        return DiskId(self._write(allocate))

    def add_disk(self, row: DiskRow) -> None:
        """Durable at return, as with all that follow. Raises: NameTaken."""
        self._write(
            lambda connection: connection.execute(
                "INSERT INTO disks (id, name, size_bytes, state, created, description, snapshot_of)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                astuple(row),
            ),
            row.name,
        )

    def set_size(self, disk_id: DiskId, size_bytes: ByteSize) -> None:
        """The size that counts from now on."""
        self._update(disk_id, "size_bytes", size_bytes)

    def set_state(self, disk_id: DiskId, state: DiskState) -> None:
        """DELETING gives the disk's name back."""
        self.set_states([disk_id], state)

    def set_states(self, disk_ids: Sequence[DiskId], state: DiskState) -> None:
        """Of several disks, all or none."""
        rows = [(state, disk_id) for disk_id in disk_ids]
        query = "UPDATE disks SET state = ? WHERE id = ?"
        self._write(lambda connection: connection.executemany(query, rows))

    def set_settings(self, disk_id: DiskId, settings: Settings) -> None:
        """All that is set for the disk."""
        self._update(disk_id, "settings", json.dumps(settings))

    def set_name(self, disk_id: DiskId, name: str) -> None:
        """Its snapshots are named after it. Raises: NameTaken."""

        def rename(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE disks SET name = ? WHERE id = ?", (name, disk_id))
            connection.execute(
                "UPDATE disks SET name = ? || substr(name, instr(name, '@')) WHERE snapshot_of = ?",
                (name, disk_id),
            )

        self._write(rename, name)

    def remove_disk(self, disk_id: DiskId) -> None:
        """The disk's row goes; its id stays used."""
        self._write(
            lambda connection: connection.execute("DELETE FROM disks WHERE id = ?", (disk_id,))
        )

    def _update(self, disk_id: DiskId, column: str, value: str | int) -> None:
        query = f"UPDATE disks SET {column} = ? WHERE id = ?"
        self._write(lambda connection: connection.execute(query, (value, disk_id)), str(value))

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._mutex, _sqlite_errors(self._path):
            if self._is_closed:
                raise PoolClosed
            yield self._connection

    def _write(self, change: Callable[[sqlite3.Connection], T], name: str = "") -> T:
        """Carries `change` out as one transaction. `name` is the one that NameTaken would name."""
        with self._mutex, _sqlite_errors(self._path, name):
            if self._is_closed:
                raise PoolClosed
            return self._with_reserve(lambda: _in_transaction(self._connection, change))

    def _with_reserve(self, action: Callable[[], T]) -> T:
        """Does `action`; while the drive is full, again and again with a piece of the reserve.

        The reserve is filled up again by the next call that finds room for it.
        """
        has_given = False
        while True:
            try:
                result = action()
            except sqlite3.OperationalError as exc:
                if not _is_full(exc) or not _give_piece(self._reserve):
                    raise
                has_given = True
            else:
                if not has_given:
                    _fill_up(self._reserve)
                return result


_SELECT_DISK: Final = (
    "SELECT id, name, size_bytes, state, created, description, snapshot_of FROM disks"
)


def _disk_row(row: tuple[int, str, int, str, int, str, int | None]) -> DiskRow:
    disk_id, name, size_bytes, state, created, description, snapshot_of = row
    return DiskRow(
        id=DiskId(disk_id),
        name=name,
        size_bytes=ByteSize(size_bytes),
        state=DiskState(state),
        created=UnixSeconds(created),
        description=description,
        snapshot_of=None if snapshot_of is None else DiskId(snapshot_of),
    )


def _connect(path: Path) -> sqlite3.Connection:
    """A connection to a catalog that has been looked at: it is ours, whole, and of our version."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        if _pragma(connection, "application_id") != APPLICATION_ID:
            raise CatalogDamaged(path=str(path), detail="it is not a catalog of Nearstone")
        version = _pragma(connection, "user_version")
        if version > SCHEMA_VERSION:
            raise CatalogTooNew(path=str(path), found_version=version, known_version=SCHEMA_VERSION)
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise CatalogDamaged(path=str(path), detail=verdict)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES_MAX}")
    except BaseException:
        connection.close()
        raise
    return connection


def _upgrade(connection: sqlite3.Connection) -> None:
    """Brings an older catalog to this schema, in one transaction."""
    if _pragma(connection, "user_version") == SCHEMA_VERSION:
        return

    def upgrade(connection: sqlite3.Connection) -> None:
        if _pragma(connection, "user_version") < 2:
            # A CHECK cannot be changed: the table is made anew (sqlite.org/lang_altertable.html).
            connection.execute("DROP INDEX disks_by_name")
            connection.execute("ALTER TABLE disks RENAME TO disks_1")
            for statement in _DISKS_SCHEMA:
                connection.execute(statement)
            connection.execute("INSERT INTO disks SELECT *, NULL FROM disks_1")
            connection.execute("DROP TABLE disks_1")
        connection.execute(_SETTINGS_SCHEMA)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    _in_transaction(connection, upgrade)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _in_transaction(connection: sqlite3.Connection, change: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = change(connection)
        connection.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some errors (sqlite.org/lang_transaction.html).
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


def _is_full(exc: sqlite3.Error) -> bool:
    """Whether the drive was full. The shared memory's file reports that in a way of its own."""
    return exc.sqlite_errorcode in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)


def _give_piece(reserve: Path) -> bool:
    """Gives a piece of the reserve back to the drive; returns whether there was one."""
    try:
        size_bytes = reserve.stat().st_size
        os.truncate(reserve, max(0, size_bytes - _RESERVE_PIECE_BYTES))
    except OSError:
        return False
    return size_bytes > 0


def _fill_up(reserve: Path) -> None:
    """Lets the reserve have its full size, if the drive has the room; nothing happens if not."""
    try:
        fd = os.open(reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    try:
        size_bytes = os.fstat(fd).st_size
        if size_bytes < _RESERVE_SIZE_BYTES:
            try:
                os.posix_fallocate(fd, 0, _RESERVE_SIZE_BYTES)
            except OSError:
                os.ftruncate(fd, size_bytes)
    finally:
        os.close(fd)


@contextmanager
def _sqlite_errors(path: Path, name: str = "") -> Iterator[None]:
    """Turns SQLite's errors into leaves."""
    try:
        yield
    except sqlite3.Error as exc:
        code = getattr(exc, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_CONSTRAINT_UNIQUE:
            raise NameTaken(name=name) from exc
        if isinstance(exc, sqlite3.OperationalError) and _is_full(exc):
            raise NoSpace(pool=str(path.parent)) from exc
        raise CatalogDamaged(path=str(path), detail=str(exc)) from exc
