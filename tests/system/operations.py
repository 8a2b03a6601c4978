"""What a client or an operator may do to a disk, and how a plain bytearray takes it.

A disk under test is a `Target`; the model is a `bytearray` that covers its last bytes, from `base`
on. Everything before `base` is a hole that nobody touches, so that the same small model can lie
across the borders of the map's leaves and inner nodes, terabytes up.

    0                                     base                       base + len(content)
    ├─ never written, one hole ─ ─ ─ ─ ─ ─┼─ content ────────────────┤ end of the disk
"""

import random
from dataclasses import dataclass
from typing import Final, Protocol

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

BLOCK_BYTES = 4096
SECTOR_BYTES = 512
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

CONTENT_BYTES_MAX = 3 * MIB
# At the disk's start, and so that the contents lie across the end of a leaf (2 MiB of disk), of an
# inner node (1 GiB) and of one above it (512 GiB).
BASES = tuple(end - min(end, 24 * KIB) for end in (0, 2 * MIB, GIB, 512 * GIB))


class Target(Protocol):
    """A disk that operations are done to; addresses are the disk's."""

    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: bytes, fua: bool) -> None: ...
    def trim(self, offset: int, length: int, fua: bool) -> None: ...
    def zero(self, offset: int, length: int, fua: bool) -> None: ...
    def flush(self) -> None: ...
    def cache(self, offset: int, length: int) -> None: ...
    def list_runs(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """Lengths, and whether each is a hole; neighbours differ; covers the range."""

    def resize(self, size_bytes: int) -> None: ...
    def interrupt(self, kind: str) -> None:
        """Checkpoint, close, stop or kill whatever there is, and come back."""


@dataclass(repr=False)
class Model:
    """What the disk must hold."""

    base: int
    content: bytearray

    def __repr__(self) -> str:
        return f"Model({self.base}, bytearray({len(self.content)}))"

    def clip(self, offset: int, length: int) -> slice:
        """The part of a range that lies within the contents; at least one byte."""
        start = min(offset, len(self.content) - 1)
        return slice(start, min(start + length, len(self.content)))

    def runs(self, part: slice) -> list[tuple[int, bool]]:
        """Exactly the blocks that are all zeros are holes."""
        runs: list[tuple[int, bool]] = []
        at = part.start
        while at < part.stop:
            block = (self.base + at) // BLOCK_BYTES * BLOCK_BYTES - self.base
            end = min(block + BLOCK_BYTES, part.stop)
            is_hole = not any(self.content[max(0, block) : block + BLOCK_BYTES])
            before = runs.pop()[0] if runs and runs[-1][1] == is_hole else 0
            runs.append((before + end - at, is_hole))
            at = end
        return runs


class Operation(Protocol):
    """Does itself to disk and model, and raises AssertionError where they differ."""

    def run(self, target: Target, model: Model) -> None: ...


@dataclass(frozen=True)
class Write:
    offset: int
    length: int
    pattern: str
    seed: int
    fua: bool

    def run(self, target: Target, model: Model) -> None:
        part = model.clip(self.offset, self.length)
        data = _fill(self.pattern, self.seed, part.stop - part.start)
        model.content[part] = data
        target.write(model.base + part.start, data, self.fua)


@dataclass(frozen=True)
class Zero:
    offset: int
    length: int
    is_trim: bool
    fua: bool

    def run(self, target: Target, model: Model) -> None:
        part = model.clip(self.offset, self.length)
        model.content[part] = bytes(part.stop - part.start)
        do = target.trim if self.is_trim else target.zero
        do(model.base + part.start, part.stop - part.start, self.fua)


@dataclass(frozen=True)
class ZeroAll:
    """The whole disk, as mkfs does it."""

    is_trim: bool

    def run(self, target: Target, model: Model) -> None:
        model.content[:] = bytes(len(model.content))
        do = target.trim if self.is_trim else target.zero
        # As much as one NBD request can carry.
        length = min(model.base + len(model.content), (1 << 32) - BLOCK_BYTES)
        do(model.base + len(model.content) - length, length, False)


@dataclass(frozen=True)
class Read:
    offset: int
    length: int

    def run(self, target: Target, model: Model) -> None:
        part = model.clip(self.offset, self.length)
        found = target.read(model.base + part.start, part.stop - part.start)
        assert_equal(found, model.content[part], part.start)


@dataclass(frozen=True)
class Status:
    offset: int
    length: int

    def run(self, target: Target, model: Model) -> None:
        part = model.clip(self.offset, self.length)
        found = target.list_runs(model.base + part.start, part.stop - part.start)
        assert found == model.runs(part)


@dataclass(frozen=True)
class Cache:
    offset: int
    length: int

    def run(self, target: Target, model: Model) -> None:
        part = model.clip(self.offset, self.length)
        target.cache(model.base + part.start, part.stop - part.start)


@dataclass(frozen=True)
class Flush:
    def run(self, target: Target, model: Model) -> None:
        target.flush()


@dataclass(frozen=True)
class Commits:
    """Small writes, each followed by a flush: then segments are filled with zeros beforehand."""

    offset: int
    count: int
    seed: int

    def run(self, target: Target, model: Model) -> None:
        for number in range(self.count):
            write = Write(self.offset + number * 1500, 1500, "noise", self.seed + number, False)
            write.run(target, model)
            target.flush()


@dataclass(frozen=True)
class Resize:
    content_bytes: int

    def run(self, target: Target, model: Model) -> None:
        grown = max(0, self.content_bytes - len(model.content))
        model.content[self.content_bytes :] = bytes(grown)
        target.resize(model.base + self.content_bytes)


@dataclass(frozen=True)
class Interrupt:
    kind: str

    def run(self, target: Target, model: Model) -> None:
        target.interrupt(self.kind)


def assert_equal(found: bytes, expected: bytes | bytearray, offset: int = 0) -> None:
    """Like `assert ==`, but says where instead of printing megabytes."""
    if found == expected:
        return
    assert len(found) == len(expected)
    pairs = enumerate(zip(found, expected, strict=True), offset)
    at, (is_there, should_be) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
    raise AssertionError(f"byte {at} of the contents is {is_there:#x}, not {should_be:#x}")


def run_all(target: Target, model: Model, operations: list[Operation]) -> None:
    """Do everything, then compare everything."""
    for operation in operations:
        operation.run(target, model)
    length = len(model.content)
    assert_equal(target.read(model.base, length), model.content)
    whole = slice(0, length)
    before = [(model.base, True)] if model.base else []
    first, *rest = model.runs(whole)
    if before and first[1]:
        before, first = [], (model.base + first[0], True)
    assert target.list_runs(0, model.base + length) == [*before, first, *rest]


def _fill(pattern: str, seed: int, length: int) -> bytes:
    """Bytes that follow from the arguments. What they mean to the store is in the names."""
    noise = _noise(seed, length)
    if pattern == "noise":
        return noise
    if pattern == "text":
        return (b"%d nearstone " % seed * (length // 12 + 1))[:length]
    if pattern == "zeros":
        return bytes(length)
    # Zeros and noise in turns of a kilobyte or several blocks: holes in the middle of a write.
    turn = 1024 if seed % 2 else 3 * BLOCK_BYTES
    gaps = bytearray(noise)
    for at in range(seed % turn, length, 2 * turn):
        gaps[at : at + turn] = bytes(min(turn, length - at))
    return bytes(gaps)


# Of odd length, so that no two blocks of a write are equal.
_NOISE: Final = random.Random(40).randbytes(257 * KIB + 1)


def _noise(seed: int, length: int) -> bytes:
    start = seed * 7919 % len(_NOISE)
    return (_NOISE[start:] + _NOISE * (length // len(_NOISE) + 1))[:length]


def _offsets() -> SearchStrategy[int]:
    """Anywhere, and close to the borders of blocks and leaves more often."""
    blocks = st.integers(0, CONTENT_BYTES_MAX // BLOCK_BYTES - 1)
    near = st.sampled_from((0, 0, 0, 1, 511, 512, 2048, 4095))
    return st.one_of(
        st.builds(lambda block, ragged: block * BLOCK_BYTES + ragged, blocks, near),
        st.builds(lambda block, ragged: block * BLOCK_BYTES + ragged, st.integers(0, 15), near),
        st.integers(0, CONTENT_BYTES_MAX - 1),
    )


def _lengths() -> SearchStrategy[int]:
    """From a byte to more than an atomic group."""
    return st.one_of(
        st.integers(1, 2 * BLOCK_BYTES),
        st.sampled_from((512, BLOCK_BYTES, 4 * BLOCK_BYTES, 64 * KIB, MIB, MIB + BLOCK_BYTES)),
        st.integers(1, 80 * KIB),
        st.integers(1, 2 * MIB),
    )


def _content_sizes() -> SearchStrategy[int]:
    return st.integers(8, CONTENT_BYTES_MAX // SECTOR_BYTES).map(lambda n: n * SECTOR_BYTES)


def models() -> SearchStrategy[Model]:
    """An empty disk of some size."""
    return st.builds(
        lambda base, length: Model(base, bytearray(length)),
        st.sampled_from(BASES),
        _content_sizes(),
    )


def operations(kinds: tuple[str, ...]) -> SearchStrategy[list[Operation]]:
    """Sequences; `kinds`: what `Target.interrupt` understands."""
    patterns = st.sampled_from(("noise", "text", "gaps", "zeros"))
    writes = st.builds(Write, _offsets(), _lengths(), patterns, st.integers(0, 999), st.booleans())
    one: SearchStrategy[Operation] = st.one_of(
        writes,
        writes,
        writes,
        st.builds(Zero, _offsets(), _lengths(), st.booleans(), st.booleans()),
        st.builds(Read, _offsets(), _lengths()),
        st.builds(Status, _offsets(), _lengths()),
        st.builds(Cache, _offsets(), _lengths()),
        st.builds(Flush),
        st.builds(Commits, _offsets(), st.integers(1, 40), st.integers(0, 999)),
        st.builds(ZeroAll, st.booleans()),
        st.builds(Resize, _content_sizes()),
        st.builds(Interrupt, st.sampled_from(kinds)),
    )
    return st.lists(one, max_size=25)
