"""What a folder takes on its drive, while a server works in it."""

import contextlib
import os
from pathlib import Path


def taken_bytes(folder: Path) -> int:
    """The space that a folder and all in it take; what is removed meanwhile may count or not."""
    taken = 0
    for parent, _, names in os.walk(folder):
        for path in (Path(parent), *(Path(parent, name) for name in names)):
            with contextlib.suppress(FileNotFoundError):
                taken += path.lstat().st_blocks * 512
    return taken
