"""Snapshots, clones and rollback: what the service promises, and what a crash leaves of them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from storage.catalog import Catalog
from storage.errors import (
    BadName,
    DiskInUse,
    DiskNotFound,
    HasSnapshots,
    InvalidRequest,
    NameTaken,
    NoSpace,
    NotASnapshot,
    ReadOnly,
)
from storage.pool import Pool
from storage.service import PoolService
from storage.units import MIB
from tests.storage.fake_core import FakeDrive, FakePool


class CrashError(Exception):
    """The process dies here."""


def crash(*_: object) -> None:
    raise CrashError


def abandon(pool: Pool) -> None:
    """Lets go of a pool as a killed process does: nothing is closed in order."""
    pool._catalog.close()
    pool._lock.release()


def test_snapshots_are_listed_by_age(service: PoolService) -> None:
    service.create_disk("vm1", MIB)
    for name in ("b", "a"):
        (made,) = service.snapshot_disks(["vm1"], name)
        assert (made.name, made.snapshot_of, made.size_bytes) == (f"vm1@{name}", "vm1", MIB)
    assert [disk.name for disk in service.list_snapshots("vm1")] == ["vm1@b", "vm1@a"]
    assert [disk.name for disk in service.list_disks()] == ["vm1"]
    assert service.show_disk("vm1@a").name == "vm1@a"
    status = service.status()
    assert (status.disks, status.provisioned_bytes, status.problems) == (1, MIB, [])


def test_a_group_is_all_or_nothing(service: PoolService) -> None:
    for name in ("vm1", "vm2"):
        service.create_disk(name, MIB)
    made = service.snapshot_disks(["vm2", "vm1"], "one")
    assert [disk.name for disk in made] == ["vm2@one", "vm1@one"]
    service.snapshot_disks(["vm2"], "two")
    with pytest.raises(NameTaken) as caught:
        service.snapshot_disks(["vm1", "vm2"], "two")
    assert caught.value.name == "vm2@two"
    assert [disk.name for disk in service.list_snapshots("vm1")] == ["vm1@one"]


def test_what_is_refused_changes_nothing(service: PoolService) -> None:
    service.create_disk("vm1", MIB)
    service.snapshot_disks(["vm1"], "s")
    refusals: list[tuple[type[Exception], Callable[[], object]]] = [
        (BadName, lambda: service.snapshot_disks(["vm1"], "a@b")),
        (InvalidRequest, lambda: service.snapshot_disks([], "t")),
        (InvalidRequest, lambda: service.snapshot_disks(["vm1", "vm1"], "t")),
        (DiskNotFound, lambda: service.snapshot_disks(["vm1", "ghost"], "t")),
        (ReadOnly, lambda: service.snapshot_disks(["vm1@s"], "t")),
        (ReadOnly, lambda: service.resize_disk("vm1@s", 2 * MIB)),
        (ReadOnly, lambda: service.rename_disk("vm1@s", "t")),
        (NotASnapshot, lambda: service.clone_disk("vm1", "vm2")),
        (BadName, lambda: service.clone_disk("vm1@s", "vm2@t")),
        (NameTaken, lambda: service.clone_disk("vm1@s", "vm1")),
        (NotASnapshot, lambda: service.rollback_disk("vm1")),
        (DiskNotFound, lambda: service.rollback_disk("vm1@t")),
        (HasSnapshots, lambda: service.delete_disk("vm1", force=True)),
    ]
    before = (service.list_disks(), service.list_snapshots("vm1"))
    for error, call in refusals:
        with pytest.raises(error):
            call()
        assert (service.list_disks(), service.list_snapshots("vm1")) == before


def test_a_name_moves_with_its_disk(service: PoolService) -> None:
    service.create_disk("vm1", MIB)
    service.snapshot_disks(["vm1"], "s")
    service.rename_disk("vm1", "vm2")
    (snapshot,) = service.list_snapshots("vm2")
    assert (snapshot.name, snapshot.snapshot_of) == ("vm2@s", "vm2")
    service.delete_disk("vm2@s")
    service.delete_disk("vm2")
    assert service.list_disks() == []


def test_a_rollback_brings_contents_and_size_back(pool: Pool) -> None:
    pool.create_disk("vm1", 2 * MIB)
    disk = pool.open_disk("vm1")
    disk.write(0, b"then")
    pool.snapshot_disks(["vm1"], "s")
    disk.write(0, b"now!")
    with pytest.raises(DiskInUse):
        pool.rollback_disk("vm1@s")
    pool.release_disk(disk)
    for size_bytes in (MIB, 4 * MIB):
        pool.resize_disk("vm1", size_bytes, force=True)
        assert pool.rollback_disk("vm1@s").size_bytes == 2 * MIB
        assert pool.open_disk("vm1").read(0, 4) == b"then"
        pool.release_disk(pool.open_disk("vm1"))
        pool._clients.clear()


def test_a_clone_is_a_disk_of_its_own(pool: Pool) -> None:
    pool.create_disk("vm1", MIB)
    pool.open_disk("vm1").write(0, b"then")
    pool.snapshot_disks(["vm1"], "s")
    made = pool.clone_disk("vm1@s", "vm2")
    assert (made.name, made.snapshot_of, made.size_bytes) == ("vm2", None, MIB)
    clone = pool.open_disk("vm2")
    clone.write(0, b"own!")
    assert pool.open_disk("vm1@s").read(0, 4) == b"then"
    assert clone.read(0, 4) == b"own!"


@pytest.mark.parametrize("step", ["the core", "the last row"])
def test_a_crash_in_the_middle_leaves_no_snapshot_of_a_group(
    step: str, pool_dir: Path, drive: FakeDrive, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool.open(pool_dir, open_core=drive.open)
    for name in ("vm1", "vm2"):
        pool.create_disk(name, MIB)
    with monkeypatch.context() as patch:
        if step == "the core":
            patch.setattr(FakePool, "snapshot", crash)
        else:
            patch.setattr(Catalog, "set_states", crash)
        with pytest.raises(CrashError):
            pool.snapshot_disks(["vm1", "vm2"], "s")
        abandon(pool)
    with Pool.open(pool_dir, open_core=drive.open) as again:
        assert again.list_snapshots("vm1") == again.list_snapshots("vm2") == []
        assert again.status().problems == []
        assert len(drive.blocks) == 2
        again.snapshot_disks(["vm1", "vm2"], "s")


def test_a_snapshot_that_fails_leaves_nothing(
    pool: Pool, drive: FakeDrive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise NoSpace(pool="here")

    pool.create_disk("vm1", MIB)
    with monkeypatch.context() as patch:
        patch.setattr(FakePool, "snapshot", fail)
        with pytest.raises(NoSpace):
            pool.snapshot_disks(["vm1"], "s")
    assert pool.list_snapshots("vm1") == []
    assert pool._catalog.disks()[0].name == "vm1"
    assert len(pool._catalog.disks()) == 1


def test_a_snapshot_that_the_catalog_does_not_know_is_left_alone(
    pool_dir: Path,
) -> None:
    """As after the catalog was restored from an old backup."""
    with Pool.open(pool_dir) as pool:
        pool.create_disk("vm1", MIB)
        pool.open_disk("vm1").write(0, b"data")
        pool.snapshot_disks(["vm1"], "s")
        number = pool._catalog.disk("vm1@s").id
        pool._catalog.remove_disk(number)
    with Pool.open(pool_dir) as pool:
        assert "does not know" in pool.status().problems[0]
    assert (pool_dir / f"anchors/{number:08x}.anchor").exists()


def test_deleted_disks_are_hidden_while_clones_need_them(pool_dir: Path) -> None:
    with Pool.open(pool_dir) as pool:
        pool.create_disk("vm1", MIB)
        pool.open_disk("vm1").write(0, b"data" * 1024)
        pool.snapshot_disks(["vm1"], "s")
        pool.clone_disk("vm1@s", "vm2")
        pool.delete_disk("vm1@s")
        pool.delete_disk("vm1", force=True)
        assert [disk.name for disk in pool.list_disks()] == ["vm2"]
        assert pool.status().problems == []
    with Pool.open(pool_dir) as pool:
        assert pool.status().problems == []
        disk = pool.open_disk("vm2")
        assert disk.read(0, 4096) == b"data" * 1024
        pool.release_disk(disk)
        pool.delete_disk("vm2")
        assert pool._catalog.disks() == []
    assert not any(path.is_file() for path in (pool_dir / "segments").rglob("*"))
    assert not any((pool_dir / "anchors").iterdir())
