"""Opening, locking, closing, and what is left after a crash at each step of an operation."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import pool_init
from storage.catalog import CATALOG_FILE, Catalog
from storage.drives import LABEL_FILE
from storage.errors import (
    Corrupt,
    DiskNotFound,
    DriveMissing,
    DriveUnusable,
    PoolBusy,
    PoolClosed,
    PoolExists,
    PoolFolderUnusable,
    PoolNotFound,
    StorageIO,
)
from storage.pool import Pool
from storage.service import DiskState, DriveState
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


class TestInit:
    def test_makes_a_pool_in_a_new_folder(self, tmp_path: Path, drive: FakeDrive) -> None:
        Pool.init(tmp_path / "a" / "pool")
        with Pool.open(tmp_path / "a" / "pool", open_core=drive.open) as pool:
            assert pool.list_disks() == []

    def test_makes_a_pool_in_an_empty_folder(self, tmp_path: Path, drive: FakeDrive) -> None:
        (tmp_path / "lost+found").mkdir()
        Pool.init(tmp_path)
        Pool.open(tmp_path, open_core=drive.open).close()

    def test_leaves_a_pool_alone(self, pool_dir: Path) -> None:
        before = (pool_dir / CATALOG_FILE).read_bytes()
        with pytest.raises(PoolExists):
            Pool.init(pool_dir)
        assert (pool_dir / CATALOG_FILE).read_bytes() == before

    def test_leaves_other_peoples_folders_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("text")
        with pytest.raises(PoolFolderUnusable, match=r"thesis\.txt"):
            Pool.init(tmp_path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]

    def test_does_not_replace_a_lost_catalog(self, pool: Pool, pool_dir: Path) -> None:
        pool.create_disk("vm1", MIB)
        pool.close()
        (pool_dir / CATALOG_FILE).unlink()
        with pytest.raises(PoolFolderUnusable, match="anchors"):
            Pool.init(pool_dir)

    def test_refuses_a_file_as_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(PoolFolderUnusable):
            Pool.init(tmp_path / "file")

    def test_refuses_drives_that_cannot_be(self, tmp_path: Path, pool_dir: Path) -> None:
        good = tmp_path / "good"
        good.mkdir()
        (tmp_path / "link").symlink_to(good)
        for drives, words in (
            ([tmp_path / "nowhere"], "no such folder"),
            ([good, tmp_path / "link"], "same folder"),
            ([good, pool_dir], "drive 0 of the pool"),
        ):
            with pytest.raises(DriveUnusable, match=words):
                Pool.init(tmp_path / "new", drives)
            assert not (tmp_path / "new").exists()
            assert list(good.iterdir()) == []

    @pytest.mark.parametrize("step", ["create_catalog", "write_label", "sync_folder"])
    def test_is_taken_up_again_after_a_crash(
        self, tmp_path: Path, drive: FakeDrive, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        path, first, second = tmp_path / "pool", tmp_path / "first", tmp_path / "second"
        first.mkdir()
        second.mkdir()
        with monkeypatch.context() as patch:
            calls: list[object] = []
            real: Callable[..., None] = getattr(pool_init, step)

            def die_at_the_second_call(*args: object) -> None:
                calls.append(args)
                if len(calls) == 2 or step == "create_catalog":
                    raise CrashError
                real(*args)

            patch.setattr(pool_init, step, die_at_the_second_call)
            patch.setattr(pool_init, "_undo_interrupted", lambda pool: None)
            with pytest.raises(CrashError):
                Pool.init(path, [first, second])
        if not (path / CATALOG_FILE).exists():
            with pytest.raises(PoolNotFound):
                Pool.open(path, open_core=drive.open)
            Pool.init(path, [second, first])
        with Pool.open(path, open_core=drive.open) as pool:
            assert {one.state for one in pool.status().drives} == {DriveState.PRESENT}

    def test_a_failure_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drive = tmp_path / "drive"
        drive.mkdir()

        def fail(*_: object) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(pool_init, "sync_folder", fail)
        with pytest.raises(PoolFolderUnusable, match="Input/output error"):
            Pool.init(tmp_path / "pool", [drive])
        assert not (tmp_path / "pool").exists()
        assert list(drive.iterdir()) == []


class TestOpen:
    def test_a_folder_that_is_no_pool(self, tmp_path: Path, drive: FakeDrive) -> None:
        for path in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(PoolNotFound):
                Pool.open(path, open_core=drive.open)

    def test_one_process_at_a_time(self, pool: Pool, drive: FakeDrive) -> None:
        with pytest.raises(PoolBusy) as caught:
            Pool.open(pool.path, open_core=drive.open)
        assert caught.value.pid == os.getpid()
        pool.close()
        Pool.open(pool.path, open_core=drive.open).close()

    def test_a_killed_process_leaves_no_lock(self, pool_dir: Path, drive: FakeDrive) -> None:
        code = (
            "import os, pathlib, signal, sys\n"
            "from storage.lock import PoolLock\n"
            "lock = PoolLock(pathlib.Path(sys.argv[1]))\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        subprocess.run([sys.executable, "-c", code, pool_dir], check=False)
        assert (pool_dir / "pool.lock").read_text().strip().isdigit()
        Pool.open(pool_dir, open_core=drive.open).close()

    def test_a_core_that_does_not_start_leaves_no_lock(self, pool_dir: Path) -> None:
        def fail(*_: object) -> None:
            raise StorageIO(where="x", errno=5)

        for _ in range(2):
            with pytest.raises(StorageIO):
                Pool.open(pool_dir, open_core=fail)  # type: ignore[arg-type]

    def test_disks_come_back(self, pool: Pool, drive: FakeDrive) -> None:
        pool.create_disk("vm1", MIB, "words")
        pool.open_disk("vm1").write(0, b"data")
        listed = pool.show_disk("vm1")
        pool.close()
        with Pool.open(pool.path, open_core=drive.open) as again:
            shown = again.show_disk("vm1")
            assert (shown.id, shown.created, shown.description, shown.size_bytes) == (
                listed.id,
                listed.created,
                "words",
                MIB,
            )
            assert again.open_disk("vm1").read(0, 4) == b"data"

    def test_an_open_disk_is_described_as_it_is_listed(self, pool: Pool) -> None:
        made = pool.create_disk("vm1", MIB, "words")
        disk = pool.open_disk("vm1")
        assert pool.describe_disk(disk) == pool.list_disks()[0]
        assert pool.describe_disk(disk).id == made.id
        pool.delete_disk("vm1", force=True)
        with pytest.raises(DiskNotFound):
            pool.describe_disk(disk)

    def test_a_pool_can_be_moved(self, pool: Pool, drive: FakeDrive, tmp_path: Path) -> None:
        pool.create_disk("vm1", MIB)
        pool.close()
        moved = tmp_path / "moved"
        pool.path.rename(moved)
        with Pool.open(moved, open_core=drive.open) as again:
            assert again.status().problems == []
            assert again.status().drives[0].path == str(moved)

    def test_after_close_everything_says_so(self, pool: Pool) -> None:
        pool.create_disk("vm1", MIB)
        pool.close()
        pool.close()
        for action in (
            pool.list_disks,
            pool.status,
            lambda: pool.create_disk("vm2", MIB),
            lambda: pool.open_disk("vm1"),
            lambda: pool.delete_disk("vm1"),
        ):
            with pytest.raises(PoolClosed):
                action()


class TestCrash:
    """Each operation cut short after each of its steps."""

    def reopen(self, pool: Pool, drive: FakeDrive) -> Pool:
        abandon(pool)
        return Pool.open(pool.path, open_core=drive.open)

    def test_creation_before_the_row(
        self, pool: Pool, drive: FakeDrive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Catalog, "add_disk", crash)
        with pytest.raises(CrashError):
            pool.create_disk("vm1", MIB)
        monkeypatch.undo()
        with self.reopen(pool, drive) as again:
            assert again.list_disks() == []
            assert list((pool.path / "anchors").iterdir()) == []
            assert again.create_disk("vm1", MIB).id == 2

    def test_creation_that_fails_at_the_row_is_undone(
        self, pool: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pool.create_disk("vm1", MIB)
        monkeypatch.setattr(Pool, "_has_disk", lambda self, name: False)  # lost a race
        with pytest.raises(Exception, match="exists already"):
            pool.create_disk("vm1", MIB)
        assert len(list((pool.path / "anchors").iterdir())) == 1

    def test_an_unknown_anchor_with_data_is_reported_and_kept(
        self, pool: Pool, drive: FakeDrive
    ) -> None:
        pool.create_disk("vm1", MIB)
        pool.open_disk("vm1").write(0, b"precious")
        row = pool._catalog.disk("vm1")
        pool._catalog.remove_disk(row.id)  # as when an older catalog was restored
        with self.reopen(pool, drive) as again:
            assert "00000001.anchor" in again.status().problems[0]
            assert drive.blocks[row.id]

    def test_deletion_before_the_core(
        self, pool: Pool, drive: FakeDrive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pool.create_disk("vm1", MIB)
        monkeypatch.setattr(FakePool, "delete_disk", crash)
        with pytest.raises(CrashError):
            pool.delete_disk("vm1")
        monkeypatch.undo()
        with self.reopen(pool, drive) as again:
            assert again.list_disks() == []
            assert drive.blocks == {}

    def test_deletion_before_the_row(
        self, pool: Pool, drive: FakeDrive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pool.create_disk("vm1", MIB)
        monkeypatch.setattr(Catalog, "remove_disk", crash)
        with pytest.raises(CrashError):
            pool.delete_disk("vm1")
        monkeypatch.undo()
        pool.create_disk("vm1", MIB)  # the name is free already
        with self.reopen(pool, drive) as again:
            assert [disk.id for disk in again.list_disks()] == [2]

    def test_an_import_is_undone(self, pool: Pool, drive: FakeDrive) -> None:
        pool.create_disk("vm1", MIB, importing=True)
        pool.open_disk("vm1").write(0, b"half")
        with self.reopen(pool, drive) as again:
            assert again.list_disks() == []
            assert drive.blocks == {}

    def test_growth_before_the_core(
        self, pool: Pool, drive: FakeDrive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pool.create_disk("vm1", MIB)
        disk = pool.open_disk("vm1")
        monkeypatch.setattr(type(disk), "resize", crash)
        with pytest.raises(CrashError):
            pool.resize_disk("vm1", 2 * MIB)
        monkeypatch.undo()
        with self.reopen(pool, drive) as again:
            assert again.open_disk("vm1").size_bytes == 2 * MIB

    def test_shrink_before_the_row(
        self, pool: Pool, drive: FakeDrive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pool.create_disk("vm1", 2 * MIB)
        pool.open_disk("vm1").write(MIB, b"x")
        monkeypatch.setattr(Catalog, "set_size", crash)
        with pytest.raises(CrashError):
            pool.resize_disk("vm1", MIB, force=True)
        monkeypatch.undo()
        with self.reopen(pool, drive) as again:
            disk = again.open_disk("vm1")
            assert disk.size_bytes == 2 * MIB
            assert disk.read(MIB, MIB) == bytes(MIB)

    def test_a_deletion_that_cannot_be_finished_is_reported(
        self, pool: Pool, drive: FakeDrive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pool.create_disk("vm1", MIB)

        def fail(*_: object) -> None:
            raise StorageIO(where="segments/00000001", errno=5)

        monkeypatch.setattr(FakePool, "delete_disk", fail)
        with pytest.raises(StorageIO):
            pool.delete_disk("vm1")
        with self.reopen(pool, drive) as again:
            assert "not deleted yet" in again.status().problems[0]
            assert [disk.state for disk in again.list_disks()] == [DiskState.DELETING]
            with pytest.raises(DiskNotFound):
                again.open_disk("vm1")
        monkeypatch.undo()
        with Pool.open(pool.path, open_core=drive.open) as again:
            assert again.list_disks() == []


class TestDrives:
    @pytest.fixture
    def folders(self, tmp_path: Path) -> list[Path]:
        folders = [tmp_path / "fast", tmp_path / "slow"]
        for folder in folders:
            folder.mkdir()
        Pool.init(tmp_path / "pool", folders)
        return folders

    @pytest.fixture
    def spread(self, folders: list[Path], tmp_path: Path, drive: FakeDrive) -> Path:
        """A pool with a disk that has data on drive 0."""
        with Pool.open(tmp_path / "pool", open_core=drive.open) as pool:
            pool.create_disk("vm1", MIB)
            pool.open_disk("vm1").write(0, b"data")
            pool.create_disk("empty", MIB)
        return tmp_path / "pool"

    def test_the_pool_folder_itself_holds_no_segments(self, folders: list[Path]) -> None:
        assert not (folders[0].parent / "pool" / LABEL_FILE).exists()
        assert all((folder / LABEL_FILE).exists() for folder in folders)

    def test_a_missing_drive_is_named_and_only_its_disks_fail(
        self, spread: Path, folders: list[Path], drive: FakeDrive
    ) -> None:
        folders[0].rename(folders[0].with_name("elsewhere"))
        with Pool.open(spread, open_core=drive.open) as pool:
            assert [one.state for one in pool.status().drives] == ["missing", "present"]
            assert str(folders[0]) in pool.status().problems[0]
            pool.open_disk("empty")
            with pytest.raises(DriveMissing) as caught:
                pool.open_disk("vm1")
            assert (caught.value.disk, caught.value.drive) == ("vm1", 0)
            shown = pool.show_disk("vm1")
            assert shown.problem is not None
            assert "drive 0" in shown.problem
            assert shown.mapped_bytes is None

    def test_a_drive_that_is_not_mounted(
        self, spread: Path, folders: list[Path], drive: FakeDrive
    ) -> None:
        shutil.rmtree(folders[1])
        folders[1].mkdir()  # the bare mount point
        with Pool.open(spread, open_core=drive.open) as pool:
            assert "mounted" in pool.status().problems[0]
            assert list(folders[1].iterdir()) == []

    def test_swapped_mounts_are_understood(
        self, spread: Path, folders: list[Path], drive: FakeDrive, tmp_path: Path
    ) -> None:
        folders[0].rename(tmp_path / "third")
        folders[1].rename(folders[0])
        (tmp_path / "third").rename(folders[1])
        with Pool.open(spread, open_core=drive.open) as pool:
            assert pool.status().problems == []
            assert [one.path for one in pool.status().drives] == list(map(str, folders[::-1]))
            assert pool.open_disk("vm1").read(0, 4) == b"data"

    def test_a_copy_of_a_drive(self, spread: Path, folders: list[Path], drive: FakeDrive) -> None:
        shutil.rmtree(folders[1])
        shutil.copytree(folders[0], folders[1])
        with Pool.open(spread, open_core=drive.open) as pool:
            assert [one.state for one in pool.status().drives] == ["duplicate", "missing"]
            with pytest.raises(DriveMissing):
                pool.open_disk("vm1")

    def test_a_drive_of_another_pool(
        self, spread: Path, folders: list[Path], drive: FakeDrive, tmp_path: Path
    ) -> None:
        shutil.rmtree(folders[1])
        folders[1].mkdir()
        Pool.init(tmp_path / "other", [folders[1]])
        with Pool.open(spread, open_core=drive.open) as pool:
            assert pool.status().drives[1].state is DriveState.FOREIGN
            assert "another pool" in pool.status().problems[0]

    @pytest.mark.parametrize(
        "label", [b"", b"{", b"[]", b'{"format": 2}', b'{"format": 1}', b"\xff"]
    )
    def test_a_damaged_label(
        self, spread: Path, folders: list[Path], drive: FakeDrive, label: bytes
    ) -> None:
        (folders[1] / LABEL_FILE).write_bytes(label)
        with Pool.open(spread, open_core=drive.open) as pool:
            assert pool.status().drives[1].state is DriveState.UNREADABLE
            assert str(folders[1]) in pool.status().problems[0]

    def test_an_unfinished_deletion_waits_for_its_drive(
        self, spread: Path, folders: list[Path], drive: FakeDrive
    ) -> None:
        away = folders[0].with_name("elsewhere")
        folders[0].rename(away)
        with Pool.open(spread, open_core=drive.open) as pool:
            with pytest.raises(DriveMissing):
                pool.delete_disk("vm1")
        away.rename(folders[0])
        with Pool.open(spread, open_core=drive.open) as pool:
            assert [disk.name for disk in pool.list_disks()] == ["empty"]


def test_a_missing_anchor_is_damage_not_an_empty_disk(pool: Pool) -> None:
    made = pool.create_disk("vm1", MIB)
    (pool.path / "anchors" / f"{made.id:08x}.anchor").unlink()
    with pytest.raises(Corrupt) as caught:
        pool.open_disk("vm1")
    assert caught.value.disk == "vm1"
    problem = pool.list_disks()[0].problem
    assert problem is not None
    assert "missing" in problem


def test_many_threads_at_once(pool: Pool) -> None:
    """Creations, renames and deletions of the same few names, by eight threads."""
    faults: list[BaseException] = []

    def work(seed: int) -> None:
        from storage.errors import DiskInUse, NameTaken

        for turn in range(12):
            name = f"vm{(seed + turn) % 3}"
            try:
                match (seed + turn) % 4:
                    case 0:
                        pool.create_disk(name, MIB)
                    case 1:
                        pool.release_disk(pool.open_disk(name))
                    case 2:
                        pool.rename_disk(name, f"vm{seed % 3}")
                    case _:
                        pool.delete_disk(name)
            except (DiskNotFound, NameTaken, DiskInUse):
                continue
            except BaseException as exc:
                faults.append(exc)
                raise

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    anchors = {int(anchor.stem, 16) for anchor in (pool.path / "anchors").iterdir()}
    assert anchors == {disk.id for disk in pool.list_disks()}
