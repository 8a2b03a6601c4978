"""A pool's drives: the folders that hold its segments, and the labels that say whose they are.

A drive is known by the uuid in its label, not by its path: a folder whose drive is not mounted has
no label, so nothing is ever written beside it; a drive that is mounted at another drive's path is
found there. Label file ``nearstone-drive``::

    {"format": 1, "pool": "<uuid>", "drive": "<uuid>", "index": 0}
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from storage.catalog import DriveRow
from storage.errors import DriveUnusable
from storage.service import DriveInfo, DriveState
from storage.units import DiskId, DriveIndex

LABEL_FILE: Final = "nearstone-drive"
SEGMENTS_FOLDER: Final = "segments"
POOL_FOLDER_PATH: Final = "."
"""The path in the catalog of a drive that is the pool's own folder: the pool can be moved."""

_LABEL_FORMAT: Final = 1
_LABEL_SIZE_BYTES_MAX: Final = 4096


@dataclass(frozen=True)
class Label:
    """Whose drive a folder is."""

    pool: UUID
    drive: UUID
    index: DriveIndex

    def encode(self) -> bytes:
        """The label file's content."""
        fields = {
            "format": _LABEL_FORMAT,
            "pool": str(self.pool),
            "drive": str(self.drive),
            "index": self.index,
        }
        return json.dumps(fields).encode() + b"\n"

    @classmethod
    def decode(cls, raw: bytes) -> "Label":
        """Raises: ValueError, saying what is wrong with it."""
        fields = json.loads(raw)
        if not isinstance(fields, dict) or fields.get("format") != _LABEL_FORMAT:
            raise ValueError("its label is not of format 1")
        try:
            return cls(UUID(fields["pool"]), UUID(fields["drive"]), DriveIndex(fields["index"]))
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"its label lacks a field: {exc}") from exc


@dataclass(frozen=True)
class Drive:
    """A drive of the pool as it was found. `folder` is where it is, None unless it is PRESENT."""

    row: DriveRow
    folder: Path | None
    state: DriveState
    problem: str | None

    def describe(self, pool: Path) -> DriveInfo:
        """The drive with the room that its file system has at present."""
        total_bytes = free_bytes = None
        if self.folder is not None:
            room = os.statvfs(self.folder)
            total_bytes = room.f_blocks * room.f_frsize
            free_bytes = room.f_bavail * room.f_frsize
        return DriveInfo(
            index=self.row.index,
            uuid=str(self.row.uuid),
            path=str(self.folder or folder_of(self.row, pool)),
            state=self.state,
            problem=self.problem,
            total_bytes=total_bytes,
            free_bytes=free_bytes,
        )

    def segment_files(self, disk_id: DiskId) -> list[Path]:
        """The segment files of a disk on this drive; empty unless it is present."""
        if self.folder is None:
            return []
        folder = self.folder / SEGMENTS_FOLDER / f"{disk_id:08x}"
        return list(folder.iterdir()) if folder.is_dir() else []

    def stored_bytes(self, disk_id: DiskId) -> int:
        """The space that a disk's segments take on this drive."""
        stored = 0
        for file in self.segment_files(disk_id):
            try:
                stored += file.stat().st_blocks * 512
            except FileNotFoundError:  # reclaimed meanwhile
                continue
        return stored


def folder_of(row: DriveRow, pool: Path) -> Path:
    """Where the catalog expects the drive."""
    return pool if row.path == POOL_FOLDER_PATH else Path(row.path)


def read_label(folder: Path) -> Label | None:
    """The label in `folder`; None when the folder or the label is not there.

    Raises: OSError when it cannot be read, ValueError when it is no label.
    """
    try:
        with (folder / LABEL_FILE).open("rb") as file:
            return Label.decode(file.read(_LABEL_SIZE_BYTES_MAX))
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_label(folder: Path, label: Label) -> None:
    """Makes `folder` a drive. Durable at return."""
    (folder / SEGMENTS_FOLDER).mkdir(mode=0o700, exist_ok=True)  # it holds what guests wrote
    temporary = folder / f"{LABEL_FILE}.new"
    with temporary.open("wb") as file:
        file.write(label.encode())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / LABEL_FILE)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Makes the entries of `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check_new_drives(folders: Sequence[Path]) -> None:
    """Refuses folders that cannot become the drives of a new pool. Changes nothing.

    Raises: DriveUnusable: not a folder, given twice, not writable, or a drive already.
    """
    seen: dict[tuple[int, int], Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise DriveUnusable(path=str(folder), detail="there is no such folder")
        status = folder.stat()
        twin = seen.setdefault((status.st_dev, status.st_ino), folder)
        if twin is not folder:
            raise DriveUnusable(path=str(folder), detail=f"it is the same folder as {twin}")
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise DriveUnusable(path=str(folder), detail="permission denied")
        try:
            label = read_label(folder)
        except (OSError, ValueError) as exc:
            raise DriveUnusable(path=str(folder), detail=f"its label is unreadable: {exc}") from exc
        if label is not None:
            detail = f"it is drive {label.index} of the pool with uuid {label.pool} already"
            raise DriveUnusable(path=str(folder), detail=detail)


def find_drives(rows: Sequence[DriveRow], pool: Path, pool_uuid: UUID) -> list[Drive]:
    """Looks for each drive of the pool at every path where one of them is expected.

    Returns: one for each of `rows`, in their order. Never raises for a drive's sake.
    """
    labels: dict[Path, Label | None] = {}
    unreadable: dict[Path, str] = {}
    for row in rows:
        folder = folder_of(row, pool)
        try:
            labels[folder] = read_label(folder)
        except (OSError, ValueError) as exc:
            unreadable[folder] = str(exc)
    return [_find_drive(row, pool, pool_uuid, labels, unreadable) for row in rows]


def _find_drive(
    row: DriveRow,
    pool: Path,
    pool_uuid: UUID,
    labels: Mapping[Path, Label | None],
    unreadable: Mapping[Path, str],
) -> Drive:
    found = [
        folder
        for folder, label in labels.items()
        if label is not None and (label.pool, label.drive) == (pool_uuid, row.uuid)
    ]
    if len(found) == 1:
        return Drive(row, found[0], DriveState.PRESENT, None)
    expected = folder_of(row, pool)
    if found:
        places = " and ".join(map(str, sorted(found)))
        problem = f"{places} both claim to be this drive; unmount the copy"
        return Drive(row, None, DriveState.DUPLICATE, problem)
    if expected in unreadable:
        problem = f"the label in {expected} cannot be read: {unreadable[expected]}"
        return Drive(row, None, DriveState.UNREADABLE, problem)
    label = labels.get(expected)
    if label is not None and label.pool != pool_uuid:
        problem = f"{expected} is a drive of another pool (uuid {label.pool})"
        return Drive(row, None, DriveState.FOREIGN, problem)
    if label is not None:
        problem = f"{expected} is drive {label.index} of this pool, and this drive is nowhere"
        return Drive(row, None, DriveState.MISSING, problem)
    problem = (
        f"{expected} has no file {LABEL_FILE}; is the drive mounted there?"
        if expected.is_dir()
        else f"there is no folder {expected}"
    )
    return Drive(row, None, DriveState.MISSING, problem)
