"""The scrub's decisions on the fake core: what is read, what is kept, when it is due."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from storage.catalog import CATALOG_FILE, Catalog
from storage.errors import InvalidRequest, NoSpace
from storage.pool import Pool
from storage.scrub import Scrub, next_due
from storage.service import PoolService, ScrubReport
from storage.units import MIB
from tests.storage.fake_core import FakeDrive

BLOCK = 4096
DAY_S = 86_400


def finish(service: PoolService | Scrub) -> ScrubReport:
    """What a scrub found that runs."""
    look = service.report if isinstance(service, Scrub) else service.scrub_report
    while (report := look()).state == "running":
        time.sleep(0.001)
    return report


def test_all_disks_and_snapshots_are_read_and_shared_data_once(
    service: PoolService, pool: Pool, drive: FakeDrive
) -> None:
    assert service.scrub_report() == ScrubReport(state="never")
    for name in ("mail", "web"):
        service.create_disk(name, MIB)
        disk = pool.open_disk(name)
        disk.write(0, b"a" * BLOCK + b"b" * BLOCK)
    for snapshot in ("one", "two"):
        service.snapshot_disks(["mail"], snapshot)
        pool.open_disk("mail").write(0, snapshot.encode() * 1000)
    report = service.start_scrub()
    assert report.state in ("running", "finished")
    report = finish(service)
    assert (report.state, report.damages) == ("finished", [])
    assert (report.done_bytes, report.total_bytes) == (8 * BLOCK, 8 * BLOCK)
    # Each of mail's three first blocks, its second one once, and web's two.
    assert report.read_bytes == 6 * BLOCK
    assert service.status().scrub == report
    assert service.status().problems == []


def test_damage_is_named_where_it_is_needed_and_stays_known(
    pool_dir: Path, drive: FakeDrive
) -> None:
    with Pool.open(pool_dir, open_core=drive.open) as pool:
        pool.create_disk("mail", MIB)
        disk = pool.open_disk("mail")
        disk.write(0, b"old" * 1000)
        disk.write(8 * BLOCK, b"x" * 2 * BLOCK + b"y" * BLOCK)
        pool.snapshot_disks(["mail"], "monday")
        drive.damaged = {disk.read(0, BLOCK), b"x" * BLOCK}
        disk.write(0, b"new" * 1000)
        pool.start_scrub()
        report = finish(pool)
        places = [(one.disk, one.offset, one.length) for one in report.damages]
        assert places == [("mail", 8 * BLOCK, 2 * BLOCK), ("mail@monday", 0, BLOCK)]
        assert report.damaged == 2
    with Pool.open(pool_dir, open_core=drive.open) as pool:
        assert pool.scrub_report() == report
        assert any("2 damaged" in problem for problem in pool.status().problems)
        drive.damaged.clear()
        pool.start_scrub()
        assert finish(pool).damages == []
        assert pool.status().problems == []


def test_a_slow_scrub_ends_with_the_pool(pool_dir: Path, drive: FakeDrive) -> None:
    pool = Pool.open(pool_dir, open_core=drive.open)
    pool.create_disk("mail", MIB)
    pool.open_disk("mail").write(0, b"a" * BLOCK)
    assert pool.start_scrub(rate_bytes=1).rate_bytes == 1  # more than an hour for one block
    while pool.scrub_report().done_bytes < BLOCK:
        time.sleep(0.001)
    report = pool.start_scrub(rate_bytes=5)
    assert (report.state, report.rate_bytes) == ("running", 1), "it runs already"
    pool.close()
    with Pool.open(pool_dir, open_core=drive.open) as again:
        assert again.scrub_report().state == "never"


@pytest.mark.parametrize(
    "changes",
    [
        {"scrub_every": "hourly"},
        {"scrub_rate_bytes": 0},
        {"scrub_rate_bytes": True},
        {"scrub_last": None},
    ],
)
def test_nonsense_is_refused(service: PoolService, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        service.set_pool(changes)
    with pytest.raises(InvalidRequest):
        service.start_scrub(0)


def test_when_it_is_due() -> None:
    last = {"scrub_last": {"finished_unix": 1000}}
    assert next_due({}, 5.0) is None
    assert next_due(last, 5.0) is None
    assert next_due({"scrub_every": "weekly"}, 5.0) == 5.0, "never made: at once"
    assert next_due({**last, "scrub_every": "daily"}, 5.0) == 1000 + DAY_S
    assert next_due({**last, "scrub_every": "weekly"}, 9e9) == 1000 + 7 * DAY_S


def test_the_schedule_begins_one_when_it_is_due_and_only_then(
    pool_dir: Path, drive: FakeDrive
) -> None:
    with Pool.open(pool_dir, open_core=drive.open) as pool:
        pool.create_disk("mail", MIB)
        assert pool.set_pool({"scrub_every": "weekly", "scrub_rate_bytes": MIB}).every == "weekly"
        core_disk = pool.open_disk("mail")
        core_disk.write(0, b"a" * BLOCK)
        catalog = Catalog(pool_dir / CATALOG_FILE)
        for now_s, finished in (
            (1e9, "2001-09-09T01:46:40Z"),
            (1e9 + 6 * DAY_S, "2001-09-09T01:46:40Z"),
            (1e9 + 7 * DAY_S, "2001-09-16T01:46:40Z"),
            # Five weeks without a server: one, not five.
            (1e9 + 42 * DAY_S, "2001-10-21T01:46:40Z"),
        ):
            scrub = Scrub(catalog, lambda _: core_disk, clock=partial(float, now_s))
            scrub.schedule()
            while scrub.report().finished != finished:
                time.sleep(0.001)
            report = finish(scrub)
            scrub.close()
            assert (report.finished, report.rate_bytes) == (finished, MIB)
            due_s = next_due(catalog.pool_settings(), now_s)
            assert due_s is not None
            assert due_s > now_s
        catalog.close()


def test_a_result_that_cannot_be_kept_ends_neither_scrub_nor_schedule(
    pool_dir: Path, drive: FakeDrive, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pool.open(pool_dir, open_core=drive.open) as pool:
        pool.create_disk("mail", MIB)
        pool.open_disk("mail").write(0, b"a" * BLOCK)

        def refuse(catalog: Catalog, changes: dict[str, Any]) -> None:
            raise NoSpace(pool="catalog")

        with monkeypatch.context() as patch:
            patch.setattr(Catalog, "set_pool_settings", refuse)
            for _ in range(2):
                pool.start_scrub()
                report = finish(pool)
                assert (report.state, report.read_bytes) == ("finished", BLOCK)
        assert pool.start_scrub().state in ("running", "finished")
        assert finish(pool).finished is not None
