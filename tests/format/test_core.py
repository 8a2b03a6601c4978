"""The second reader against the core: both see the same in what the core has written."""

import contextlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from storage.format.check import Severity, check_pool
from storage.format.damage import Damage
from storage.format.disk import OfflineDisk
from storage.format.layout import BLOCK_SIZE_BYTES, SEGMENT_SIZE_BYTES_MAX, DiskId
from storage.format.pool import PoolFolder
from storage.format.record import Kind
from storage.format.scan import SegmentFile
from tests.format.writer import PoolWriter

pytest.importorskip(
    "storage._core", reason="the core is not built: make build", exc_type=ImportError
)

from storage import _core, errors
from tests.format import core_workload
from tests.format.core_workload import (
    AREA_BYTES,
    AREAS,
    DISK,
    DISK_SIZE_BYTES,
    Model,
    Operation,
    make_operations,
    open_pool,
    perform,
)

REPOSITORY = Path(__file__).parents[2]
Extent = tuple[int, int, bool]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pool's folder with one empty disk."""
    return make_pool(tmp_path / "pool")


def make_pool(path: Path) -> Path:
    writer = PoolWriter(path)
    writer.add_disk(DISK, size_bytes=DISK_SIZE_BYTES)
    writer.save()
    (path / "anchors" / f"{DISK:08x}.anchor").unlink()
    pool = open_pool(path)
    pool.create_disk(DISK)
    pool.close()
    return path


def open_offline(folder: Path) -> OfflineDisk:
    return PoolFolder.open(folder).open_disk(DiskId(DISK))


def merge(extents: Iterable[tuple[int, int, bool]]) -> Iterator[Extent]:
    """Neighbours of the same kind become one."""
    last: Extent | None = None
    for offset, length, is_hole in extents:
        if last is not None and last[2] == is_hole:
            assert last[0] + last[1] == offset
            last = (last[0], last[1] + length, is_hole)
            continue
        if last is not None:
            yield last
        last = (offset, length, is_hole)
    if last is not None:
        yield last


def list_core_extents(disk: _core.Disk) -> Iterator[Extent]:
    at = 0
    while at < DISK_SIZE_BYTES:
        some = disk.extents(at, DISK_SIZE_BYTES - at)
        assert some and some[0][0] == at
        yield from some
        at = some[-1][0] + some[-1][1]


def assert_same_view(offline: OfflineDisk, disk: _core.Disk) -> None:
    """Extents and contents are the same through both."""
    ours = list(merge(offline.extents(0, DISK_SIZE_BYTES)))
    assert ours == list(merge(list_core_extents(disk)))
    for offset, length, is_hole in ours:
        if not is_hole:
            assert offline.read(offset, length) == disk.read(offset, length)
    assert offline.end_of_data() == disk.measure_data()[1]


def assert_contents(offline: OfflineDisk, model: Model) -> None:
    for area, content in model.areas.items():
        assert offline.read(area, AREA_BYTES) == content


def assert_sound(folder: Path) -> None:
    report = check_pool(folder)
    assert report.is_sound, report.findings
    assert all(finding.severity is Severity.LEFTOVER for finding in report.findings)


def test_a_disk_just_created(folder: Path) -> None:
    with open_offline(folder) as offline:
        assert list(offline.blocks()) == []
        assert offline.root.seq == 0 and offline.log_end.next_lsn == 1
    assert check_pool(folder).findings == []


@pytest.mark.parametrize("seed", range(6))
def test_same_view_after_clean_close(folder: Path, seed: int) -> None:
    model = Model()
    pool = open_pool(folder)
    disk = pool.open_disk(DISK, DISK_SIZE_BYTES)
    operations = make_operations(seed, can_reopen=True)
    for _, operation in zip(range(250), operations, strict=False):
        if operation.name == "reopen":
            pool.close()
            with open_offline(folder) as offline:
                assert_contents(offline, model)
            pool = open_pool(folder)
            disk = pool.open_disk(DISK, DISK_SIZE_BYTES)
            continue
        perform(disk, operation)
        model.apply(operation)
    pool.close()
    assert_sound(folder)
    with open_offline(folder) as offline:
        assert offline.root.is_clean and offline.log_end.leftovers == []
        assert_contents(offline, model)
        pool = open_pool(folder)
        assert_same_view(offline, pool.open_disk(DISK, DISK_SIZE_BYTES))
        pool.close()


