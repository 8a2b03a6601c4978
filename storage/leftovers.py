"""What a crash left half done, and what a missing drive or file takes away from which disk.

Rule: nothing that may hold somebody's data is removed on a guess. A disk is deleted only when the
catalog says that it was being deleted or imported; an anchor that the catalog does not know is
removed only when no drive is missing and no segment of it exists, as after a crash in the middle of
a creation. Anything else (a catalog restored from an old backup, say) is reported and left alone.
"""

from collections.abc import Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Final

from storage.catalog import Catalog, DiskRow
from storage.drives import Drive
from storage.errors import DiskNotFound, StorageError
from storage.format.anchor import choose_slot
from storage.format.damage import Damage
from storage.format.location import HOLE
from storage.service import DiskState, DriveState
from storage.units import DiskId

if TYPE_CHECKING:
    from storage import _core

ANCHORS_FOLDER: Final = "anchors"


def anchor_name(disk_id: int) -> str:
    """The path of a disk's anchor within the pool."""
    return f"{ANCHORS_FOLDER}/{disk_id:08x}.anchor"


def finish(pool: Path, catalog: Catalog, drives: Sequence[Drive], core: "_core.Pool") -> list[str]:
    """Finishes deletions, undoes imports, snapshots and creations that were cut short.

    A deleted disk whose segments clones or snapshots still need keeps its row until they do not.

    Returns: what could not be finished, in sentences for the operator.
    """
    problems = []
    rows = catalog.disks()
    for row in rows:
        if row.state == DiskState.READY:
            continue
        try:
            _delete(catalog, core, row)
        except StorageError as exc:
            problems.append(
                f"disk {row.name!r} (number {row.id}) is not deleted yet: {exc.problem}"
            )
    known = {row.id for row in rows}
    for disk_id in core.anchored_disks():
        if disk_id not in known:
            problems += _remove_stranger(pool, DiskId(disk_id), drives, core)
    return problems


def _delete(catalog: Catalog, core: "_core.Pool", row: DiskRow) -> None:
    catalog.set_state(row.id, DiskState.DELETING)
    try:
        is_gone = core.delete_disk(row.id)
    except DiskNotFound:
        is_gone = True  # only the row was left
    if is_gone:
        catalog.remove_disk(row.id)


def _remove_stranger(
    pool: Path, disk_id: DiskId, drives: Sequence[Drive], core: "_core.Pool"
) -> list[str]:
    """Removes an anchor without a row if it is empty for certain; returns what to report if not."""
    try:
        anchor = pool / anchor_name(disk_id)
        root = choose_slot(anchor.read_bytes(), anchor.name).root
        is_empty = root.tree == HOLE and not root.is_pending
    except (OSError, Damage):
        is_empty = True  # torn while being made
    is_complete = all(drive.state == DriveState.PRESENT for drive in drives)
    if is_complete and is_empty and not any(drive.segment_files(disk_id) for drive in drives):
        core.delete_disk(disk_id)
        return []
    return [f"{anchor_name(disk_id)} is of a disk that the catalog does not know; it is left alone"]


def problem_of(row: DiskRow, pool: Path, absent: Set[int]) -> str | None:
    """Why the disk cannot be served whole, as far as its anchor tells without opening it.

    Args: absent: the indices of the drives that are not there.
    """
    if row.state == DiskState.DELETING:
        return None
    anchor = pool / anchor_name(row.id)
    if not anchor.exists():
        return f"{anchor_name(row.id)} is missing"
    if not absent:
        return None
    try:
        used = choose_slot(anchor.read_bytes(), anchor.name).root.drives
    except (OSError, Damage) as exc:
        return f"{anchor_name(row.id)} cannot be read: {exc}"
    missing = sorted(index for index in absent if used >> index & 1)
    if not missing:
        return None
    return f"it needs drive {', '.join(map(str, missing))}, which is missing"
