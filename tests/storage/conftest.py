"""Pools for the tests of the store's Python face."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.control import ControlClient, ControlServer
from storage.pool import Pool
from storage.service import PoolService
from tests.storage.fake_core import FakeDrive


@pytest.fixture
def drive() -> FakeDrive:
    """What the fake core keeps over restarts."""
    return FakeDrive()


@pytest.fixture
def pool_dir(tmp_path: Path) -> Path:
    """The folder of an initialised pool."""
    path = tmp_path / "pool"
    Pool.init(path)
    return path


@pytest.fixture
def pool(pool_dir: Path, drive: FakeDrive) -> Iterator[Pool]:
    """An open pool on the fake core."""
    with Pool.open(pool_dir, open_core=drive.open) as pool:
        yield pool


@pytest.fixture(params=["in process", "through the control socket"])
def service(request: pytest.FixtureRequest, pool: Pool, tmp_path: Path) -> Iterator[PoolService]:
    """The same pool, asked in both ways."""
    if request.param == "in process":
        yield pool
        return
    path = tmp_path / "control.sock"
    with ControlServer(pool, path), ControlClient(path) as client:
        yield client
