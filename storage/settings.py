"""What can be set for a disk, as the catalog keeps it and clients change it.

The catalog's column ``settings`` is a JSON object; a setting that is missing has its default. What
a later release put there is kept, and has no effect in this one.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from storage.errors import InvalidRequest

if TYPE_CHECKING:
    from storage import _core

Settings = dict[str, Any]

IOPS: Final = "iops"
BANDWIDTH_BYTES: Final = "bandwidth_bytes"
BURST_S: Final = "burst_s"
COMPRESSION: Final = "compression"

LIMIT_MAX: Final = 1 << 50
BURST_S_DEFAULT: Final = 1
BURST_S_MAX: Final = 3600
COMPRESSIONS: Final = ("lz4", "none")
COMPRESSION_DEFAULT: Final = "lz4"

_RANGES: Final = {IOPS: (1, LIMIT_MAX), BANDWIDTH_BYTES: (1, LIMIT_MAX), BURST_S: (0, BURST_S_MAX)}
"""The whole numbers that each limit may be."""


def change_settings(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> Settings:
    """`settings` with `changes`, of which None takes a setting back to its default.

    Raises: InvalidRequest, naming the setting.
    """
    for name, value in changes.items():
        if name == COMPRESSION:
            if value is not None and value not in COMPRESSIONS:
                choices = " or ".join(COMPRESSIONS)
                raise InvalidRequest(reason=f"compression is {choices}, not {value!r}")
            continue
        if name not in _RANGES:
            raise InvalidRequest(reason=f"disks have no setting {name!r}")
        low, high = _RANGES[name]
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (is_number and low <= value <= high):
            raise InvalidRequest(reason=f"{name} is a number from {low} to {high}, or unset")
    return {name: value for name, value in {**settings, **changes}.items() if value is not None}


def apply_settings(disk: "_core.Disk", settings: Mapping[str, Any]) -> None:
    """Lets an open disk work by `settings` from now on."""
    disk.set_limits(*limits_of(settings))
    disk.set_compression(settings.get(COMPRESSION, COMPRESSION_DEFAULT))


def limits_of(settings: Mapping[str, Any]) -> tuple[int, int, int]:
    """Requests a second, bytes a second (0: unlimited) and burst in seconds, as the core has it."""
    return (
        settings.get(IOPS, 0),
        settings.get(BANDWIDTH_BYTES, 0),
        settings.get(BURST_S, BURST_S_DEFAULT),
    )
