"""Roots and anchors: where the recovery of a disk starts.

An anchor file has two slots that checkpoints write in turn, so that a torn slot leaves the older
one whole. The valid slot with the higher sequence number wins.
"""

from typing import NamedTuple

from storage.format.damage import Damage
from storage.format.layout import (
    ANCHOR_MAGIC,
    ANCHOR_SIZE_BYTES,
    ANCHOR_SLOT,
    BLOCKS_MAX,
    FORMAT_VERSION,
    LEVELS_MAX,
    RECORD_ALIGN_BYTES,
    ROOT,
    SEGMENT_HEADER,
    SEGMENT_SIZE_BYTES_MAX,
    DiskId,
    Lsn,
    Place,
    SegmentId,
)
from storage.format.location import HOLE, UnverifiedLocation

FLAG_CLEAN = 1
FLAG_SHARES = 2
FLAG_SNAPSHOT = 4
FLAG_PENDING = 8
FLAGS_KNOWN = FLAG_CLEAN | FLAG_SHARES | FLAG_SNAPSHOT | FLAG_PENDING
_SLOT_DISK_OFFSET = 32 + 28  # of Root.disk within a slot


class Root(NamedTuple):
    """A checkpoint: the tree, and from where the log is replayed to bring it up to date."""

    seq: int
    epoch: int
    tree: int
    levels: int
    disk: DiskId
    replay_log_index: int
    replay_segment: SegmentId
    replay_offset: int
    replay_lsn: Lsn
    usage_segment: SegmentId
    usage_offset: int
    mapped_blocks: int
    drives: int
    segment_high: SegmentId
    flags: int
    origin: DiskId = DiskId(0)

    @property
    def is_clean(self) -> bool:
        """Was the disk closed in order, with nothing to replay?"""
        return bool(self.flags & FLAG_CLEAN)

    @property
    def shares_segments(self) -> bool:
        """May tree and usage table lie in segments of other disks?"""
        return bool(self.flags & FLAG_SHARES)

    @property
    def is_snapshot(self) -> bool:
        """Is the disk never written to?"""
        return bool(self.flags & FLAG_SNAPSHOT)

    @property
    def is_pending(self) -> bool:
        """Is it a snapshot that has no tree yet: disk `origin` up to the replay position?"""
        return bool(self.flags & FLAG_PENDING)

    def encode(self) -> bytes:
        """The 96 bytes of ROOT records and anchors."""
        return ROOT.pack(*self)


class UnverifiedRoot(NamedTuple):
    """96 bytes whose container's checksum may be right, but not yet looked into."""

    raw: bytes
    place: Place

    def verify(self) -> Root:
        """The root. Raises Damage."""
        if len(self.raw) != ROOT.size:
            raise self.place.damage("a root has 96 bytes")
        root = Root(*ROOT.unpack(self.raw))
        reason = _find_nonsense(root)
        if reason is None and not ROOT.has_clear_reserve(self.raw):
            reason = "reserved bytes are not zero"
        if reason is not None:
            raise self.place.damage(f"impossible root: {reason}")
        UnverifiedLocation(root.tree, self.place).verify()
        return root


def _find_nonsense(root: Root) -> str | None:
    if root.levels > LEVELS_MAX or (root.levels == 0) != (root.tree == HOLE):
        return f"{root.levels} levels"
    if root.mapped_blocks > BLOCKS_MAX or (root.mapped_blocks > 0 and root.tree == HOLE):
        return f"{root.mapped_blocks} mapped blocks"
    has_log = root.replay_segment != 0 or (root.replay_log_index == 0 and root.replay_lsn == 1)
    if not has_log or root.replay_lsn == 0 or root.flags & ~FLAGS_KNOWN:
        return f"replay LSN {root.replay_lsn}, flags {root.flags:#x}"
    if root.is_pending != (root.origin != 0) or (
        root.is_pending and (root.tree != HOLE or not root.is_snapshot)
    ):
        return f"flags {root.flags:#x} with origin {root.origin}"
    for name, segment, offset in (
        ("replay", root.replay_segment, root.replay_offset),
        ("usage", root.usage_segment, root.usage_offset),
    ):
        is_inside = SEGMENT_HEADER.size <= offset <= SEGMENT_SIZE_BYTES_MAX
        is_end = name == "replay" and offset == 0
        if segment and not is_end and (not is_inside or offset % RECORD_ALIGN_BYTES):
            return f"{name} offset {offset}"
    return None


class Anchor(NamedTuple):
    """One slot of an anchor file."""

    pool: bytes
    root: Root

    @property
    def slot(self) -> int:
        """The slot that this checkpoint belongs into."""
        return self.root.seq % 2

    def encode(self) -> bytes:
        """The 4096 bytes of the slot."""
        return ANCHOR_SLOT.pack_sealed(
            ANCHOR_MAGIC, FORMAT_VERSION, self.pool, self.root.encode(), seed=self.root.disk
        )


class UnverifiedAnchorSlot(NamedTuple):
    """4096 bytes of an anchor file."""

    raw: bytes
    place: Place

    def verify(self, disk: DiskId | None = None) -> Anchor:
        """The anchor of `disk` (None: of the disk that it names itself). Raises Damage."""
        if len(self.raw) != ANCHOR_SLOT.size:
            raise self.place.damage("the file ends inside an anchor slot")
        magic, version, pool, root, _ = ANCHOR_SLOT.unpack(self.raw)
        if magic != ANCHOR_MAGIC:
            is_empty = not any(self.raw)
            raise self.place.damage(f"no anchor: {'zeros' if is_empty else 'wrong magic'}")
        if version != FORMAT_VERSION:
            raise self.place.damage(f"anchor of format version {version}, not {FORMAT_VERSION}")
        seed = disk
        if seed is None:
            named = self.raw[_SLOT_DISK_OFFSET : _SLOT_DISK_OFFSET + 4]
            seed = DiskId(int.from_bytes(named, "little"))
        if not ANCHOR_SLOT.has_valid_checksum(self.raw, seed):
            raise self.place.damage(f"anchor slot fails its checksum (as that of disk {seed})")
        anchor = Anchor(pool, UnverifiedRoot(root, self.place).verify())
        if anchor.root.disk != seed or not ANCHOR_SLOT.has_clear_reserve(self.raw):
            raise self.place.damage("anchor slot with impossible contents")
        return anchor


def encode_anchor_file(older: Anchor | None, newer: Anchor) -> bytes:
    """The 8192 bytes with both in their slots; a slot that no checkpoint has used is zero."""
    content = bytearray(ANCHOR_SIZE_BYTES)
    for anchor in (older, newer):
        if anchor is not None:
            start = anchor.slot * ANCHOR_SLOT.size
            content[start : start + ANCHOR_SLOT.size] = anchor.encode()
    return bytes(content)


def choose_slot(raw: bytes, file: str, disk: DiskId | None = None) -> Anchor:
    """The newest valid slot of an anchor file's bytes. Raises Damage when no slot is valid."""
    anchors: list[Anchor] = []
    damages: list[Damage] = []
    for slot in range(ANCHOR_SIZE_BYTES // ANCHOR_SLOT.size):
        start = slot * ANCHOR_SLOT.size
        unverified = UnverifiedAnchorSlot(raw[start : start + ANCHOR_SLOT.size], Place(file, start))
        try:
            anchors.append(unverified.verify(disk))
        except Damage as damage:
            damages.append(damage)
    if not anchors:
        reasons = "; ".join(damage.reason for damage in damages)
        raise Damage(file, 0, f"no valid anchor slot ({reasons})")
    return max(anchors, key=lambda anchor: anchor.root.seq)
