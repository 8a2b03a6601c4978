from pathlib import Path

import pytest

from benchmarks.contenders import CONTENDERS, Contender, Place
from benchmarks.errors import DriveSpaceMissing, MemoryMissing, ToolMissing, UnusableOption
from benchmarks.page_cache import PageCache
from benchmarks.requirement import check, check_space, is_usable
from benchmarks.units import GIB

MEMORY, FILE = CONTENDERS["memory"], CONTENDERS["file"]


def space(contenders: list[type[Contender]], free_gib: int, memory_gib: int) -> list[str]:
    place = Place(Path("/a/folder"), 4 * GIB)
    return check_space(contenders, place, free_bytes=free_gib * GIB, memory_bytes=memory_gib * GIB)


def test_enough_of_everything() -> None:
    assert space([MEMORY, FILE], free_gib=6, memory_gib=16) == []


def test_a_full_drive_is_named_with_what_is_needed() -> None:
    with pytest.raises(DriveSpaceMissing, match=r"/a/folder has 4\.0 GiB free .* about 5\.0 GiB"):
        space([MEMORY, FILE], free_gib=4, memory_gib=16)


def test_the_memory_plugin_needs_memory() -> None:
    with pytest.raises(MemoryMissing, match="smaller --size"):
        space([MEMORY], free_gib=100, memory_gib=4)
    assert space([FILE], free_gib=100, memory_gib=5) == []


def test_disks_that_do_not_fit_into_memory_together_are_a_warning() -> None:
    (warning,) = space(list(CONTENDERS.values()), free_gib=100, memory_gib=16)
    assert "do not fit into memory together" in warning


def test_a_missing_tool_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    place = Place(tmp_path, 1 * GIB)
    with pytest.raises(ToolMissing, match=r"nbdkit is missing .*apt-get install nbdkit"):
        FILE.check(place)
    assert not is_usable(FILE, place)
    with pytest.raises(ToolMissing, match="fio is missing"):
        check([FILE], place, PageCache.KEEP, draws_plots=False)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    place = Place(tmp_path / "nowhere", 1 * GIB)
    with pytest.raises(UnusableOption, match="is not a folder"):
        check([FILE], place, PageCache.KEEP, draws_plots=False)
