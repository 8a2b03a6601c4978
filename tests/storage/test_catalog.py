"""The catalog's file: damage, versions, full drives, and the first version for ever."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from storage import catalog as catalog_module
from storage.catalog import (
    APPLICATION_ID,
    CATALOG_FILE,
    RESERVE_FILE,
    Catalog,
    DiskRow,
    DriveRow,
    create_catalog,
)
from storage.errors import (
    CatalogDamaged,
    CatalogTooNew,
    DiskNotFound,
    NameTaken,
    NoSpace,
    PoolClosed,
)
from storage.service import DiskState
from storage.units import MIB, ByteSize, DiskId, DriveIndex, UnixSeconds

POOL_UUID = UUID(int=7)
DRIVES = [DriveRow(DriveIndex(0), UUID(int=8), ".")]
GOLDEN = Path(__file__).parent / "golden" / "catalog-v1.sql"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / CATALOG_FILE
    create_catalog(path, POOL_UUID, UnixSeconds(1000), DRIVES)
    return path


@pytest.fixture
def catalog(path: Path) -> Iterator[Catalog]:
    catalog = Catalog(path)
    yield catalog
    catalog.close()


def row(disk_id: int, name: str, state: DiskState = DiskState.READY) -> DiskRow:
    return DiskRow(DiskId(disk_id), name, ByteSize(MIB), state, UnixSeconds(5), "words")


def test_a_new_catalog(catalog: Catalog) -> None:
    assert catalog.pool_uuid == POOL_UUID
    assert catalog.created == 1000
    assert catalog.drives() == DRIVES
    assert catalog.disks() == []


def test_rows_come_back_as_they_went_in(catalog: Catalog, path: Path) -> None:
    catalog.add_disk(row(1, "a"))
    catalog.add_disk(row(2, "b", DiskState.IMPORTING))
    catalog.set_size(DiskId(1), ByteSize(2 * MIB))
    catalog.set_name(DiskId(2), "c")
    catalog.close()
    again = Catalog(path)
    assert [(disk.name, disk.size_bytes, disk.state) for disk in again.disks()] == [
        ("a", 2 * MIB, DiskState.READY),
        ("c", MIB, DiskState.IMPORTING),
    ]
    assert again.disk("a").description == "words"
    again.close()


def test_a_disk_being_deleted_gives_its_name_back(catalog: Catalog) -> None:
    catalog.add_disk(row(1, "a"))
    with pytest.raises(NameTaken):
        catalog.add_disk(row(2, "a"))
    catalog.set_state(DiskId(1), DiskState.DELETING)
    with pytest.raises(DiskNotFound):
        catalog.disk("a")
    catalog.add_disk(row(2, "a"))
    assert catalog.disk("a").id == 2
    catalog.remove_disk(DiskId(1))
    assert len(catalog.disks()) == 1


def test_ids_are_never_given_twice(catalog: Catalog, path: Path) -> None:
    assert [catalog.allocate_disk_id() for _ in range(3)] == [1, 2, 3]
    catalog.close()
    again = Catalog(path)
    assert again.allocate_disk_id() == 4
    again.close()


def test_after_close(catalog: Catalog) -> None:
    catalog.close()
    with pytest.raises(PoolClosed):
        catalog.disks()
    with pytest.raises(PoolClosed):
        catalog.allocate_disk_id()


@pytest.mark.parametrize(
    "content", [b"", b"not a database at all" * 100, b"SQLite format 3\0" + bytes(4080)]
)
def test_what_is_no_catalog(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / CATALOG_FILE
    path.write_bytes(content)
    with pytest.raises(CatalogDamaged) as caught:
        Catalog(path)
    assert caught.value.path == str(path)


def test_somebody_elses_database(tmp_path: Path) -> None:
    path = tmp_path / CATALOG_FILE
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()
    with pytest.raises(CatalogDamaged, match="not a catalog"):
        Catalog(path)


def test_a_later_version_is_refused_untouched(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(CatalogTooNew) as caught:
        Catalog(path)
    assert (caught.value.found_version, caught.value.known_version) == (2, 1)
    assert path.read_bytes() == before


@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.95])
def test_damaged_pages_are_noticed_at_open(path: Path, fraction: float) -> None:
    content = bytearray(path.read_bytes())
    start = int(len(content) * fraction) // 4096 * 4096
    content[start : start + 4096] = b"\xa5" * 4096
    path.write_bytes(content)
    with pytest.raises(CatalogDamaged):
        Catalog(path)


def test_every_change_is_flushed(catalog: Catalog) -> None:
    connection = catalog._connection
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_full_drive_leaves_room_for_one_more_change(
    catalog: Catalog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drive is full until half of the reserve has been given up."""
    catalog.add_disk(row(1, "a"))
    reserve = path.with_name(RESERVE_FILE)
    assert reserve.stat().st_blocks * 512 >= 1 << 20
    real = catalog_module._in_transaction

    def full(connection: sqlite3.Connection, change: object) -> object:
        if reserve.stat().st_size > 1 << 19:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return real(connection, change)  # type: ignore[arg-type]

    monkeypatch.setattr(catalog_module, "_in_transaction", full)
    catalog.set_state(DiskId(1), DiskState.DELETING)
    assert reserve.stat().st_size == 1 << 19
    monkeypatch.undo()
    catalog.remove_disk(DiskId(1))
    assert reserve.stat().st_blocks * 512 >= 1 << 20


def test_a_drive_that_stays_full(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog.add_disk(row(1, "a"))

    def full(connection: sqlite3.Connection, change: object) -> object:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(catalog_module, "_in_transaction", full)
    with pytest.raises(NoSpace):
        catalog.set_name(DiskId(1), "b")
    monkeypatch.undo()
    assert catalog.disk("a").id == 1


def test_the_first_version_stays_readable(tmp_path: Path) -> None:
    """The golden file is what release 0.1 wrote; it never changes."""
    path = tmp_path / CATALOG_FILE
    connection = sqlite3.connect(path)
    connection.executescript(GOLDEN.read_text())
    connection.close()
    catalog = Catalog(path)
    assert catalog.pool_uuid == UUID("00112233-4455-6677-8899-aabbccddeeff")
    assert [drive.path for drive in catalog.drives()] == [".", "/mnt/second"]
    assert [(disk.id, disk.name, disk.state) for disk in catalog.disks()] == [
        (3, "mail", DiskState.READY),
        (4, "web", DiskState.IMPORTING),
        (5, "web", DiskState.DELETING),
    ]
    assert catalog.allocate_disk_id() == 9
    catalog.close()


def test_the_golden_file_has_todays_schema(path: Path, tmp_path: Path) -> None:
    """As long as the version is 1; a change of the schema needs a new version."""
    golden = sqlite3.connect(tmp_path / "golden.sqlite")
    golden.executescript(GOLDEN.read_text())
    fresh = sqlite3.connect(path)
    query = "SELECT type, name, sql FROM sqlite_schema ORDER BY name"
    assert golden.execute(query).fetchall() == fresh.execute(query).fetchall()
    assert golden.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    golden.close()
    fresh.close()
