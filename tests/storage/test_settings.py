"""Settings of disks: what can be set, that it counts at once, and that it is kept."""

from pathlib import Path
from typing import Any, cast

import pytest

from storage.errors import DiskNotFound, DiskNotReady, InvalidRequest
from storage.pool import Pool
from storage.service import PoolService
from storage.settings import change_settings, limits_of
from storage.units import MIB
from tests.storage.fake_core import FakeDisk, FakeDrive

LIMITS = {"iops": 500, "bandwidth_bytes": 100 * MIB, "burst_s": 30}


def limits_in_core(pool: Pool, name: str) -> tuple[int, int, int]:
    return cast("FakeDisk", pool.open_disk(name)).limits


def test_limits_count_at_once_and_are_shown(service: PoolService, pool: Pool) -> None:
    service.create_disk("vm1", MIB)
    assert limits_in_core(pool, "vm1") == (0, 0, 1)
    assert service.set_disk("vm1", LIMITS).settings == LIMITS
    assert limits_in_core(pool, "vm1") == (500, 100 * MIB, 30)
    assert service.show_disk("vm1").settings == LIMITS


def test_compression_counts_at_once_and_goes_back_to_its_default(
    service: PoolService, pool: Pool
) -> None:
    service.create_disk("vm1", MIB)
    disk = cast("FakeDisk", pool.open_disk("vm1"))
    assert disk.compression == "lz4"
    assert service.set_disk("vm1", {"compression": "none"}).settings == {"compression": "none"}
    assert disk.compression == "none"
    service.set_disk("vm1", {"compression": None, "iops": 5})
    assert (disk.compression, disk.limits) == ("lz4", (5, 0, 1))


def test_what_is_not_named_stays(service: PoolService, pool: Pool) -> None:
    service.create_disk("vm1", MIB)
    service.set_disk("vm1", LIMITS)
    assert service.set_disk("vm1", {"iops": None}).settings == {
        "bandwidth_bytes": 100 * MIB,
        "burst_s": 30,
    }
    assert limits_in_core(pool, "vm1") == (0, 100 * MIB, 30)


def test_limits_are_kept_over_a_restart(pool_dir: Path, drive: FakeDrive) -> None:
    with Pool.open(pool_dir, open_core=drive.open) as pool:
        pool.create_disk("vm1", MIB)
        pool.set_disk("vm1", LIMITS)
    with Pool.open(pool_dir, open_core=drive.open) as pool:
        assert limits_in_core(pool, "vm1") == (500, 100 * MIB, 30)
        pool.lift_limits()
        assert limits_in_core(pool, "vm1") == (0, 0, 0)
        assert pool.show_disk("vm1").settings == LIMITS


@pytest.mark.parametrize(
    "changes",
    [
        {"colour": 1},
        {"iops": 0},
        {"iops": -1},
        {"iops": 1 << 60},
        {"iops": True},
        {"bandwidth_bytes": "1M"},
        {"burst_s": 3601},
        {"compression": "zip"},
        {"compression": 1},
        {"iops": 5, "burst_s": 1.5},
    ],
)
def test_nonsense_is_refused_and_changes_nothing(
    service: PoolService, changes: dict[str, Any]
) -> None:
    service.create_disk("vm1", MIB)
    with pytest.raises(InvalidRequest):
        service.set_disk("vm1", changes)
    assert service.show_disk("vm1").settings == {}


def test_only_disks_that_are_there_and_ready(service: PoolService) -> None:
    with pytest.raises(DiskNotFound):
        service.set_disk("ghost", LIMITS)
    service.create_disk("vm1", MIB, importing=True)
    with pytest.raises(DiskNotReady):
        service.set_disk("vm1", LIMITS)


def test_settings_of_a_later_release_are_kept() -> None:
    settings = change_settings({"colour": "blue", "iops": 7}, {"iops": None, "burst_s": 0})
    assert settings == {"colour": "blue", "burst_s": 0}
    assert limits_of(settings) == (0, 0, 0)
