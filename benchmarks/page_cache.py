"""The kernel's page cache around a measured run: kept warm, or dropped.

KEEP (default) is how these servers run in practice: every disk is read again before a run that
reads, because a virtual machine's kernel may have paged out what was idle for a minute. It is read
through its server, which brings in what lives; reading the backing files would fill the cache with
what a log-structured store has not reclaimed yet. DROP empties the cache before every run, so that
reads come from the drive.
"""

import os
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from benchmarks.errors import PermissionMissing

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")


class PageCache(StrEnum):
    """What happens to the page cache before a run."""

    KEEP = "keep"
    DROP = "drop"


def check_permission(policy: PageCache) -> None:
    """Raise PermissionMissing when this process may not carry out `policy`."""
    if policy is PageCache.DROP and not os.access(_DROP_CACHES, os.W_OK):
        raise PermissionMissing("drop the page cache", "run as root, or use --page-cache keep")


def write_back() -> None:
    """Put all dirty pages on the drives, so that no run pays for the writes of another one."""
    os.sync()


def drop() -> None:
    """Empty the page cache. Dirty pages stay: call `write_back` first."""
    _DROP_CACHES.write_text("1\n")


def allocated_bytes(files: Iterable[Path]) -> int:
    """Return the bytes the drive has allocated for `files` (sparse parts do not count)."""
    total = 0
    for path in files:
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total
