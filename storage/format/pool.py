"""A pool's folders as the second reader sees them: catalog, drives, anchors, segment files.

Everything is read only, the catalog from a private copy (opening a WAL database in place would
create files beside it).
"""

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from uuid import UUID

from storage.format.damage import Damage
from storage.format.disk import OfflineDisk, read_anchor
from storage.format.layout import DiskId, Lsn, SegmentId

CATALOG_FILE: Final = "catalog.sqlite"
LABEL_FILE: Final = "nearstone-drive"
LABEL_BYTES_MAX: Final = 4096
LABEL_FORMAT: Final = 1
DRIVES_MAX: Final = 64
_HEX_DIGITS: Final = 8


@dataclass(frozen=True)
class DriveLabel:
    """The file that says whose drive a folder is."""

    pool: UUID
    drive: UUID
    index: int


@dataclass(frozen=True)
class CatalogDisk:
    """A disk as the catalog has it."""

    name: str
    size_bytes: int
    state: str


@dataclass(frozen=True)
class CatalogView:
    """What the catalog says of the pool; `drives` maps an index to uuid and path."""

    pool: UUID
    drives: dict[int, tuple[UUID, str]]
    disks: dict[DiskId, CatalogDisk]


@dataclass
class PoolFolder:
    """Where a pool's files are. `missing_drives` are known to the catalog and were not found."""

    path: Path
    pool: bytes | None
    drives: dict[int, Path]
    missing_drives: list[int]
    catalog: CatalogView | None
    problems: list[Damage] = field(default_factory=list)
    _snapshot_lsns: dict[DiskId, Lsn] | None = None

    @classmethod
    def open(cls, path: Path, drives: Sequence[Path] | None = None) -> Self:
        """Finds the drives, through the catalog or as given. Raises OSError; keeps damage as
        `problems`.

        Args: `drives`, folders to use instead of those that the catalog names.
        """
        folder = cls(path, None, {}, [], None)
        if (path / CATALOG_FILE).exists():
            try:
                folder.catalog = read_catalog(path / CATALOG_FILE)
                folder.pool = folder.catalog.pool.bytes
            except Damage as damage:
                folder.problems.append(damage)
        folder._find_drives(drives)
        return folder

    def list_anchors(self) -> dict[DiskId, Path]:
        """The anchor files by disk."""
        found = _list_hex_names(self.path / "anchors", ".anchor")
        return {DiskId(disk): path for disk, path in found.items()}

    def list_segments(self) -> dict[DiskId, dict[SegmentId, Path]]:
        """The segment files of all present drives. A segment id on two drives is noted as a
        problem.
        """
        segments: dict[DiskId, dict[SegmentId, Path]] = {}
        owners: dict[int, Path] = {}
        for drive in self.drives.values():
            for disk, disk_folder in _list_hex_names(drive / "segments", "").items():
                of_disk = segments.setdefault(DiskId(disk), {})
                for segment, path in _list_hex_names(disk_folder, ".seg").items():
                    if (twin := owners.setdefault(segment, path)) is not path:
                        self.problems.append(Damage(str(path), 0, f"the same segment is {twin}"))
                    of_disk[SegmentId(segment)] = path
        return segments

    def drive_of(self, segment_path: Path) -> int | None:
        """The index of the drive that a segment file lies on."""
        for index, drive in self.drives.items():
            if segment_path.is_relative_to(drive / "segments"):
                return index
        return None

    def open_disk(self, disk: DiskId) -> OfflineDisk:
        """The disk as of the end of its log.

        Raises: Damage, also when a drive that holds segments of the disk is missing; OSError.
        """
        anchor_path = self.path / "anchors" / f"{disk:08x}.anchor"
        if not anchor_path.exists():
            raise Damage(str(anchor_path), 0, "missing: no such disk, or its anchor is lost")
        anchor = read_anchor(anchor_path, disk)
        if self.pool is not None and anchor.pool != self.pool:
            raise Damage(str(anchor_path), 16, f"the anchor belongs to pool {anchor.pool.hex()}")
        for index in self.missing_drives:
            if anchor.root.drives & 1 << index:
                raise Damage(str(anchor_path), 32 + 72, f"drive {index} of this disk is missing")
        durable_lsn = self._durable_lsns().get(disk, Lsn(0))
        return OfflineDisk.open(anchor_path, self.list_segments(), disk, durable_lsn)

    def _durable_lsns(self) -> dict[DiskId, Lsn]:
        """Up to where the logs of disks are durable, since snapshots were taken there."""
        if self._snapshot_lsns is None:
            self._snapshot_lsns = {}
            for disk, path in self.list_anchors().items():
                try:
                    root = read_anchor(path, disk).root
                except (Damage, OSError):
                    continue
                if root.is_pending:
                    known = self._snapshot_lsns.get(root.origin, Lsn(0))
                    self._snapshot_lsns[root.origin] = max(known, Lsn(root.replay_lsn - 1))
        return self._snapshot_lsns

    def _find_drives(self, given: Sequence[Path] | None) -> None:
        expected = self.catalog.drives if self.catalog else {}
        folders = given
        if folders is None:
            folders = [self.path / path for _, path in expected.values()] or [self.path]
        for folder in folders:
            try:
                label = read_label(folder / LABEL_FILE)
            except FileNotFoundError:
                continue
            except Damage as damage:
                self.problems.append(damage)
                continue
            is_ours = self.pool in (None, label.pool.bytes)
            is_known = not expected or expected.get(label.index, (None,))[0] == label.drive
            if is_ours and is_known and label.index not in self.drives:
                self.drives[label.index] = folder
            else:
                what = f"drive {label.index} of pool {label.pool}, which does not belong here"
                self.problems.append(Damage(str(folder / LABEL_FILE), 0, what))
        self.missing_drives = [index for index in expected if index not in self.drives]


