"""What all tests share: how hard hypothesis tries, and a folder on a real file system."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

IS_SOAK = os.environ.get("NEARSTONE_SOAK") == "1"

# A shared machine may be slow at any moment: no example fails for the time it took.
settings.register_profile(
    "quick", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("soak", parent=settings.get_profile("quick"), max_examples=5000)
settings.load_profile("soak" if IS_SOAK else "quick")


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder on a real file system, with a path short enough for Unix sockets in it."""
    path = Path(tempfile.mkdtemp(prefix="ns-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)
