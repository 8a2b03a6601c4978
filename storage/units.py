"""Sizes and times for people, and the types that keep numbers of different meaning apart.

Units are binary whatever the spelling: 20G, 20GB and 20GiB are 20 × 2^30 bytes, as in qemu-img and
lvm, so that nobody's disk is 7 % smaller than expected. Nothing is rounded silently: a size that is
no whole number of sectors is refused.
"""

import re
import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, NewType

from storage.errors import BadSize

ByteSize = NewType("ByteSize", int)
DiskId = NewType("DiskId", int)
DriveIndex = NewType("DriveIndex", int)
UnixSeconds = NewType("UnixSeconds", int)

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40

SECTOR_SIZE_BYTES: Final = 512
"""Guests see sectors of at least this size, so a disk is a whole number of them."""
DISK_SIZE_BYTES_MIN: Final = SECTOR_SIZE_BYTES
DISK_SIZE_BYTES_MAX: Final = 256 * TIB
"""Four levels of the map (2 MiB × 512³) reach exactly this far."""
DISK_ID_MAX: Final = (1 << 32) - 1
"""Disk ids are u32 in every on-disk structure."""

_UNITS: Final = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB, "P": 1 << 50}
_SIZE: Final = re.compile(
    r"([0-9]+(?:\.[0-9]+)?) *(?:([KMGTP])(?:I?B)?|B)?", re.ASCII | re.IGNORECASE
)


def parse_size(text: str) -> ByteSize:
    """The number of bytes that `text` names: "20G", "512MiB", "1.5T", "4096".

    Raises: BadSize when it is no size at all, or not a whole number of bytes. Limits of disks are
        `check_disk_size`'s business.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        reason = (
            "sizes are not negative" if text.strip().startswith("-") else "not a number with a unit"
        )
        raise BadSize(size=text, reason=reason)
    number, unit = match.groups()
    if len(number) > 30:
        raise BadSize(size=text, reason="too many digits")
    size = Decimal(number) * _UNITS[(unit or "").upper()]
    if size != int(size):
        raise BadSize(size=text, reason="not a whole number of bytes")
    return ByteSize(int(size))


def check_disk_size(size_bytes: int, shown: str | None = None) -> ByteSize:
    """Returns `size_bytes` if a disk can have it, and raises BadSize (naming `shown`) if not."""
    shown = str(size_bytes) if shown is None else shown
    if size_bytes < DISK_SIZE_BYTES_MIN:
        raise BadSize(size=shown, reason=f"a disk has at least {DISK_SIZE_BYTES_MIN} bytes")
    if size_bytes > DISK_SIZE_BYTES_MAX:
        raise BadSize(size=shown, reason=f"a disk has at most {format_size(DISK_SIZE_BYTES_MAX)}")
    if size_bytes % SECTOR_SIZE_BYTES:
        lower = size_bytes - size_bytes % SECTOR_SIZE_BYTES
        near = f"{lower} or {lower + SECTOR_SIZE_BYTES}"
        raise BadSize(
            size=shown, reason=f"not a multiple of {SECTOR_SIZE_BYTES} bytes (near: {near})"
        )
    return ByteSize(size_bytes)


def parse_disk_size(text: str) -> ByteSize:
    """The size of a disk as `text` names it; raises BadSize."""
    return check_disk_size(parse_size(text), shown=text)


def format_size(size_bytes: int) -> str:
    """`size_bytes` for people: "20 GiB", "1.5 TiB", "0 B"; at most three significant decimals.

    Lossy by design: machine-readable output carries the number of bytes instead.
    """
    if size_bytes < KIB:
        return f"{size_bytes} B"
    scale = ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))
    # Rounded before it is compared, so that nothing reads "1024 MiB".
    unit, name = next(step for step in scale if round(size_bytes / step[0], 2) >= 1)
    value = size_bytes / unit
    digits = 2 if value < 10 else 1 if value < 100 else 0
    text = f"{value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {name}"


def now() -> UnixSeconds:
    """The moment, as the catalog keeps it."""
    return UnixSeconds(int(time.time()))


def format_time(moment: UnixSeconds) -> str:
    """`moment` in UTC as RFC 3339 writes it."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
