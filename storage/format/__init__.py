"""The second reader: the on-disk format in plain Python, independent of the core.

It is the executable form of ``docs/format.md``, the engine of `nearstone inspect` and
`nearstone pool check`, the tool of last resort for a damaged pool, and the oracle that tests hold
the core against. It changes nothing on a drive.

Who uses whom, downwards only:
check, inspection → pool → disk → map → log → scan → segment, anchor, node → record, location →
layout → damage.
"""

from storage.format.check import PoolReport, Severity, check_pool
from storage.format.damage import Damage
from storage.format.disk import OfflineDisk, OfflineExtent
from storage.format.inspection import inspect
from storage.format.pool import PoolFolder

__all__ = [
    "Damage",
    "OfflineDisk",
    "OfflineExtent",
    "PoolFolder",
    "PoolReport",
    "Severity",
    "check_pool",
    "inspect",
]
