"""fio's JSON, as fio 3.33 really wrote it (fixtures), and the command line it is given."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.errors import FioFailed
from benchmarks.fio import FioRun, bin_of, parse_iops_log, parse_outcome
from benchmarks.workload import MIXED, PREFILL, WORKLOADS, WRITE_FLUSH_8, Workload

FIXTURES = Path(__file__).parent / "fixtures"


def document(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FIXTURES / name).read_text())
    return loaded


def test_random_write() -> None:
    raw = document("fio-random-write.json")["jobs"][0]["write"]
    outcome = parse_outcome(document("fio-random-write.json"))
    assert outcome.operations == raw["total_ios"] > 0
    assert outcome.length_bytes == outcome.written_bytes == raw["io_bytes"]
    assert outcome.operations_per_s == raw["iops"]
    assert outcome.runtime_s == pytest.approx(0.3, abs=0.05)
    assert set(outcome.latency) == {"write"}


def test_latency_is_the_total_one_in_microseconds() -> None:
    raw = document("fio-latency-read.json")["jobs"][0]["read"]["lat_ns"]
    latency = parse_outcome(document("fio-latency-read.json")).latency["read"]
    assert latency.p50_us == raw["percentile"]["50.000000"] / 1000
    assert latency.p99_us == raw["percentile"]["99.000000"] / 1000
    assert latency.mean_us == raw["mean"] / 1000
    assert latency.p50_us <= latency.p99_us <= latency.p999_us
    assert sum(latency.bins.values()) == raw["N"]


def test_mixed_adds_up_reads_and_writes() -> None:
    raw = document("fio-mixed.json")["jobs"][0]
    outcome = parse_outcome(document("fio-mixed.json"))
    assert outcome.operations == raw["read"]["total_ios"] + raw["write"]["total_ios"]
    assert outcome.operations_per_s == raw["read"]["iops"] + raw["write"]["iops"]
    assert outcome.written_bytes == raw["write"]["io_bytes"] < outcome.length_bytes
    assert set(outcome.latency) == {"read", "write"}


def test_flushes_are_timed_apart_and_are_no_operations() -> None:
    raw = document("fio-write-flush-8.json")["jobs"][0]
    outcome = parse_outcome(document("fio-write-flush-8.json"))
    assert outcome.operations == raw["write"]["total_ios"]
    assert outcome.latency["flush"].p50_us == raw["sync"]["lat_ns"]["percentile"]["50.000000"] / 1e3


def test_a_failed_job_is_an_error() -> None:
    with pytest.raises(FioFailed, match="failing failed with error 5"):
        parse_outcome(document("fio-failed.json"))


def test_a_job_that_did_nothing_is_an_error() -> None:
    raw = document("fio-random-write.json")
    raw["jobs"][0]["write"]["total_ios"] = 0
    with pytest.raises(FioFailed, match="did nothing"):
        parse_outcome(raw)


@pytest.mark.parametrize(
    "broken", [{}, {"jobs": []}, {"jobs": [{"error": 0}]}, {"jobs": [1]}, {"jobs": None}]
)
def test_other_json_is_an_error(broken: dict[str, Any]) -> None:
    with pytest.raises(FioFailed, match="not understood"):
        parse_outcome(broken)


def test_iops_log() -> None:
    points = parse_iops_log((FIXTURES / "iops.log").read_text())
    assert [round(time_s) for time_s, _ in points] == [1, 2]
    assert all(rate > 1000 for _, rate in points)
    assert parse_iops_log("1000, 5, 0, 0, 0\n1000, 7, 1, 0, 0\n") == [(1.0, 12.0)]
    assert parse_iops_log("") == []


def test_histogram_bins_are_twentieths_of_a_decade() -> None:
    assert bin_of(1) == 0
    assert bin_of(10_000) == 80
    assert bin_of(99_000) == 99
    assert bin_of(0) == 0


def options_of(run: FioRun) -> dict[str, str]:
    command = run.command(Path("/out.json"))
    assert command[0] == "fio"
    return dict(argument.removeprefix("--").split("=", 1) for argument in command[1:])


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda item: item.name)
def test_every_run_has_the_promised_data_and_is_timed(workload: Workload) -> None:
    options = options_of(FioRun(workload, "nbd+unix:///?socket=/s", 1 << 30, 1.5, 7))
    assert options["ioengine"] == "nbd"
    assert options["uri"] == "nbd+unix:///?socket=/s"
    assert options["buffer_compress_percentage"] == "50"
    assert options["buffer_compress_chunk"] == "4k"
    assert options["refill_buffers"] == "1"
    assert options["randseed"] == "7"
    assert options["runtime"] == "1500ms"
    assert options["lat_percentiles"] == "1"


def test_the_prefill_writes_everything_once_and_flushes() -> None:
    options = options_of(FioRun(PREFILL, "nbd+unix:///?socket=/s", 1 << 30, None, 1))
    assert "time_based" not in options
    assert options["size"] == str(1 << 30)
    assert (options["rw"], options["end_fsync"]) == ("write", "1")


def test_workloads_are_what_their_titles_say() -> None:
    assert dict(WRITE_FLUSH_8.options)["numjobs"] == "8"
    assert dict(WRITE_FLUSH_8.options)["fsync"] == "1"
    assert dict(MIXED.options)["rwmixread"] == "70"
    assert len({workload.name for workload in WORKLOADS}) == len(WORKLOADS)
