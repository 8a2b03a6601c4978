"""What the tests of the whole system share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from storage.pool import Pool

MakePool = Callable[..., Path]


@pytest.fixture
def make_pool(folder: Path) -> MakePool:
    """Makes a closed pool with disks of given sizes: `make_pool(one=size_bytes, …)`."""

    def make(**disks: int) -> Path:
        path = folder / "pool"
        Pool.init(path)
        with Pool.open(path) as pool:
            for name, size_bytes in disks.items():
                pool.create_disk(name, size_bytes)
        return path

    return make
