"""The offline check: silent on a sound pool, and it names each thing that is not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from storage.format import check
from storage.format.check import PoolReport, Severity, check_pool
from storage.format.layout import BlockIndex, SegmentId
from storage.format.node import SegmentUsage
from tests.format.contents import make_blocks
from tests.format.writer import DiskWriter, PoolWriter, SegmentDraft


def fill(disk: DiskWriter) -> None:
    """Several segments, two checkpoints, and something to replay."""
    disk.write(0, make_blocks(40, 1))
    disk.write(3, make_blocks(5, 2, is_random=True))
    disk.checkpoint()
    disk.roll()
    disk.write(2, make_blocks(30, 3))
    disk.trim(10, 3)
    disk.roll()
    disk.checkpoint()
    disk.write(600, make_blocks(2, 4))
    disk.mark()


def check_saved(pool: PoolWriter) -> PoolReport:
    pool.save()
    return check_pool(pool.path)


def reasons(report: PoolReport, severity: Severity) -> str:
    return "\n".join(f.reason for f in report.findings if f.severity is severity)


def test_a_sound_pool(pool: PoolWriter, disk: DiskWriter) -> None:
    fill(disk)
    other = pool.add_disk(7, "other")
    fill(other)
    other.close()
    report = check_saved(pool)
    assert report.is_sound and report.findings == []
    first, second = report.disks
    assert (first.disk, first.name, second.disk, second.name) == (1, "vm", 7, "other")
    assert first.mapped_blocks == len(disk.model)
    assert first.checkpoint_blocks == disk.anchor.root.mapped_blocks
    assert first.records == sum(len(segment.entries) for segment in disk.segments)
    assert first.segments == len(disk.segments) == 3
    assert report.to_dict()["is_sound"] is True


def test_every_record_is_verified(pool: PoolWriter, disk: DiskWriter) -> None:
    """A flip in any record of a sealed segment is found, and named with its file and offset."""
    fill(disk)
    segment = disk.segments[0]
    for entry in segment.entries:
        where = entry.offset + (48 if entry.shape.stored_len else 10)
        segment.content[where] ^= 1
        report = check_saved(pool)
        segment.content[where] ^= 1
        found = {(Path(f.file).name, f.offset) for f in report.findings}
        assert ("00000001.seg", entry.offset) in found, entry
        assert not report.is_sound
    assert check_saved(pool).is_sound


def forge_usage(disk: DiskWriter, change: Callable[[SegmentUsage], SegmentUsage]) -> None:
    honest = disk.count_usage
    disk.count_usage = lambda: [change(usage) for usage in honest()]  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda usage: usage._replace(live=usage.live + 1), "live, there are"),
        (lambda usage: usage._replace(total=usage.total + 1), "in all, there are"),
        (lambda usage: usage._replace(total=max(usage.live - 1, 0)), "in all, there are"),
    ],
)
def test_usage_is_recounted(
    pool: PoolWriter,
    disk: DiskWriter,
    change: Callable[[SegmentUsage], SegmentUsage],
    reason: str,
) -> None:
    forge_usage(disk, change)
    fill(disk)
    report = check_saved(pool)
    assert reason in reasons(report, Severity.VIOLATION)


def test_mapped_blocks_are_recounted(pool: PoolWriter, disk: DiskWriter) -> None:
    fill(disk)
    root = disk.anchor.root
    disk.anchor = disk.anchor._replace(root=root._replace(mapped_blocks=root.mapped_blocks + 1))
    assert "mapped blocks, there are" in reasons(check_saved(pool), Severity.VIOLATION)


def test_the_root_is_compared_with_the_log(pool: PoolWriter, disk: DiskWriter) -> None:
    fill(disk)
    root = disk.anchor.root
    offset = root.replay_offset + 16
    disk.anchor = disk.anchor._replace(
        root=root._replace(replay_offset=offset, segment_high=SegmentId(1), drives=2)
    )
    found = reasons(check_saved(pool), Severity.VIOLATION)
    assert "the root says that LSN" in found
    assert "highest segment 1 is not the highest" in found
    assert "on drive 0, which the root does not name" in found


def test_map_entries_are_followed(pool: PoolWriter, disk: DiskWriter) -> None:
    """Locations that name another block's record, no record, or the wrong size are all found."""
    disk.write(0, make_blocks(8, 1))
    disk.locations[100] = disk.locations[3]
    disk.locations[101] = disk.locations[0] + (4 << 10)
    disk.locations[102] = 77 << 32 | 8 << 10
    disk.locations[5] ^= 1 << 4
    disk.checkpoint()
    report = check_saved(pool)
    damage = reasons(report, Severity.DAMAGE)
    assert "not block 100" in damage
    assert "block 101 is here, where no DATA record starts" in damage
    assert "missing, though 1 blocks of the map lie in it" in damage
    assert "size class" in reasons(report, Severity.VIOLATION)


def test_succession_is_checked(pool: PoolWriter, disk: DiskWriter) -> None:
    fill(disk)
    second: SegmentDraft = disk.segments[1]
    second.header = second.header._replace(prev=SegmentId(9))
    second.content[:128] = second.header.encode()
    assert "do not follow segment 1" in reasons(check_saved(pool), Severity.VIOLATION)


