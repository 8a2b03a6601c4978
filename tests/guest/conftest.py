"""What the tests with real guests share."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.machine import ARTIFACTS, choose_accelerator
from tests.serving import Server


@pytest.fixture(scope="session")
def accelerator() -> Iterator[str]:
    """What the guests' processors are: the machine's own, or emulated ones."""
    if not (ARTIFACTS / "disk.img").exists():
        pytest.fail("the guests' kernel and image are missing: run `make guest`")
    path = Path(tempfile.mkdtemp(prefix="ns-", dir="/var/tmp"))
    yield choose_accelerator(path)
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def module_folder() -> Iterator[Path]:
    """As `folder`, for all tests of a module."""
    path = Path(tempfile.mkdtemp(prefix="ns-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def server(module_folder: Path) -> Iterator[Server]:
    """A server with an empty pool."""
    with Server(module_folder / "pool") as server:
        yield server
