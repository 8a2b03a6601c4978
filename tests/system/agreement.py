"""The second reader as a judge of what the core has left on the drives."""

from pathlib import Path

from storage.format import PoolFolder, check_pool
from storage.format.layout import BLOCK_SIZE_BYTES, DiskId
from tests.system.operations import Model, assert_equal


def assert_sound(pool: Path) -> None:
    """Every invariant of the format holds in a pool that nobody has open.

    The remains of a crash (leftovers) are what the next open removes, and are allowed.
    """
    report = check_pool(pool)
    assert report.is_sound, report.findings[:10]


def assert_holds(pool: Path, disk: DiskId, model: Model) -> None:
    """The disk, read without the core, holds what the model does as of the end of its log."""
    with PoolFolder.open(pool).open_disk(disk) as offline:
        size_blocks = -(-(model.base + len(model.content)) // BLOCK_SIZE_BYTES)
        blocks = [mapped.block for mapped in offline.blocks()]
        assert all(model.base // BLOCK_SIZE_BYTES <= block < size_blocks for block in blocks)
        assert_equal(offline.read(model.base, len(model.content)), model.content)


def find_disk(pool: Path, name: str) -> DiskId:
    """The number of a disk that the catalog knows by `name`."""
    catalog = PoolFolder.open(pool).catalog
    assert catalog is not None
    return next(disk for disk, row in catalog.disks.items() if row.name == name)
