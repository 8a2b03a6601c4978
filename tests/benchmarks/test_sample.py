import random
from pathlib import Path

import pytest

from benchmarks.sample import examine, take_sample


def test_random_bytes_are_not_as_promised() -> None:
    found = examine(random.Random(1).randbytes(1 << 20))
    assert found.ratio_4k == pytest.approx(1.0, abs=0.02)
    assert not found.is_as_promised


def test_repeated_blocks_are_not_as_promised() -> None:
    block = random.Random(1).randbytes(2048) + bytes(2048)
    found = examine(block * 256)
    assert found.ratio_4k == pytest.approx(2.0, abs=0.1)
    assert found.unique_share < 0.01
    assert not found.is_as_promised


def test_what_fio_writes_is_as_promised(folder: Path) -> None:
    found = take_sample(folder)
    assert found.is_as_promised, found
    assert list(folder.iterdir()) == []
