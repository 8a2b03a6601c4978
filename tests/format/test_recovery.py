"""Where the log ends: torn tails are cut, damage is refused, groups count wholly or not at all."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.format.damage import Damage
from storage.format.disk import OfflineDisk
from storage.format.layout import DiskId, Lsn
from storage.format.pool import PoolFolder
from tests.format.contents import make_blocks
from tests.format.writer import DiskWriter, PoolWriter

Damager = Callable[[bytearray, int], None]


def open_disk(pool: PoolWriter) -> OfflineDisk:
    pool.save()
    return PoolFolder.open(pool.path).open_disk(DiskId(1))


def read_all(pool: PoolWriter) -> dict[int, bytes]:
    with open_disk(pool) as disk:
        return {mapped.block: disk.read_block(mapped) for mapped in disk.blocks()}


def damage_header(content: bytearray, offset: int) -> None:
    content[offset + 20] ^= 4


def damage_payload(content: bytearray, offset: int) -> None:
    content[offset + 50] ^= 4


def lose_record(content: bytearray, offset: int) -> None:
    content[offset : offset + 48] = bytes(48)


def test_a_new_disk_is_empty(pool: PoolWriter, disk: DiskWriter) -> None:
    with open_disk(pool) as opened:
        assert (list(opened.blocks()), list(opened.extents())) == ([], [])
        assert opened.read(12345, 10) == bytes(10)
        assert opened.log_end.next_lsn == 1
    assert disk.model == {}


@pytest.mark.parametrize("damager", [damage_header, damage_payload, lose_record])
def test_a_torn_tail_without_a_mark_is_cut(
    pool: PoolWriter, disk: DiskWriter, damager: Damager
) -> None:
    disk.write(0, make_blocks(3, 1))
    disk.mark()
    before = dict(disk.model)
    disk.write(1, make_blocks(1, 2, is_random=True))
    torn = disk.segments[0].entries[-1].offset
    disk.write(2, make_blocks(1, 3))
    damager(disk.segments[0].content, torn)
    with open_disk(pool) as opened:
        assert opened.log_end.offset == torn
        assert opened.log_end.next_lsn == 3
        assert opened.log_end.reason is not None
    assert read_all(pool) == before


@pytest.mark.parametrize("damager", [damage_header, lose_record])
@pytest.mark.parametrize("evidence", ["mark", "mark in later segment", "trailer", "usage"])
def test_a_lost_record_that_was_durable_closes_the_disk(
    pool: PoolWriter, disk: DiskWriter, damager: Damager, evidence: str
) -> None:
    disk.write(0, make_blocks(3, 1))
    disk.write(1, make_blocks(1, 2, is_random=True))
    first, lost = disk.segments[0], disk.segments[0].entries[-1]
    if evidence == "mark":
        disk.write(2, make_blocks(1, 3))
        disk.mark()
    elif evidence == "mark in later segment":
        disk.roll(seal=False)
        disk.mark()
    elif evidence == "trailer":
        disk.roll(seal=False)
        disk.write(2, make_blocks(1, 3))
        disk.segments[-1].seal()
    else:
        # As if the record had been appended while the checkpoint was being made.
        disk.checkpoint()
        root = disk.anchor.root._replace(replay_offset=lost.offset, replay_lsn=Lsn(2))
        disk.anchor = disk.anchor._replace(root=root)
        disk.segments[0].content = disk.segments[0].content[:-96]
    damager(first.content, lost.offset)
    with pytest.raises(Damage, match="LSN 2 is missing") as caught:
        open_disk(pool)
    assert caught.value.offset == lost.offset
    assert caught.value.file.endswith("00000001.seg")


def test_a_damaged_payload_that_was_durable_is_mapped_and_unreadable(
    pool: PoolWriter, disk: DiskWriter
) -> None:
    disk.write(0, make_blocks(3, 1))
    disk.write(1, make_blocks(1, 2, is_random=True))
    damaged = disk.segments[0].entries[-1].offset
    disk.write(2, make_blocks(1, 3))
    disk.mark()
    damage_payload(disk.segments[0].content, damaged)
    with open_disk(pool) as opened:
        blocks = {int(mapped.block): mapped for mapped in opened.blocks()}
        assert sorted(blocks) == [0, 1, 2]
        assert opened.read_block(blocks[0]) == disk.model[0]
        assert opened.read_block(blocks[2]) == disk.model[2]
        with pytest.raises(Damage, match="payload of DATA fails its checksum"):
            opened.read_block(blocks[1])
        with pytest.raises(Damage):
            opened.read(4096 + 100, 1)


def test_the_usage_table_is_evidence_for_what_lies_before_it(
    pool: PoolWriter, disk: DiskWriter
) -> None:
    """As if the write had come while the checkpoint was being made, and its MARK were lost."""
    disk.write(0, make_blocks(3, 1))
    disk.write(1, make_blocks(1, 2, is_random=True))
    damaged = disk.segments[0].entries[-1].offset
    disk.checkpoint()
    root = disk.anchor.root._replace(replay_offset=damaged, replay_lsn=Lsn(2))
    disk.anchor = disk.anchor._replace(root=root)
    mark = disk.segments[0].entries.pop()
    del disk.segments[0].content[mark.offset :]
    damage_payload(disk.segments[0].content, damaged)
    with open_disk(pool) as opened:
        assert opened.log_end.next_lsn == mark_lsn(disk)
        assert opened.read(0, 4096) == disk.model[0]
        with pytest.raises(Damage, match="payload of DATA"):
            opened.read(4096, 4096)


def mark_lsn(disk: DiskWriter) -> int:
    return disk.segments[-1].next_lsn


def test_a_group_counts_wholly_or_not_at_all(pool: PoolWriter, disk: DiskWriter) -> None:
    disk.write(0, make_blocks(1, 1))
    before, whole_end = dict(disk.model), len(disk.active.content)
    disk.write(0, make_blocks(40, 2, is_random=True))
    entries = disk.active.entries[1:]
    assert len(entries) == 3
    whole = bytes(disk.active.content)
    for cut in (entries[1].offset, entries[2].offset, entries[2].offset + 50, len(whole) - 1):
        disk.active.content = bytearray(whole[:cut])
        with open_disk(pool) as opened:
            assert (opened.log_end.offset, opened.log_end.next_lsn) == (whole_end, 2)
        assert read_all(pool) == before
    disk.active.content = bytearray(whole)
    assert read_all(pool) == disk.model


def test_the_log_goes_on_over_segments(pool: PoolWriter, disk: DiskWriter) -> None:
    for number in range(6):
        disk.write(number, make_blocks(2, number))
        disk.roll(seal=number % 2 == 0)
    assert read_all(pool) == disk.model


def test_files_behind_the_end_are_leftovers(pool: PoolWriter, disk: DiskWriter) -> None:
    disk.write(0, make_blocks(2, 1))
    before, first = dict(disk.model), disk.segments[0]
    disk.write(3, make_blocks(2, 2))
    disk.roll(seal=False)
    disk.write(7, make_blocks(2, 3))
    lose_record(first.content, first.entries[1].offset)
    pool.save()
    folder = pool.path / "segments" / "00000001"
    (folder / "00000009.seg").write_bytes(bytes(4096))
    (folder / "notes.txt").write_text("not ours")
    with PoolFolder.open(pool.path).open_disk(DiskId(1)) as opened:
        names = [path.name for path in opened.log_end.leftovers]
        assert names == ["00000002.seg", "00000009.seg"]
        assert {mapped.block for mapped in opened.blocks()} == set(before)


def test_a_missing_segment_in_a_durable_log_closes_the_disk(
    pool: PoolWriter, disk: DiskWriter
) -> None:
    for number in range(3):
        disk.write(number, make_blocks(1, number))
        disk.roll()
    pool.save()
    path = pool.path / "segments" / "00000001" / "00000002.seg"
    path.unlink()
    with pytest.raises(Damage, match="LSN 2 is missing"):
        PoolFolder.open(pool.path).open_disk(DiskId(1))


def test_a_damaged_summary_costs_time_only(pool: PoolWriter, disk: DiskWriter) -> None:
    disk.write(0, make_blocks(20, 1))
    disk.roll()
    disk.write(3, make_blocks(2, 2))
    disk.segments[0].content[-70] ^= 1
    assert read_all(pool) == disk.model
    lose_record(disk.segments[0].content, disk.segments[0].entries[0].offset)
    with pytest.raises(Damage, match="LSN 1 is missing"):
        open_disk(pool)


def test_replay_goes_over_the_tree(pool: PoolWriter, disk: DiskWriter) -> None:
    disk.write(0, make_blocks(30, 1))
    disk.write(512**2 + 7, make_blocks(3, 2))
    disk.checkpoint()
    disk.write(10, make_blocks(4, 3))
    disk.trim(20, 1 << 31)
    disk.write(25, make_blocks(1, 4))
    assert read_all(pool) == disk.model
    disk.checkpoint()
    assert read_all(pool) == disk.model
    disk.close()
    with open_disk(pool) as opened:
        assert opened.root.is_clean and not opened.replayed[3:]
    assert read_all(pool) == disk.model


def test_writes_behind_a_clean_root_are_replayed(pool: PoolWriter, disk: DiskWriter) -> None:
    disk.write(0, make_blocks(2, 1))
    disk.close()
    disk.write(1, make_blocks(2, 2))
    with open_disk(pool) as opened:
        assert opened.root.is_clean
    assert read_all(pool) == disk.model


def test_a_checkpoint_between_segments_is_replayed_from_the_end_of_the_last(
    pool: PoolWriter, disk: DiskWriter
) -> None:
    disk.write(0, make_blocks(2, 1))
    disk.segments[-1].seal()
    disk.checkpoint()
    assert (disk.anchor.root.replay_segment, disk.anchor.root.replay_offset) == (1, 0)
    disk.write(1, make_blocks(2, 2))
    assert read_all(pool) == disk.model


def test_the_replay_segment_must_be_there(pool: PoolWriter, disk: DiskWriter) -> None:
    disk.write(0, make_blocks(2, 1))
    disk.checkpoint()
    pool.save()
    (pool.path / "segments" / "00000001" / "00000001.seg").unlink()
    with pytest.raises(Damage):
        PoolFolder.open(pool.path).open_disk(DiskId(1))


def test_the_older_slot_serves_when_the_newer_is_torn(pool: PoolWriter, disk: DiskWriter) -> None:
    disk.write(0, make_blocks(2, 1))
    disk.checkpoint()
    disk.write(1, make_blocks(2, 2))
    disk.checkpoint()
    disk.write(2, make_blocks(2, 3))
    pool.save()
    path = pool.path / "anchors" / "00000001.anchor"
    raw = bytearray(path.read_bytes())
    raw[disk.anchor.slot * 4096 + 50] ^= 1
    path.write_bytes(raw)
    with PoolFolder.open(pool.path).open_disk(DiskId(1)) as opened:
        assert opened.root.seq == 2
        found = {mapped.block: opened.read_block(mapped) for mapped in opened.blocks()}
    assert found == disk.model


def test_a_missing_drive_closes_the_disks_that_need_it(tmp_path: Path) -> None:
    pool = PoolWriter(tmp_path / "pool")
    disk = pool.add_disk(1)
    disk.write(0, make_blocks(2, 1))
    disk.checkpoint()
    pool.save()
    (pool.path / "nearstone-drive").unlink()
    folder = PoolFolder.open(pool.path)
    assert folder.missing_drives == [0]
    with pytest.raises(Damage, match="drive 0 of this disk is missing"):
        folder.open_disk(DiskId(1))


def test_a_pool_on_another_drive(tmp_path: Path) -> None:
    drive = tmp_path / "drive"
    pool = PoolWriter(tmp_path / "pool", drive)
    disk = pool.add_disk(1)
    disk.write(0, make_blocks(2, 1))
    disk.close()
    pool.save()
    assert not (pool.path / "segments").exists()
    with PoolFolder.open(pool.path).open_disk(DiskId(1)) as opened:
        assert opened.read(0, 4096) == disk.model[0]
    moved = drive.rename(tmp_path / "moved")
    with pytest.raises(Damage, match="drive 0 of this disk is missing"):
        PoolFolder.open(pool.path).open_disk(DiskId(1))
    with PoolFolder.open(pool.path, [moved]).open_disk(DiskId(1)) as opened:
        assert opened.read(0, 4096) == disk.model[0]


def test_the_same_segment_twice_is_a_problem(pool: PoolWriter, disk: DiskWriter) -> None:
    disk.write(0, make_blocks(2, 1))
    pool.save()
    twin = pool.path / "segments" / "00000002"
    twin.mkdir()
    segment = pool.path / "segments" / "00000001" / "00000001.seg"
    (twin / "00000001.seg").write_bytes(segment.read_bytes())
    folder = PoolFolder.open(pool.path)
    folder.list_segments()
    assert [problem.file for problem in folder.problems] == [str(twin / "00000001.seg")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_every_cut_of_the_log_is_a_prefix(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever is lost at an unsealed log's end, what is left is the state after some write."""
    pool = PoolWriter(tmp_path / "pool")
    disk = pool.add_disk(1)
    states: list[dict[int, bytes]] = [{}]
    ends = [128]
    for generation in range(data.draw(st.integers(1, 6))):
        block, count = data.draw(st.integers(0, 30)), data.draw(st.integers(1, 20))
        if data.draw(st.booleans()):
            is_random = data.draw(st.booleans())
            disk.write(block, make_blocks(count, generation, is_random=is_random))
        else:
            disk.trim(block, count)
        states.append(dict(disk.model))
        ends.append(len(disk.active.content))
    cut = data.draw(st.integers(128, ends[-1]))
    disk.active.content = disk.active.content[:cut]
    # A record may be whole although the last of its padding is cut off.
    kept = max(index for index, end in enumerate(ends) if end < cut + 16)
    whole = max(index for index, end in enumerate(ends) if end <= cut)
    assert read_all(pool) in (states[kept], states[whole])
