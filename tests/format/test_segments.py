"""Reading single segment files: sealed, not sealed, torn while being sealed, damaged."""

import time
from pathlib import Path

import pytest

from storage.format.damage import Damage
from storage.format.layout import DiskId, SegmentId
from storage.format.record import Kind
from storage.format.scan import Identity, SegmentFile, find_durable_lsn
from tests.format.contents import make_blocks
from tests.format.writer import DiskWriter, PoolWriter


def write_segment(disk: DiskWriter, path: Path, *, padding: bytes = b"") -> int:
    """Saves the disk's first segment at `path`; its records' end."""
    segment = disk.segments[0]
    path.write_bytes(segment.content + padding)
    return segment.entries[-1].offset + segment.entries[-1].shape.stride_bytes


def fill(disk: DiskWriter) -> None:
    disk.write(0, make_blocks(20, 1))
    disk.write(5, make_blocks(3, 2, is_random=True))
    disk.trim(7, 1)
    disk.mark()


def find_durable(path: str) -> int:
    return find_durable_lsn(path, DiskId(1), SegmentId(1))


def test_sealed_and_scanned_agree(disk: DiskWriter, tmp_path: Path) -> None:
    fill(disk)
    records_end = write_segment(disk, tmp_path / "open.seg", padding=bytes(100_000))
    disk.segments[0].seal()
    write_segment(disk, tmp_path / "sealed.seg")
    with (
        SegmentFile.open(str(tmp_path / "open.seg")) as unsealed,
        SegmentFile.open(str(tmp_path / "sealed.seg")) as sealed,
    ):
        assert (unsealed.is_sealed, sealed.is_sealed) == (False, True)
        scan, listed, scan_of_sealed = unsealed.scan(), sealed.list_records(), sealed.scan()
        assert scan.records == listed.records == scan_of_sealed.records
        assert scan.end_offset == listed.end_offset == scan_of_sealed.end_offset == records_end
        assert scan.stop is not None and scan.stop.reason == "no record: zeros"
        assert listed.stop is None and scan_of_sealed.stop is None
        assert [record.lsn for record in scan.records] == list(range(1, len(scan.records) + 1))
        assert find_durable(unsealed.path) == scan.records[-1].lsn - 1
        assert find_durable(sealed.path) == scan.records[-1].lsn


def test_an_empty_segment_can_be_sealed(disk: DiskWriter, tmp_path: Path) -> None:
    disk.roll().seal()
    (tmp_path / "x.seg").write_bytes(disk.segments[0].content)
    with SegmentFile.open(str(tmp_path / "x.seg")) as file:
        assert file.list_records().records == []
        assert find_durable(file.path) == 0


def test_a_seal_torn_anywhere_leaves_the_records(disk: DiskWriter, tmp_path: Path) -> None:
    fill(disk)
    path = tmp_path / "x.seg"
    records_end = write_segment(disk, path)
    count = len(disk.segments[0].entries)
    disk.segments[0].seal()
    whole = bytes(disk.segments[0].content)
    for length in range(records_end, len(whole)):
        path.write_bytes(whole[:length])
        with SegmentFile.open(str(path)) as file:
            assert not file.is_sealed
            assert len(file.scan().records) == count
    # The trailer reached the drive, parts of the summary did not.
    for position in range(records_end, len(whole) - 64):
        path.write_bytes(whole[:position] + b"\xa5" + whole[position + 1 :])
        with SegmentFile.open(str(path)) as file:
            if whole[position] == 0xA5:
                continue
            assert file.is_sealed
            with pytest.raises(Damage, match="summary fails its checksum"):
                file.list_records()
            assert len(file.scan().records) == count


def test_payload_damage_does_not_end_a_scan_and_header_damage_does(
    disk: DiskWriter, tmp_path: Path
) -> None:
    fill(disk)
    path = tmp_path / "x.seg"
    write_segment(disk, path)
    content = bytearray(path.read_bytes())
    second = disk.segments[0].entries[1]
    content[second.offset + 60] ^= 1
    path.write_bytes(content)
    with SegmentFile.open(str(path)) as file:
        scan = file.scan()
        assert len(scan.records) == len(disk.segments[0].entries)
        damaged = [record for record in scan.records if record.payload_damage]
        assert [record.offset for record in damaged] == [second.offset]
    content[second.offset + 10] ^= 1
    path.write_bytes(content)
    with SegmentFile.open(str(path)) as file:
        scan = file.scan()
        assert len(scan.records) == 1
        assert scan.stop is not None
        assert scan.stop.to_dict() == {
            "file": str(path),
            "offset": second.offset,
            "reason": "record header fails its checksum",
        }
        # The MARK behind the damage is found all the same.
        assert find_durable(file.path) == len(disk.segments[0].entries) - 1


def test_a_segment_in_the_wrong_place_is_refused(disk: DiskWriter, tmp_path: Path) -> None:
    fill(disk)
    path = tmp_path / "x.seg"
    write_segment(disk, path)
    own = (DiskId(1), SegmentId(1), disk.pool.uuid.bytes)
    SegmentFile.open(str(path), Identity(*own)).close()
    for identity, reason in (
        (Identity(DiskId(2), own[1], own[2]), "says disk 1, not 2"),
        (Identity(own[0], SegmentId(7), own[2]), "says segment 1, not 7"),
        (Identity(own[0], own[1], bytes(16)), "says pool"),
    ):
        with pytest.raises(Damage, match=reason):
            SegmentFile.open(str(path), identity)


def test_files_that_are_no_segments(tmp_path: Path) -> None:
    path = tmp_path / "x.seg"
    for content, reason in (
        (b"", "ends inside"),
        (bytes(127), "ends inside"),
        (bytes(4096), "zeros"),
        (b"x" * 200, "wrong magic"),
    ):
        path.write_bytes(content)
        with pytest.raises(Damage, match=reason):
            SegmentFile.open(str(path))
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(Damage, match="larger than a segment"):
        SegmentFile.open(str(path))


def test_a_full_segment_is_scanned_in_seconds(pool: PoolWriter, tmp_path: Path) -> None:
    disk = pool.add_disk(1)
    extent = make_blocks(1, 3, is_random=True)
    while len(disk.active.content) < (64 << 20) - 5000:
        disk.write(len(disk.model), extent, can_compress=False)
    path = tmp_path / "x.seg"
    write_segment(disk, path, padding=bytes((64 << 20) - len(disk.active.content)))
    started = time.monotonic()
    with SegmentFile.open(str(path)) as file:
        scan = file.scan()
        assert find_durable(file.path) == 0
    assert len(scan.records) == len(disk.model)
    assert {record.shape.kind for record in scan.records} == {Kind.DATA}
    # A generous bound, against anything quadratic: it takes a fraction of a second.
    assert time.monotonic() - started < 10