def read_label(path: Path) -> DriveLabel:
    """A drive's label. Raises Damage; OSError."""
    with path.open("rb") as file:
        raw = file.read(LABEL_BYTES_MAX + 1)
    try:
        fields: Any = json.loads(raw) if len(raw) <= LABEL_BYTES_MAX else None
        if not isinstance(fields, dict) or fields["format"] != LABEL_FORMAT:
            raise ValueError("it is not of format 1")
        index = fields["index"]
        if type(index) is not int or not 0 <= index < DRIVES_MAX:
            raise ValueError(f"index {index!r}")
        return DriveLabel(UUID(fields["pool"]), UUID(fields["drive"]), index)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damage(str(path), 0, f"not a drive label: {error}") from error


def read_catalog(path: Path) -> CatalogView:
    """What the catalog says, with changes still in its write-ahead log. Raises Damage; OSError."""
    with tempfile.TemporaryDirectory(prefix="nearstone-catalog-") as folder:
        copy = Path(folder) / CATALOG_FILE
        for suffix in ("", "-wal"):
            source = path.with_name(path.name + suffix)
            if suffix == "" or source.exists():
                shutil.copyfile(source, copy.with_name(copy.name + suffix))
        try:
            return _query_catalog(copy)
        except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
            raise Damage(str(path), 0, f"the catalog cannot be read: {error}") from error


def _query_catalog(path: Path) -> CatalogView:
    connection = sqlite3.connect(path)
    try:
        (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise ValueError(f"integrity check: {verdict}")
        rows = connection.execute("SELECT uuid FROM pool").fetchall()
        if len(rows) != 1:
            raise ValueError(f"it describes {len(rows)} pools")
        drives = {
            int(index): (UUID(bytes=uuid), str(drive_path))
            for index, uuid, drive_path in connection.execute(
                'SELECT "index", uuid, path FROM drives ORDER BY 1'
            )
        }
        disks = {
            DiskId(int(disk)): CatalogDisk(str(name), int(size_bytes), str(state))
            for disk, name, size_bytes, state in connection.execute(
                "SELECT id, name, size_bytes, state FROM disks ORDER BY id"
            )
        }
        return CatalogView(UUID(bytes=rows[0][0]), drives, disks)
    finally:
        connection.close()


def _list_hex_names(folder: Path, suffix: str) -> dict[int, Path]:
    """Entries named by 8 hex digits and `suffix`; nothing else in the folder is ours."""
    found: dict[int, Path] = {}
    if not folder.is_dir():
        return found
    for path in sorted(folder.iterdir()):
        digits = path.name.removesuffix(suffix)
        is_hex = len(digits) == _HEX_DIGITS and set(digits) <= set("0123456789abcdef")
        if is_hex and path.name == digits + suffix:
            found[int(digits, 16)] = path
    return found