def run_and_kill(folder: Path, seed: int, operations_max: int) -> int:
    """Runs the workload in another process, kills it; how many operations were answered."""
    command = [sys.executable, "-m", core_workload.__name__, str(folder), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as child:
        assert child.stdout is not None
        for _ in range(operations_max):
            child.stdout.readline()
        time.sleep(random.Random(seed).random() * 0.05)
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().splitlines()
        assert child.wait() == -signal.SIGKILL
    return operations_max + len([line for line in rest if line])


@pytest.mark.parametrize("seed", range(100, 108))
def test_same_view_after_a_kill(folder: Path, tmp_path: Path, seed: int) -> None:
    """Answered operations are there; the one under way may be; and both readers agree."""
    answered = run_and_kill(folder, seed, 20 + seed * 7 % 150)
    model, operations = Model(), make_operations(seed, can_reopen=False)
    for _, operation in zip(range(answered), operations, strict=False):
        model.apply(operation)
    under_way = next(operations)
    untouched = tmp_path / "untouched"
    shutil.copytree(folder, untouched)
    assert_sound(untouched)
    with open_offline(untouched) as offline:
        assert_prefix(offline, model, under_way)
        pool = open_pool(folder)
        disk = pool.open_disk(DISK, DISK_SIZE_BYTES)
        assert_same_view(offline, disk)
        # Recovery, a checkpoint and a clean close change nothing of what the disk holds.
        disk.checkpoint()
        disk.write(AREAS[0], b"after")
        disk.write(AREAS[0], offline.read(AREAS[0], 5))
        assert_same_contents(offline, disk)
        pool.close()
    assert_sound(folder)


def assert_prefix(offline: OfflineDisk, model: Model, under_way: Operation) -> None:
    """The model's contents, or those with the operation that was under way applied as well."""
    try:
        assert_contents(offline, model)
    except AssertionError:
        model.apply(under_way)
        assert_contents(offline, model)


def assert_same_contents(offline: OfflineDisk, disk: _core.Disk) -> None:
    for area in AREAS:
        assert offline.read(area, AREA_BYTES) == disk.read(area, AREA_BYTES)


def test_kill_after_kill(folder: Path) -> None:
    """Each run goes on from what the last one left; nothing but whole operations ever shows."""
    for seed in range(200, 206):
        before = read_areas(folder)
        answered = run_and_kill(folder, seed, 30)
        model, operations = Model(), make_operations(seed, can_reopen=False)
        model.areas = before
        for _, operation in zip(range(answered), operations, strict=False):
            model.apply(operation)
        with open_offline(folder) as offline:
            assert_prefix(offline, model, next(operations))
        assert_sound(folder)


def read_areas(folder: Path) -> dict[int, bytearray]:
    with open_offline(folder) as offline:
        return {area: bytearray(offline.read(area, AREA_BYTES)) for area in AREAS}


def test_same_view_over_several_segments(folder: Path) -> None:
    pool = open_pool(folder)
    disk = pool.open_disk(DISK, DISK_SIZE_BYTES)
    rng = random.Random(1)
    written_bytes, chunk_bytes = 0, 1 << 20
    while written_bytes < 5 * SEGMENT_SIZE_BYTES_MAX // 2:
        disk.write(rng.randrange(48) * chunk_bytes, rng.randbytes(chunk_bytes))
        written_bytes += chunk_bytes
        if rng.random() < 0.05:
            disk.flush()
        if rng.random() < 0.02:
            disk.checkpoint()
    pool.close()
    report = check_pool(folder)
    assert report.is_sound, report.findings
    with open_offline(folder) as offline:
        pool = open_pool(folder)
        assert_same_view(offline, pool.open_disk(DISK, DISK_SIZE_BYTES))
        pool.close()


def test_what_the_core_refuses_the_second_reader_refuses(folder: Path) -> None:
    """Damage a copy of a killed pool here and there: both readers refuse, or see the same."""
    run_and_kill(folder, 300, 60)
    rng = random.Random(300)
    files = [p for p in folder.rglob("*") if p.suffix in (".seg", ".anchor")]
    for number in range(60):
        copy = folder.with_name(f"copy-{number}")
        shutil.copytree(folder, copy)
        victim = copy / rng.choice(files).relative_to(folder)
        content = bytearray(victim.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        victim.write_bytes(content)
        assert_both_agree(copy)
        shutil.rmtree(copy)


def test_a_damaged_node_behind_a_lost_mark_is_no_torn_tail(folder: Path, tmp_path: Path) -> None:
    """Taken for one, the cut would remove the tree itself (found in review; ADR 0002)."""
    pool = open_pool(folder)
    disk = pool.open_disk(DISK, DISK_SIZE_BYTES)
    disk.write(0, b"x" * (2000 * BLOCK_SIZE_BYTES))
    disk.checkpoint()
    killed = tmp_path / "killed"
    shutil.copytree(folder, killed)
    pool.close()
    (segment,) = killed.rglob("*.seg")
    with SegmentFile.open(str(segment)) as file:
        records = file.scan().records
    node = next(record for record in records if record.shape.kind is Kind.NODE)
    assert records[-1].shape.kind is Kind.MARK
    content = bytearray(segment.read_bytes()[: records[-1].offset])
    content[node.offset + 20] ^= 1
    segment.write_bytes(content)
    with pytest.raises(Damage, match="was on stable storage"):
        open_offline(killed)
    pool = open_pool(killed)
    with pytest.raises(errors.Corrupt):
        pool.open_disk(DISK, DISK_SIZE_BYTES)
    pool.close()
    assert segment.read_bytes() == content


def assert_both_agree(folder: Path) -> None:
    """Block by block the same contents, or both refuse."""
    views: dict[int, bytes | None] | None = None
    with contextlib.suppress(Damage), open_offline(folder) as ours:
        views = read_blocks(ours)
    pool = open_pool(folder)
    try:
        disk = pool.open_disk(DISK, DISK_SIZE_BYTES)
        assert views is not None
        for block, content in views.items():
            found: bytes | None = None
            with contextlib.suppress(errors.Corrupt):
                found = disk.read(block * BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES)
            assert found == content, block
    except errors.Corrupt:
        # A damaged usage table closes a disk for the core; reading does not need it.
        pass
    finally:
        # The checkpoint of the close may have to read a damaged node.
        with contextlib.suppress(errors.Corrupt):
            pool.close()


def read_blocks(offline: OfflineDisk) -> dict[int, bytes | None]:
    """Every block of the areas; None where it cannot be read."""
    views: dict[int, bytes | None] = {}
    for area in AREAS:
        first = area // BLOCK_SIZE_BYTES
        for block in range(first, first + AREA_BYTES // BLOCK_SIZE_BYTES):
            try:
                views[block] = offline.read(block * BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES)
            except Damage:
                views[block] = None
    return views
