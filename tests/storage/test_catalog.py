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
    SCHEMA_VERSION,
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
GOLDEN = Path(__file__).parent / "golden"


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
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(CatalogTooNew) as caught:
        Catalog(path)
    assert caught.value.found_version == SCHEMA_VERSION + 1
    assert caught.value.known_version == SCHEMA_VERSION
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


def load_golden(version: int, path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript((GOLDEN / f"catalog-v{version}.sql").read_text())
    connection.close()


def schema_of(path: Path) -> list[tuple[str, str, str]]:
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY name").fetchall()
    connection.close()
    return rows


@pytest.mark.parametrize("version", [1, 2, 3])
def test_catalogs_of_all_versions_are_read_for_ever(version: int, tmp_path: Path) -> None:
    path = tmp_path / CATALOG_FILE
    load_golden(version, path)
    catalog = Catalog(path)
    assert catalog.pool_uuid == UUID("00112233-4455-6677-8899-aabbccddeeff")
    assert [drive.path for drive in catalog.drives()] == [".", "/mnt/second"]
    disks = [(disk.id, disk.name, disk.state) for disk in catalog.disks()]
    assert [disk for disk in disks if disk[0] != 6] == [
        (3, "mail", DiskState.READY),
        (4, "web", DiskState.IMPORTING),
        (5, "web", DiskState.DELETING),
    ]
    snapshots = [disk.name for disk in catalog.snapshots(DiskId(3))]
    assert snapshots == (["mail@monday"] if version > 1 else [])
    catalog.set_name(DiskId(3), "post")
    assert [disk.name for disk in catalog.snapshots(DiskId(3))] == [
        name.replace("mail", "post") for name in snapshots
    ]
    assert catalog.pool_settings() == ({"scrub_every": "weekly"} if version > 2 else {})
    assert catalog.allocate_disk_id() == 9
    catalog.close()
    fresh = tmp_path / "fresh.sqlite"
    create_catalog(fresh, POOL_UUID, UnixSeconds(1), DRIVES)
    assert schema_of(path) == schema_of(fresh), "an upgraded catalog is as a new one"


def test_the_newest_golden_file_has_todays_schema(path: Path, tmp_path: Path) -> None:
    """A change of the schema needs a new version."""
    golden = tmp_path / "golden.sqlite"
    load_golden(SCHEMA_VERSION, golden)
    assert schema_of(golden) == schema_of(path)
    connection = sqlite3.connect(golden)
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    connection.close()
