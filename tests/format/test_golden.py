"""Pools of every released version of the format stay readable, by both readers.

The folders of ``tests/golden/`` are made by ``tests/format/golden.py``, once, and never again.
"""

import json
import shutil
from pathlib import Path

import pytest

from storage.format.check import check_pool
from storage.format.disk import read_anchor
from storage.format.inspection import inspect
from storage.format.layout import BLOCK_SIZE_BYTES, DiskId
from storage.format.pool import PoolFolder
from tests.format.golden import DISK_SIZE_BYTES, digest

GOLDEN = Path(__file__).parents[1] / "golden"
POOLS = sorted(path.parent for path in GOLDEN.glob("*/*/expected.json"))


def name_of(pool: Path) -> str:
    return str(pool.relative_to(GOLDEN))


def read_expected(golden: Path) -> dict[int, dict[int, str]]:
    digests = json.loads((golden / "expected.json").read_text())
    return {
        int(disk): {int(block): value for block, value in blocks.items()}
        for disk, blocks in digests.items()
    }


def test_every_version_has_its_pools() -> None:
    assert [name_of(pool) for pool in POOLS] == ["v1/core", "v1/handmade", "v1/pending"]


@pytest.mark.parametrize("golden", POOLS, ids=name_of)
def test_the_second_reader_reads_it(golden: Path) -> None:
    folder = PoolFolder.open(golden / "pool")
    for disk, expected in read_expected(golden).items():
        with folder.open_disk(DiskId(disk)) as opened:
            found = {int(m.block): digest(opened.read_block(m)) for m in opened.blocks()}
        assert found == expected


def test_pending_snapshots_are_among_them() -> None:
    anchors = PoolFolder.open(GOLDEN / "v1" / "pending" / "pool").list_anchors()
    pending = [disk for disk, path in anchors.items() if read_anchor(path, disk).root.is_pending]
    assert sorted(pending) == [4, 5]


@pytest.mark.parametrize("golden", POOLS, ids=name_of)
def test_it_is_sound(golden: Path) -> None:
    report = check_pool(golden / "pool")
    assert report.is_sound, report.findings
    assert [disk.disk for disk in report.disks] == sorted(read_expected(golden))
    for path in (golden / "pool").rglob("*"):
        if path.suffix in (".seg", ".anchor", ".sqlite") or path.name == "nearstone-drive":
            assert inspect(path)["damage"] == []


@pytest.mark.parametrize("golden", POOLS, ids=name_of)
def test_the_core_reads_it(golden: Path, tmp_path: Path) -> None:
    core = pytest.importorskip(
        "storage._core", reason="the core is not built: make build", exc_type=ImportError
    )
    path = tmp_path / "pool"
    shutil.copytree(golden / "pool", path)
    (path / "anchors").mkdir(exist_ok=True)
    folder = PoolFolder.open(path)
    assert folder.pool is not None
    pool = core.Pool.open(str(path), folder.pool, [(0, str(path))], 64 << 20)
    for disk, expected in read_expected(golden).items():
        opened = pool.open_disk(disk, DISK_SIZE_BYTES)
        for block, value in expected.items():
            content = opened.read(block * BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES)
            assert digest(content) == value, (disk, block)
        end = max(expected, default=-1) + 1
        assert opened.measure_data()[1] == end * BLOCK_SIZE_BYTES
        if not read_anchor(path / "anchors" / f"{disk:08x}.anchor", DiskId(disk)).root.is_snapshot:
            opened.write(0, b"still writable")
    pool.close()
    assert check_pool(path).is_sound
