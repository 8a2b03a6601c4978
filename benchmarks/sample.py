"""A check that the data fio writes are what the report says: unlike each other, 2:1 for LZ4."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import lz4.block

from benchmarks.errors import FioFailed
from benchmarks.units import MIB
from benchmarks.workload import DATA_OPTIONS, PREFILL

_SAMPLE_BYTES = 16 * MIB
_BLOCK_BYTES = 4096
# What counts as "about 2:1".
RATIO_LOW, RATIO_HIGH = 1.8, 2.2


@dataclass(frozen=True)
class DataSample:
    """How compressible the benchmark's data are."""

    length_bytes: int
    ratio_4k: float  # LZ4 over 4 KiB pieces
    ratio_16k: float  # LZ4 over 16 KiB pieces
    unique_share: float  # of the 4 KiB blocks

    @property
    def is_as_promised(self) -> bool:
        """Say whether the data are about 2:1 at 4 KiB and hardly any block repeats."""
        return RATIO_LOW <= self.ratio_4k <= RATIO_HIGH and self.unique_share > 0.99


def examine(data: bytes) -> DataSample:
    """Return the compressibility of `data`, whose length is a multiple of 16 KiB."""
    blocks = _pieces(data, _BLOCK_BYTES)
    return DataSample(
        length_bytes=len(data),
        ratio_4k=_lz4_ratio(blocks),
        ratio_16k=_lz4_ratio(_pieces(data, 4 * _BLOCK_BYTES)),
        unique_share=len(set(blocks)) / len(blocks),
    )


def _pieces(data: bytes, length_bytes: int) -> list[bytes]:
    return [data[at : at + length_bytes] for at in range(0, len(data), length_bytes)]


def _lz4_ratio(pieces: list[bytes]) -> float:
    stored = sum(len(lz4.block.compress(piece, store_size=False)) for piece in pieces)
    return sum(map(len, pieces)) / stored


def take_sample(folder: Path) -> DataSample:
    """Let fio write a file with the prefill's data options, and examine it.

    Raises:
        FioFailed: fio could not write the file.
    """
    path = folder / "sample"
    options = {**dict(PREFILL.options), **dict(DATA_OPTIONS), "size": str(_SAMPLE_BYTES)}
    options |= {"name": "sample", "filename": str(path), "ioengine": "psync", "iodepth": "1"}
    command = ["fio", *(f"--{name}={value}" for name, value in options.items())]
    done = subprocess.run(
        command, check=False, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        raise FioFailed(f"fio could not write a sample of its data: {done.stderr.strip()}")
    try:
        return examine(path.read_bytes())
    finally:
        path.unlink()
