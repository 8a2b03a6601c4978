"""What one of our files holds, as a dictionary of JSON types: the engine of `nearstone inspect`.

A damaged file is described as far as it goes; what is wrong stands under "damage".
"""

from collections import Counter
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from storage.format.anchor import Root, UnverifiedAnchorSlot
from storage.format.damage import Damage
from storage.format.layout import (
    ANCHOR_MAGIC,
    ANCHOR_SIZE_BYTES,
    ANCHOR_SLOT,
    SEGMENT_MAGIC,
    DiskId,
    Place,
)
from storage.format.location import Location, UnverifiedLocation
from storage.format.pool import CATALOG_FILE, LABEL_FILE, read_catalog, read_label
from storage.format.record import Kind
from storage.format.scan import Record, Scan, SegmentFile, find_durable_lsn

_SQLITE_MAGIC: Final = b"SQLite format 3\0"
Description = dict[str, Any]


def inspect(path: Path, *, with_records: bool = False) -> Description:
    """Describes a segment, anchor, drive label or catalog; which of them, its contents say.

    Args: `with_records` lists every record of a segment instead of only counting them.
    Raises: OSError when the file cannot be read. Damage when it is none of ours.
    """
    kind = _recognise(path)
    description: Description = {"file": str(path), "type": kind, "size_bytes": path.stat().st_size}
    try:
        if kind == "segment":
            description |= _describe_segment(path, with_records=with_records)
        elif kind == "anchor":
            description |= _describe_anchor(path)
        elif kind == "drive label":
            label = read_label(path)
            fields = {"pool": str(label.pool), "drive": str(label.drive), "index": label.index}
            description |= fields | {"damage": []}
        else:
            description |= _describe_catalog(path)
    except Damage as damage:
        description["damage"] = [damage.to_dict()]
    return description


