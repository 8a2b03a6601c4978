"""The lock that gives a pool to one process at a time: flock on ``pool.lock``.

The lock lives and dies with the open file, so that a killed server leaves none behind. The pid in
the file is only for messages; it is stale whenever nobody holds the lock.
"""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Self

from storage.errors import PoolBusy, PoolFolderUnusable

LOCK_FILE = "pool.lock"


class PoolLock:
    """Held from construction to `release`."""

    def __init__(self, pool: Path) -> None:
        """Takes the lock without waiting. Raises: PoolBusy, PoolFolderUnusable."""
        try:
            self._fd = os.open(pool / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise PoolFolderUnusable(pool=str(pool), detail=exc.strerror or str(exc)) from exc
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _pid_in(self._fd)
            os.close(self._fd)
            raise PoolBusy(pool=str(pool), pid=pid) from None
        # A full drive has no room for it, and a pool on a full drive must open all the same.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Lets the next process in; safe to call again."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _pid_in(fd: int) -> int | None:
    """The pid written in a lock file; None while its holder has not written it yet."""
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None
