"""Whether a benchmark can run here, found out before anything is started or written."""

import importlib.util
import shutil
from collections.abc import Sequence

from benchmarks.accounting import available_memory_bytes
from benchmarks.contenders import Contender, Place
from benchmarks.errors import (
    DriveSpaceMissing,
    MemoryMissing,
    RequirementMissing,
    ToolMissing,
    UnusableOption,
)
from benchmarks.page_cache import PageCache, check_permission
from benchmarks.units import GIB, format_size

# Left free beside what the contenders write: results, logs, other programs of the machine.
_SPARE_DRIVE_BYTES = GIB
_SPARE_MEMORY_BYTES = GIB
_SPARE_SHARE_MAX = 0.5


def check(
    contenders: Sequence[type[Contender]],
    place: Place,
    page_cache: PageCache,
    *,
    draws_plots: bool,
) -> list[str]:
    """Return warnings for the report; `place.folder` is the folder given by --dir.

    Raises:
        RequirementMissing: a tool, drive space, memory or a privilege is missing.
    """
    if not place.folder.is_dir():
        raise UnusableOption(f"--dir {place.folder} is not a folder")
    check_tools(contenders, place, draws_plots=draws_plots)
    check_permission(page_cache)
    return check_space(
        contenders,
        place,
        free_bytes=shutil.disk_usage(place.folder).free,
        memory_bytes=available_memory_bytes(),
    )


def check_tools(contenders: Sequence[type[Contender]], place: Place, *, draws_plots: bool) -> None:
    """Raise ToolMissing for the first program or package that is not there."""
    for program, remedy in (("fio", "apt-get install fio"), ("setpriv", "part of util-linux")):
        if shutil.which(program) is None:
            raise ToolMissing(program, "the benchmark", remedy)
    for package, remedy in (
        ("lz4", "pip install lz4"),
        ("matplotlib", "pip install matplotlib, or use --no-plots"),
    ):
        if (package != "matplotlib" or draws_plots) and importlib.util.find_spec(package) is None:
            raise ToolMissing(f"Python package {package}", "the benchmark", remedy)
    for contender in contenders:
        contender.check(place)


def is_usable(contender: type[Contender], place: Place) -> bool:
    """Say whether the contender's tools are installed."""
    try:
        contender.check(place)
    except RequirementMissing:
        return False
    return True


def check_space(
    contenders: Sequence[type[Contender]], place: Place, *, free_bytes: int, memory_bytes: int
) -> list[str]:
    """Return warnings about the page cache.

    Raises:
        DriveSpaceMissing, MemoryMissing: not enough for the disks of all contenders together.
    """
    size = place.size_bytes
    spare_drive = min(_SPARE_DRIVE_BYTES, size * _SPARE_SHARE_MAX)
    drive = int(sum(contender.drive_share for contender in contenders) * size + spare_drive)
    if free_bytes < drive:
        raise DriveSpaceMissing(place.folder, drive, free_bytes)
    in_memory = int(sum(contender.memory_share for contender in contenders) * size)
    if in_memory and memory_bytes < in_memory + min(_SPARE_MEMORY_BYTES, in_memory):
        raise MemoryMissing(in_memory, memory_bytes)
    # What the file-backed contenders of 2:1 data hold at least; more than fits means that each
    # one's pages are evicted by the others and read again before each read run.
    cached = in_memory + sum(min(c.drive_share, 1.0) for c in contenders) * size
    if cached > memory_bytes:
        warning = (
            f"the disks of all contenders ({format_size(cached)}) do not fit into memory together "
            f"({format_size(memory_bytes)} available): disks are read again before each "
            "run that reads, but write runs may meet a cold cache"
        )
        return [warning]
    return []
