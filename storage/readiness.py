"""Whether a disk may be used for what is asked of it, as its row in the catalog says."""

from storage.catalog import DiskRow
from storage.errors import DiskNotReady, NotASnapshot, ReadOnly
from storage.service import DiskState


def check_ready(row: DiskRow) -> None:
    """Raises DiskNotReady for one that is being imported or deleted."""
    if row.state != DiskState.READY:
        raise DiskNotReady(disk=row.name, state=row.state)


def check_changeable(row: DiskRow) -> None:
    """Raises: DiskNotReady; ReadOnly for a snapshot."""
    check_ready(row)
    if row.snapshot_of is not None:
        raise ReadOnly(disk=row.name)


def check_snapshot(row: DiskRow) -> None:
    """Raises: NotASnapshot, DiskNotReady."""
    if row.snapshot_of is None:
        raise NotASnapshot(name=row.name)
    check_ready(row)
