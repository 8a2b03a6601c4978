"""What lists say of a disk without opening it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storage.catalog import DiskRow
from storage.drives import Drive
from storage.leftovers import anchor_name
from storage.service import DiskState
from storage.units import format_time


def describe(row: DiskRow, drives: Sequence[Drive], clients: int) -> dict[str, Any]:
    """The fields of a DiskInfo that the row, the drives and the number of its clients tell."""
    return {
        "id": row.id,
        "name": row.name,
        "size_bytes": row.size_bytes,
        "state": row.state,
        "created": format_time(row.created),
        "description": row.description,
        "stored_bytes": stored_bytes(row, drives),
        "clients": clients,
        "snapshot_of": row.name.partition("@")[0] if row.snapshot_of else None,
    }


def stored_bytes(row: DiskRow, drives: Sequence[Drive]) -> int:
    """What the disk's segments take on the drives that are present."""
    return sum(drive.stored_bytes(row.id) for drive in drives)


def is_shown(row: DiskRow, pool: Path) -> bool:
    """Not so a deleted disk that others still need segments of."""
    return row.state != DiskState.DELETING or (pool / anchor_name(row.id)).exists()
