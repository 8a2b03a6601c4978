"""The map, read only: a checkpoint's tree, and over it what the log's replay changed.

Invariants
- A node is used only where its record says that it belongs: level and first block are compared. So
  a walk visits each node at most once, however damaged the tree is, and goes at most six levels
  deep.
- The overlay's changes are disjoint and sorted; each is a hole, or blocks of one record.
"""

import bisect
import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from storage.format.layout import BLOCKS_MAX, NODE_BITS, NODE_ENTRIES, BlockIndex, Place, SegmentId
from storage.format.location import HOLE, Location, UnverifiedLocation, encode_location
from storage.format.log import Log
from storage.format.node import UnverifiedNode
from storage.format.record import Kind
from storage.format.scan import Record

CACHED_NODES_MAX = 512


class Node(NamedTuple):
    """A node of the tree, its record's place, and its 512 locations, not yet verified."""

    location: Location
    level: int
    first_block: BlockIndex
    entries: tuple[int, ...]


class Mapped(NamedTuple):
    """One block that is mapped."""

    block: BlockIndex
    location: Location


class Tree:
    """The copy-on-write radix tree of a checkpoint; nodes are read when used, a bounded number
    stays in memory.
    """

    def __init__(self, log: Log, root_location: int, levels: int) -> None:
        self._log = log
        self._levels = levels
        self._root_location = root_location
        self._cache: OrderedDict[int, Node] = OrderedDict()

    def walk(self, start: int = 0, end: int = BLOCKS_MAX) -> Iterator[Node]:
        """All nodes that cover blocks of start..end, parents before children, in block order.
        Raises Damage.
        """
        if self._levels and start < 1 << NODE_BITS * self._levels:
            place = Place(f"{self._log.disk:08x}.anchor", 0)
            yield from self._walk_below(
                self._root_location, self._levels - 1, 0, (start, end), place
            )

    def list_mapped(self, start: int = 0, end: int = BLOCKS_MAX) -> Iterator[Mapped]:
        """The mapped blocks of start..end in order. Raises Damage."""
        for node in self.walk(start, end):
            if node.level:
                continue
            low = max(start - node.first_block, 0)
            for index, raw in enumerate(node.entries[low : end - node.first_block], low):
                if raw != HOLE:
                    place = self._place_of(node.location)
                    location = UnverifiedLocation(raw, place).verify()
                    if location is not None:
                        yield Mapped(BlockIndex(node.first_block + index), location)

    def _walk_below(
        self, raw_location: int, level: int, first_block: int, span: tuple[int, int], place: Place
    ) -> Iterator[Node]:
        node = self._read(raw_location, level, first_block, place)
        if node is None:
            return
        yield node
        if level == 0:
            return
        child_blocks = 1 << NODE_BITS * level
        start, end = span
        low = max((start - first_block) // child_blocks, 0)
        high = min(-((first_block - end) // child_blocks), NODE_ENTRIES)
        node_place = self._place_of(node.location)
        for index in range(low, high):
            if node.entries[index] != HOLE:
                child_first = first_block + index * child_blocks
                yield from self._walk_below(
                    node.entries[index], level - 1, child_first, span, node_place
                )

    def _read(self, raw_location: int, level: int, first_block: int, place: Place) -> Node | None:
        """The node at a location that stood at `place`. Raises Damage."""
        if (node := self._cache.get(raw_location)) is None:
            location = UnverifiedLocation(raw_location, place).verify()
            if location is None:
                return None
            header, plain = self._log.read(location)
            node_place = self._place_of(location)
            if header.shape.kind is not Kind.NODE or location.index:
                raise place.damage(f"location {raw_location:#018x} names no node")
            entries = UnverifiedNode(plain, node_place).verify()
            node = Node(location, header.shape.count, header.shape.block, entries)
            self._cache[raw_location] = node
            if len(self._cache) > CACHED_NODES_MAX:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(raw_location)
        if (node.level, node.first_block) != (level, first_block):
            raise place.damage(
                f"the node for level {level}, block {first_block} is one of level {node.level}, "
                f"block {node.first_block}"
            )
        return node

    def _place_of(self, location: Location) -> Place:
        path = self._log.paths.get(location.segment)
        return Place(str(path) if path else f"{location.segment:08x}.seg", location.offset)


class Change(NamedTuple):
    """Blocks start..end: a hole (None), or blocks of one record; `location` is that of `start`."""

    start: int
    end: int
    location: Location | None


def resolve_changes(records: Sequence[Record]) -> list[Change]:
    """What the records, in log order, leave behind: disjoint changes sorted by block.

    Sweeps over the records' ends and keeps the covering ones in a heap, newest on top: O(n log n).
    """
    writes = [r for r in records if r.shape.kind in (Kind.DATA, Kind.HOLE)]
    by_start = sorted(range(len(writes)), key=lambda i: writes[i].shape.block)
    edges = sorted({e for r in writes for e in (r.shape.block, r.shape.block + r.shape.count)})
    changes: list[Change] = []
    covering: list[int] = []  # negated positions in `writes`
    upcoming = 0
    for start, end in pairwise(edges):
        while upcoming < len(by_start) and writes[by_start[upcoming]].shape.block <= start:
            heapq.heappush(covering, -by_start[upcoming])
            upcoming += 1
        while covering and _end_of(writes[-covering[0]]) <= start:
            heapq.heappop(covering)
        if covering:
            _append_change(changes, start, end, writes[-covering[0]])
    return changes


def _end_of(record: Record) -> int:
    return record.shape.block + record.shape.count


def _append_change(changes: list[Change], start: int, end: int, record: Record) -> None:
    if record.shape.kind is Kind.HOLE:
        if changes and changes[-1].end == start and changes[-1].location is None:
            changes[-1] = changes[-1]._replace(end=end)
        else:
            changes.append(Change(start, end, None))
        return
    changes.append(Change(start, end, _locate(record, start)))


def _locate(record: Record, block: int) -> Location:
    raw = encode_location(
        record.segment, record.offset, record.shape.record_bytes, block - record.shape.block
    )
    return Location(
        SegmentId(raw >> 32), record.offset, raw >> 4 & 0x3F, block - record.shape.block
    )


class Map:
    """Tree and overlay together: the map as of the log's end."""

    def __init__(self, tree: Tree, changes: Sequence[Change]) -> None:
        self.tree = tree
        self._changes = changes
        self._starts = [change.start for change in changes]

    def list_mapped(self, start: int = 0, end: int = BLOCKS_MAX) -> Iterator[Mapped]:
        """The mapped blocks of start..end in order. Raises Damage where the tree is damaged.

        The tree is asked only about what has not changed since: damage behind changes is none.
        """
        at = start
        position = max(bisect.bisect_right(self._starts, start) - 1, 0)
        while position < len(self._changes) and self._changes[position].start < end:
            change = self._changes[position]
            if change.end > at:
                if change.start > at:
                    yield from self.tree.list_mapped(at, change.start)
                    at = change.start
                stop = min(change.end, end)
                yield from _list_changed(change, at, stop)
                at = stop
            position += 1
        if at < end:
            yield from self.tree.list_mapped(at, end)


def _list_changed(change: Change, start: int, end: int) -> Iterator[Mapped]:
    if (location := change.location) is not None:
        for block in range(start, end):
            index = location.index + block - change.start
            yield Mapped(BlockIndex(block), replace(location, index=index))
