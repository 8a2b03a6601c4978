"""A pool in this process: its lock, its catalog, its drives and the core that holds the data.

Every operation is ordered so that a crash after any of its steps leaves the pool whole; what was
left half done is finished by the next open (`leftovers.finish`).

| operation | steps                                         | after a crash in between          |
|-----------|-----------------------------------------------|-----------------------------------|
| create    | 1 id taken · 2 core has it · 3 row            | 1: an id unused · 2: core's is    |
|           |                                               | removed, nothing was ever written |
| import    | create as IMPORTING · filled · READY          | deleted                           |
| snapshot, | rows IMPORTING · core has them · READY, all   | deleted, all of a group           |
| clone     | of a group in one transaction                 |                                   |
| rollback  | 1 larger size · 2 core, one write · 3 size    | old or new contents, or a disk    |
|           |                                               | that is too large                 |
| grow      | 1 size in the row · 2 core                    | done: the row counts at next open |
| shrink    | 1 core cuts, durably · 2 size in the row      | old size, cut part reads as zero  |
| delete    | 1 row DELETING · 2 core deletes · 3 row goes, | finished                          |
|           | with the last segment that others need        |                                   |

Lock order: disks' locks by id → `_mutex` → the catalog's lock. A disk's lock is held during what
may take long (recovery, deletion), so that such work on one disk delays no other.
"""

import os
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from storage import leftovers
from storage.catalog import CATALOG_FILE, Catalog, DiskRow
from storage.drives import Drive, find_drives
from storage.errors import (
    Corrupt,
    DiskInUse,
    DiskNotFound,
    HasSnapshots,
    InvalidRequest,
    NameTaken,
    PoolClosed,
    PoolNotFound,
    ShrinkLosesData,
    StorageError,
)
from storage.listing import describe, is_shown, stored_bytes
from storage.lock import PoolLock
from storage.names import check_description, check_name
from storage.pool_init import init_pool, is_pool
from storage.readiness import check_changeable, check_ready, check_snapshot
from storage.scrub import Scrub
from storage.service import (
    RANGES_MAX,
    ChangedRange,
    ChangedRanges,
    DiskDetails,
    DiskInfo,
    DiskState,
    DriveState,
    PoolStatus,
    ScrubReport,
)
from storage.settings import apply_settings, change_settings
from storage.units import MIB, ByteSize, DiskId, check_disk_size, format_time, now

if TYPE_CHECKING:
    from storage import _core

MEMORY_BYTES_DEFAULT: Final = 256 * MIB

CoreOpener = Callable[[str, bytes, "list[tuple[int, str | None]]", int], "_core.Pool"]
"""`_core.Pool.open`, or what stands in for it in a test."""