def test_dead_segments_may_be_gone(pool: PoolWriter, disk: DiskWriter) -> None:
    disk.write(0, make_blocks(4, 1))
    disk.roll()
    disk.write(0, make_blocks(4, 2))
    disk.roll()
    disk.checkpoint()
    report = check_saved(pool)
    assert report.is_sound and report.disks[0].dead_segments == 1
    del disk.segments[0]
    (pool.path / "segments" / "00000001" / "00000001.seg").unlink()
    disk.checkpoint()
    report = check_saved(pool)
    assert report.findings == [] and report.disks[0].dead_segments == 0


def test_a_missing_live_segment_is_damage(pool: PoolWriter, disk: DiskWriter) -> None:
    fill(disk)
    pool.save()
    (pool.path / "segments" / "00000001" / "00000001.seg").unlink()
    report = check_pool(pool.path)
    assert "missing" in reasons(report, Severity.DAMAGE)


def test_a_disk_whose_making_was_interrupted(pool: PoolWriter, disk: DiskWriter) -> None:
    """Its anchor may be torn, and the catalog never heard of it: no damage, it is removed."""
    fill(disk)
    pool.save()
    (pool.path / "anchors" / "00000009.anchor").write_bytes(bytes(100))
    report = check_pool(pool.path)
    assert report.is_sound
    assert {f.disk for f in report.findings} == {9}
    (pool.path / "anchors" / "00000001.anchor").write_bytes(bytes(100))
    assert not check_pool(pool.path).is_sound


def test_leftovers_do_not_make_a_pool_unsound(pool: PoolWriter, disk: DiskWriter) -> None:
    fill(disk)
    pool.save()
    segments = pool.path / "segments"
    (segments / "00000001" / "000000ff.seg").write_bytes(bytes(200))
    (segments / "00000055").mkdir()
    (segments / "00000055" / "00000060.seg").write_bytes(b"x")
    stray = (pool.path / "anchors" / "00000001.anchor").read_bytes()
    (pool.path / "anchors" / "00000002.anchor").write_bytes(stray)
    report = check_pool(pool.path)
    found = reasons(report, Severity.LEFTOVER)
    assert "a segment behind the end of the log" in found
    assert "1 segments of a disk that has no anchor" in found
    assert "the catalog does not know this disk" in found
    # The copied anchor is that of disk 1, but nobody misses disk 2.
    assert "as that of disk 2" in found
    assert report.is_sound


def test_catalog_and_anchors_are_compared(pool: PoolWriter, disk: DiskWriter) -> None:
    fill(disk)
    pool.add_disk(3, "lost")
    pool.save()
    (pool.path / "anchors" / "00000003.anchor").unlink()
    found = reasons(check_pool(pool.path), Severity.DAMAGE)
    assert "the catalog has disk 'lost', which has no anchor" in found


def test_blocks_behind_the_end_of_the_disk(pool: PoolWriter) -> None:
    disk = pool.add_disk(1, size_bytes=601 * 4096)
    fill(disk)
    assert "block 601 is mapped" in reasons(check_saved(pool), Severity.VIOLATION)


def test_a_group_that_never_ends(pool: PoolWriter, disk: DiskWriter) -> None:
    fill(disk)
    disk.write(0, make_blocks(40, 9))
    segment = disk.segments[-1]
    last = segment.entries.pop()
    del segment.content[last.offset :]
    disk.next_lsn -= 1
    segment.seal()
    assert not check_saved(pool).is_sound


def test_missing_drives_and_foreign_labels(pool: PoolWriter, disk: DiskWriter) -> None:
    fill(disk)
    pool.save()
    label = pool.path / "nearstone-drive"
    label.write_text(label.read_text().replace("d0", "d1"))
    damage = reasons(check_pool(pool.path), Severity.DAMAGE)
    assert "which does not belong here" in damage and "drive 0 is missing" in damage
    label.write_text("{")
    assert "not a drive label" in reasons(check_pool(pool.path), Severity.DAMAGE)


def test_labels_serve_when_the_catalog_is_damaged(pool: PoolWriter, disk: DiskWriter) -> None:
    fill(disk)
    pool.save()
    (pool.path / "catalog.sqlite").write_bytes(b"no database" * 100)
    report = check_pool(pool.path)
    assert "the catalog cannot be read" in reasons(report, Severity.DAMAGE)
    assert report.disks[0].mapped_blocks == len(disk.model)


def test_findings_are_bounded(
    pool: PoolWriter, disk: DiskWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "FINDINGS_PER_DISK_MAX", 3)
    disk.write(0, make_blocks(8, 1))
    for block in range(100, 110):
        disk.locations[block] = disk.locations[0]
    disk.checkpoint()
    report = check_saved(pool)
    assert len(report.findings) == 3
    assert report.disks[0].findings_left_out == 8


def test_a_summary_that_differs_from_its_records(pool: PoolWriter, disk: DiskWriter) -> None:
    disk.write(0, make_blocks(2, 1))
    segment = disk.segments[0]
    entry = segment.entries[0]
    segment.entries[0] = entry._replace(shape=replace(entry.shape, block=BlockIndex(1)))
    segment.seal()
    assert "summary and record differ" in reasons(check_saved(pool), Severity.VIOLATION)