def _recognise(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(len(_SQLITE_MAGIC))
    if start.startswith(SEGMENT_MAGIC) or path.suffix == ".seg":
        return "segment"
    # An anchor's first slot stays empty until the second checkpoint.
    if start.startswith(ANCHOR_MAGIC) or path.suffix == ".anchor":
        return "anchor"
    if start == _SQLITE_MAGIC or path.name == CATALOG_FILE:
        return "catalog"
    if path.name == LABEL_FILE:
        return "drive label"
    raise Damage(str(path), 0, "neither a segment nor an anchor, drive label or catalog")


def _describe_segment(path: Path, *, with_records: bool) -> Description:
    with SegmentFile.open(str(path)) as file:
        header, damage = file.header, []
        if file.trailer_damage is not None:
            damage.append(file.trailer_damage)
        scan = file.scan()
        if file.is_sealed:
            damage += _compare_with_summary(file, scan)
        damage += [r.payload_damage for r in scan.records if r.payload_damage is not None]
        description: Description = {
            "pool": str(UUID(bytes=header.pool)),
            "disk": header.disk,
            "segment": header.segment,
            "previous_segment": header.prev,
            "log_index": header.log_index,
            "epoch": header.epoch,
            "first_lsn": header.first_lsn,
            "last_lsn": scan.next_lsn - 1,
            "is_sealed": file.is_sealed,
            "records_end": scan.end_offset,
            "records": _count_records(scan.records),
            "end": None if scan.stop is None else scan.stop.to_dict(),
            "damage": [one.to_dict() for one in damage],
        }
        if not file.is_sealed:
            description["durable_lsn"] = find_durable_lsn(str(path), header.disk, header.segment)
        if with_records:
            description["record_list"] = [_describe_record(record) for record in scan.records]
        return description


def _compare_with_summary(file: SegmentFile, scan: Scan) -> list[Damage]:
    if scan.stop is not None:
        return [scan.stop]
    try:
        entries = file.read_summary()
    except Damage as damage:
        return [damage]
    if [entry.shape for entry in entries] != [record.shape for record in scan.records]:
        return [Damage(file.path, scan.end_offset, "summary and records differ")]
    return []


def _count_records(records: list[Record]) -> Description:
    counts = Counter(record.shape.kind for record in records)
    data = [record.shape for record in records if record.shape.kind is Kind.DATA]
    return {
        "total": len(records),
        **{kind.name.lower(): counts[kind] for kind in Kind},
        "data_blocks": sum(shape.count for shape in data),
        "data_stored_bytes": sum(shape.stored_len for shape in data),
    }


def _describe_record(record: Record) -> Description:
    shape = record.shape
    return {
        "lsn": record.lsn,
        "offset": record.offset,
        "kind": shape.kind.name,
        "codec": shape.codec.name,
        "continues_group": shape.continues_group,
        "block": shape.block,
        "count": shape.count,
        "stored_bytes": shape.stored_len,
    }


def _describe_anchor(path: Path) -> Description:
    with path.open("rb") as file:
        raw = file.read(ANCHOR_SIZE_BYTES)
    # The name tells the disk; without it the slot's own claim has to do.
    digits = path.stem
    is_named = len(digits) == 8 and set(digits) <= set("0123456789abcdef")
    disk = DiskId(int(digits, 16)) if is_named else None
    slots: list[Description] = []
    damage: list[Damage] = []
    newest: tuple[int, int] | None = None
    for number in range(ANCHOR_SIZE_BYTES // ANCHOR_SLOT.size):
        start = number * ANCHOR_SLOT.size
        place = Place(str(path), start)
        unverified = UnverifiedAnchorSlot(raw[start : start + ANCHOR_SLOT.size], place)
        try:
            anchor = unverified.verify(disk)
        except Damage as found:
            is_unused = bool(unverified.raw) and not any(unverified.raw)
            slots.append({"slot": number, "is_valid": False, "reason": found.reason})
            damage += [] if is_unused else [found]
            continue
        newest = max(newest or (-1, 0), (anchor.root.seq, number))
        pool = str(UUID(bytes=anchor.pool))
        slots.append({"slot": number, "is_valid": True, "pool": pool} | _describe_root(anchor.root))
    if newest is None:
        damage.append(Damage(str(path), 0, "no valid slot: the disk cannot be opened"))
    return {
        "slots": slots,
        "newest_slot": None if newest is None else newest[1],
        "damage": [one.to_dict() for one in damage],
    }


def _describe_root(root: Root) -> Description:
    tree = UnverifiedLocation(root.tree, Place("root", 0)).verify()
    return {
        "disk": root.disk,
        "checkpoint": root.seq,
        "epoch": root.epoch,
        "is_clean": root.is_clean,
        "shares_segments": root.shares_segments,
        "is_snapshot": root.is_snapshot,
        "pending_in_log_of": root.origin or None,
        "levels": root.levels,
        "tree": _describe_location(tree),
        "mapped_blocks": root.mapped_blocks,
        "replay": {
            "log_index": root.replay_log_index,
            "segment": root.replay_segment,
            "offset": root.replay_offset,
            "lsn": root.replay_lsn,
        },
        "usage": {"segment": root.usage_segment, "offset": root.usage_offset},
        "drives": [index for index in range(64) if root.drives & 1 << index],
        "highest_segment": root.segment_high,
    }


def _describe_location(location: Location | None) -> Description | None:
    if location is None:
        return None
    return {"segment": location.segment, "offset": location.offset}


def _describe_catalog(path: Path) -> Description:
    catalog = read_catalog(path)
    return {
        "pool": str(catalog.pool),
        "drives": [
            {"index": index, "uuid": str(uuid), "path": drive_path}
            for index, (uuid, drive_path) in catalog.drives.items()
        ],
        "disks": [
            {"id": disk, "name": row.name, "size_bytes": row.size_bytes, "state": row.state}
            for disk, row in catalog.disks.items()
        ],
        "damage": [],
    }