class Pool:
    """An open pool; implements `storage.service.PoolService`. Safe to use from any thread."""

    def __init__(
        self,
        path: Path,
        lock: PoolLock,
        catalog: Catalog,
        drives: Sequence[Drive],
        core: "_core.Pool",
    ) -> None:
        """Use `open`."""
        self.path = path
        self._lock = lock
        self._catalog = catalog
        self._drives = drives
        self._core = core
        self._mutex = threading.Lock()
        self._disk_locks: defaultdict[DiskId, threading.Lock] = defaultdict(threading.Lock)
        self._disks: dict[DiskId, _core.Disk] = {}
        self._clients: Counter[int] = Counter()
        self._is_closed = False
        self._problems = leftovers.finish(path, catalog, drives, core)
        self._scrub = Scrub(catalog, self._in_service)

    @staticmethod
    def init(path: Path, drives: Sequence[Path] = ()) -> None:
        """Makes an empty pool in a folder that is empty or does not exist yet.

        Args: drives: the folders that hold the segments; none means the pool's own folder.
        Raises: PoolExists, PoolBusy, PoolFolderUnusable, DriveUnusable; nothing was made then.
        """
        init_pool(Path(path), drives)

    @classmethod
    def open(
        cls,
        path: Path,
        memory_bytes: int = MEMORY_BYTES_DEFAULT,
        open_core: CoreOpener | None = None,
    ) -> "Pool":
        """Takes the pool for this process and finishes what a crash left half done.

        Starts the core's threads: never call it in a process that forks afterwards.

        Raises: PoolNotFound, PoolBusy, CatalogDamaged, CatalogTooNew, NoSpace. A drive that is not
            there is no error: `status` names it, and only the disks that need it fail.
        """
        path = Path(os.path.abspath(path))  # noqa: PTH100  links in the path stay as they were written
        if not is_pool(path):
            raise PoolNotFound(pool=str(path))
        if open_core is None:
            # Here and not above, so that a command that only talks to a server loads no core.
            from storage import _core

            open_core = _core.Pool.open
        lock = PoolLock(path)
        try:
            catalog = Catalog(path / CATALOG_FILE)
            try:
                drives = find_drives(catalog.drives(), path, catalog.pool_uuid)
                places = [
                    (int(drive.row.index), str(drive.folder) if drive.folder else None)
                    for drive in drives
                ]
                core = open_core(str(path), catalog.pool_uuid.bytes, places, memory_bytes)
                return cls(path, lock, catalog, drives, core)
            except BaseException:
                catalog.close()
                raise
        except BaseException:
            lock.release()
            raise

    def close(self) -> None:
        """Checkpoints and lets go of everything; whatever comes later raises PoolClosed."""
        with self._mutex:
            if self._is_closed:
                return
            self._is_closed = True
        try:
            self._scrub.close()
            self._core.close()
        finally:
            self._catalog.close()
            self._lock.release()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- for the data plane

    def open_disk(self, name: str) -> "_core.Disk":
        """The disk for a client; the call is paired with `release_disk` when the client goes.

        Every client of a disk gets the same object.

        Raises: DiskNotFound, Corrupt, DriveMissing, PoolClosed.
        """
        with self._locked(name) as row:
            disk = self._opened(row)
            with self._mutex:
                self._clients[row.id] += 1
            return disk

    def release_disk(self, disk: "_core.Disk") -> None:
        """A client that had got the disk from `open_disk` is gone."""
        with self._mutex:
            self._clients[disk.disk_id] = max(0, self._clients[disk.disk_id] - 1)

    def describe_disk(self, disk: "_core.Disk") -> DiskInfo:
        """An open disk as `list_disks` has it, at constant cost. Raises: DiskNotFound."""
        self._check_open()
        return self._as_listed(self._catalog.disk_numbered(DiskId(disk.disk_id)))

    def lift_limits(self) -> None:
        """Lets requests that wait for their disk's limits go on: service is about to end."""
        self._core.lift_limits()

    def start_upkeep(self) -> None:
        """Does from now on what is to be done at times: for a server."""
        self._scrub.schedule()

    # -- PoolService

    def status(self) -> PoolStatus:
        """See `PoolService`, as for everything that follows."""
        self._check_open()
        rows = self._catalog.disks()
        disks = [self._as_listed(row) for row in rows if is_shown(row, self.path)]
        drives = [drive.describe(self.path) for drive in self._drives]
        problems = [f"drive {drive.index}: {drive.problem}" for drive in drives if drive.problem]
        problems += [f"disk {disk.name!r}: {disk.problem}" for disk in disks if disk.problem]
        scrub = self._scrub.report()
        return PoolStatus(
            pool=str(self.path),
            uuid=str(self._catalog.pool_uuid),
            created=format_time(self._catalog.created),
            disks=sum(disk.snapshot_of is None for disk in disks),
            provisioned_bytes=sum(disk.size_bytes for disk in disks if disk.snapshot_of is None),
            stored_bytes=sum(stored_bytes(row, self._drives) for row in rows),
            server_pid=None,
            uris=[],
            drives=drives,
            problems=problems + self._problems + scrub.problems,
            statistics=self._core.stats(),
            scrub=scrub,
        )

    def set_pool(self, changes: Mapping[str, int | str | None]) -> ScrubReport:
        return self._scrub.set(changes)

    def start_scrub(self, rate_bytes: int | None = None) -> ScrubReport:
        return self._scrub.start(rate_bytes)

    def scrub_report(self) -> ScrubReport:
        return self._scrub.report()

    def list_disks(self) -> list[DiskInfo]:
        self._check_open()
        rows = [row for row in self._catalog.disks() if row.snapshot_of is None]
        return [self._as_listed(row) for row in rows if is_shown(row, self.path)]

    def show_disk(self, name: str) -> DiskDetails:
        with self._locked(name) as row:
            return self._show(row)

    def _show(self, row: DiskRow) -> DiskDetails:
        known = {**self._describe(row), "settings": self._catalog.settings(row.id)}
        try:
            disk = self._opened(row)
            statistics = disk.stats()
            mapped_bytes, end_of_data_bytes = disk.measure_data()
        except StorageError as exc:
            return DiskDetails(**known, problem=exc.problem)
        return DiskDetails(
            **known,
            mapped_bytes=mapped_bytes,
            end_of_data_bytes=end_of_data_bytes,
            statistics=statistics,
        )

    def create_disk(
        self, name: str, size_bytes: int, description: str = "", importing: bool = False
    ) -> DiskInfo:
        check_name(name)
        size = check_disk_size(size_bytes)
        check_description(description)
        self._check_open()
        if self._has_disk(name):
            raise NameTaken(name=name)
        disk_id = self._catalog.allocate_disk_id()
        state = DiskState.IMPORTING if importing else DiskState.READY
        row = DiskRow(disk_id, name, size, state, now(), description)
        self._core.create_disk(disk_id)
        try:
            self._catalog.add_disk(row)
        except StorageError:
            self._core.delete_disk(disk_id)
            raise
        return DiskInfo(**self._describe(row))

    def finish_import(self, name: str) -> DiskInfo:
        with self._locked(name) as row:
            self._opened(row).flush()
            self._catalog.set_state(row.id, DiskState.READY)
        return self._info(name)

    def resize_disk(self, name: str, size_bytes: int, force: bool = False) -> DiskInfo:
        size = check_disk_size(size_bytes)
        with self._locked(name) as row:
            check_changeable(row)
            if size < row.size_bytes:
                disk = self._opened(row)
                if not force:
                    self._check_unused(row)
                    _, end_bytes = disk.measure_data()
                    if end_bytes > size:
                        raise ShrinkLosesData(
                            disk=name, size_bytes=size, end_of_data_bytes=end_bytes
                        )
                disk.resize(size)
                self._catalog.set_size(row.id, size)
            elif size > row.size_bytes:
                self._catalog.set_size(row.id, size)
                if row.id in self._disks:
                    self._disks[row.id].resize(size)
        return self._info(name)

    def rename_disk(self, name: str, new_name: str) -> DiskInfo:
        check_name(new_name)
        with self._locked(name) as row:
            check_changeable(row)
            self._catalog.set_name(row.id, new_name)
        return self._info(new_name)

    def set_disk(self, name: str, changes: Mapping[str, int | str | None]) -> DiskDetails:
        with self._locked(name) as row:
            check_ready(row)
            settings = change_settings(self._catalog.settings(row.id), changes)
            self._catalog.set_settings(row.id, settings)
            if row.id in self._disks:
                apply_settings(self._disks[row.id], settings)
            return self._show(row)

    def delete_disk(self, name: str, force: bool = False) -> None:
        with self._locked(name) as row:
            if snapshots := len(self._catalog.snapshots(row.id)):
                raise HasSnapshots(disk=name, snapshots=snapshots)
            if not force:
                self._check_unused(row)
            self._remove(row)
        # What only this one still needed of disks deleted before.
        for row in self._catalog.disks():
            if row.state == DiskState.DELETING and not is_shown(row, self.path):
                self._remove(row)

    def snapshot_disks(self, names: Sequence[str], snapshot: str) -> list[DiskInfo]:
        check_name(snapshot)
        if not names or len(set(names)) < len(names):
            raise InvalidRequest(reason="a snapshot is of at least one disk, and of each once")
        self._check_open()
        by_id = sorted((self._catalog.disk(name) for name in names), key=lambda row: row.id)
        with ExitStack() as locks:
            rows = [locks.enter_context(self._locked(row.name)) for row in by_id]
            for row in rows:
                check_changeable(row)
                self._opened(row)
            with self._provisional() as add:
                pairs = [
                    (row.id, add(f"{row.name}@{snapshot}", row.size_bytes, row.id)) for row in rows
                ]
                self._core.snapshot(pairs)
        return [self._info(f"{name}@{snapshot}") for name in names]

    def list_snapshots(self, name: str) -> list[DiskInfo]:
        self._check_open()
        rows = self._catalog.snapshots(self._catalog.disk(name).id)
        return [self._as_listed(row) for row in rows]

    def changed_ranges(self, older: str, newer: str, offset: int = 0) -> ChangedRanges:
        self._check_open()
        for name in (older, newer):
            check_snapshot(self._catalog.disk(name))
        old, new = self._in_service(older), self._in_service(newer)
        next_offset, ranges = new.changed_since(old, offset, RANGES_MAX)
        return ChangedRanges(next_offset, [ChangedRange(*one) for one in ranges])

    def clone_disk(self, name: str, new_name: str) -> DiskInfo:
        check_name(new_name)
        with self._locked(name) as row:
            check_snapshot(row)
            with self._provisional() as add:
                self._core.clone_disk(row.id, add(new_name, row.size_bytes, None))
        return self._info(new_name)

    def rollback_disk(self, name: str) -> DiskInfo:
        self._check_open()
        check_snapshot(self._catalog.disk(name))
        disk_name = name.partition("@")[0]
        with self._locked(disk_name) as row, self._locked(name) as snapshot:
            check_ready(row)
            self._check_unused(row)
            if row.size_bytes < snapshot.size_bytes:
                self._catalog.set_size(row.id, snapshot.size_bytes)
            self._disks.pop(row.id, None)
            try:
                self._core.rollback_disk(row.id, row.size_bytes, snapshot.id)
            except StorageError:
                self._catalog.set_size(row.id, row.size_bytes)
                raise
            self._catalog.set_size(row.id, snapshot.size_bytes)
        return self._info(disk_name)

    # -- inside

    def _check_open(self) -> None:
        if self._is_closed:
            raise PoolClosed

    @contextmanager
    def _provisional(self) -> Iterator[Callable[[str, ByteSize, DiskId | None], DiskId]]:
        """Gives what adds a row for a disk to be made in the block; all become READY at the
        end of it, or none stays.
        """
        rows: list[DiskRow] = []

        def add(name: str, size_bytes: ByteSize, snapshot_of: DiskId | None) -> DiskId:
            disk_id = self._catalog.allocate_disk_id()
            row = DiskRow(disk_id, name, size_bytes, DiskState.IMPORTING, now(), "", snapshot_of)
            self._catalog.add_disk(row)
            rows.append(row)
            return disk_id

        try:
            yield add
            self._catalog.set_states([row.id for row in rows], DiskState.READY)
        except StorageError:
            for row in rows:
                with suppress(StorageError):  # the next open finishes it
                    self._remove(row)
            raise

    def _remove(self, row: DiskRow) -> None:
        """Deletes a disk; its row stays, hidden, as long as others need segments of it."""
        self._catalog.set_state(row.id, DiskState.DELETING)
        self._disks.pop(row.id, None)
        try:
            is_gone = self._core.delete_disk(row.id)
        except DiskNotFound:
            is_gone = True  # it was never made
        if is_gone:
            self._catalog.remove_disk(row.id)
        with self._mutex:
            self._clients.pop(row.id, None)

    def _has_disk(self, name: str) -> bool:
        try:
            self._catalog.disk(name)
        except DiskNotFound:
            return False
        return True

    def _check_unused(self, row: DiskRow) -> None:
        if clients := self._clients[row.id]:
            raise DiskInUse(disk=row.name, clients=clients)

    @contextmanager
    def _locked(self, name: str) -> Iterator[DiskRow]:
        """The disk of that name, kept from every other operation on it for the block.

        Errors that the core raises for the disk's number leave the block with its name.
        """
        self._check_open()
        while True:
            disk_id = self._catalog.disk(name).id
            with self._mutex:
                lock = self._disk_locks[disk_id]
            with lock:
                # Before the lock was ours, the disk may have been renamed or deleted.
                row = self._catalog.disk(name)
                if row.id != disk_id:
                    continue
                try:
                    yield row
                except StorageError as exc:
                    if getattr(exc, "disk", None) == disk_id:
                        exc.disk = name  # type: ignore[attr-defined]  # just looked at
                    raise
                return

    def _opened(self, row: DiskRow) -> "_core.Disk":
        """The core's disk, recovered when this is its first use. The caller holds its lock."""
        disk = self._disks.get(row.id)
        if disk is None:
            try:
                disk = self._core.open_disk(row.id, row.size_bytes)
            except DiskNotFound as exc:
                where = f"anchors/{row.id:08x}.anchor"
                raise Corrupt(disk=row.name, where=where, detail="the file is missing") from exc
            apply_settings(disk, self._catalog.settings(row.id))
            self._disks[row.id] = disk
        return disk

    def _in_service(self, name: str) -> "_core.Disk":
        with self._locked(name) as row:
            return self._opened(row)

    def _as_listed(self, row: DiskRow) -> DiskInfo:
        absent = {drive.row.index for drive in self._drives if drive.state != DriveState.PRESENT}
        problem = leftovers.problem_of(row, self.path, absent)
        return DiskInfo(**self._describe(row), problem=problem)

    def _info(self, name: str) -> DiskInfo:
        return DiskInfo(**self._describe(self._catalog.disk(name)))

    def _describe(self, row: DiskRow) -> dict[str, Any]:
        return describe(row, self._drives, self._clients[row.id])
