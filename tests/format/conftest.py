"""Fixtures of the format's tests."""

from pathlib import Path

import pytest

from tests.format.writer import DiskWriter, PoolWriter


@pytest.fixture
def pool(tmp_path: Path) -> PoolWriter:
    """An empty pool in memory; `save` writes it to a temporary folder."""
    return PoolWriter(tmp_path / "pool")


@pytest.fixture
def disk(pool: PoolWriter) -> DiskWriter:
    """The pool's one disk, number 1."""
    return pool.add_disk(1)
