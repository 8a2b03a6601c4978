import dataclasses
import re
from pathlib import Path

from benchmarks.plot import draw_all
from benchmarks.report import limits, render, table
from benchmarks.result import Failure
from benchmarks.units import GIB, MIB
from benchmarks.workload import RANDOM_READ, WORKLOADS
from tests.benchmarks.builder import empty_result, full_result, measurement


def section(report: str, title: str) -> str:
    """Return the part of `report` under the heading `title`."""
    match = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", report, re.M | re.S)
    assert match is not None, f"no section {title!r} in:\n{report}"
    return match[1]


def row(part: str, name: str) -> list[str]:
    """Return the cells of the row that begins with `name`."""
    (line,) = (line for line in part.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_table_aligns_its_figures() -> None:
    assert table(("a", "b"), [("x", "1")]) == "| a | b |\n|---|---:|\n| x | 1 |"


def test_a_workload_shows_medians_spreads_and_ratios_in_the_same_round() -> None:
    part = section(render(full_result(rounds=3)), RANDOM_READ.title)
    assert row(part, "the nearstone")[1] == "180,000 (90,000–270,000)"
    assert row(part, "the nearstone")[2] == ""
    # All contenders speed up alike from round to round; the ratio does not move.
    assert row(part, "the memory")[2] == "0.900 × (0.900–0.900)"
    assert row(part, "the qcow2")[2] == "2.25 × (2.25–2.25)"
    assert row(part, "the memory")[3] == "30.0 / 90.0 / 270"
    assert row(part, "the memory")[4:] == ["10.0", "12.0"]


def test_losses_are_listed_worst_first_and_wins_are_not() -> None:
    result = full_result(rounds=1)
    result.measurements = [m for m in result.measurements if m.workload == "random-read"]
    result.measurements += [
        measurement(WORKLOADS[0], "nearstone", 0, 10_000.0),
        measurement(WORKLOADS[0], "file", 0, 100_000.0),
    ]
    part = section(render(result), "Where Nearstone does worse")
    losses = [line for line in part.splitlines() if "throughput" in line]
    assert [("the file" in line, "the memory" in line) for line in losses] == [
        (True, False),
        (False, True),
    ]
    assert "the qcow2" not in part


def test_what_it_stores_and_keeps_in_memory_can_be_lost_too() -> None:
    result = full_result(rounds=1)
    own = result.endings["nearstone"]
    result.endings["nearstone"] = dataclasses.replace(own, stored_bytes=6 * GIB)
    part = section(render(result), "Where Nearstone does worse")
    assert "| after all rounds | the file | stored bytes | 3.00 × |" in part
    assert "server memory" not in part
    # A disk in memory stores nothing on the drive: nothing to compare.
    assert "the memory | stored bytes" not in part


def test_every_section_is_there() -> None:
    report = render(full_result(), [("Throughput", "throughput.png")])
    titles = re.findall(r"^## (.*)$", report, re.M)
    assert titles == [
        "Goals",
        *(workload.title for workload in WORKLOADS),
        "Where Nearstone does worse",
        "Space, memory, idle cost",
        "Sustained 4 KiB random write, depth 32, operations/s",
        "Plots",
        "Method",
        "Machine",
        "Doubts",
        "Repeat it",
    ]
    assert "![Throughput](throughput.png)" in report
    assert "None: nothing failed" in section(report, "Doubts")


def test_space_is_told_per_byte_of_the_disk() -> None:
    part = section(render(full_result()), "Space, memory, idle cost")
    assert row(part, "the nearstone")[2:4] == ["0.500", "0.500"]
    assert row(part, "the memory")[2:4] == ["in memory", "in memory"]


def test_failures_and_disturbances_are_doubts() -> None:
    result = full_result(rounds=1)
    result.failures.append(Failure("qcow2", "round 1, mixed", "it broke"))
    result.measurements.append(measurement(RANDOM_READ, "raw", 4, 1000.0, other_cpu_s=1.0))
    report = render(result)
    assert "**1 run(s) failed**" in report
    part = section(report, "Doubts")
    assert "qcow2 failed in round 1, mixed: it broke" in part
    assert "random-read of raw in round 5 (50%)" in part


def test_a_small_run_says_that_it_is_one() -> None:
    assert limits(full_result()) == []
    small = empty_result(rounds=2, seconds=1.0, size_bytes=256 * MIB)
    assert len(limits(small)) == 3
    assert "Too small a run to base a claim on" in render(small)


def test_a_report_without_nearstone_has_no_losses() -> None:
    result = full_result(rounds=1)
    result.contenders = [item for item in result.contenders if item.name != "nearstone"]
    result.measurements = [m for m in result.measurements if m.contender != "nearstone"]
    assert "Where Nearstone does worse" not in render(result)


def test_plots_are_drawn_for_what_was_measured(tmp_path: Path) -> None:
    names = [name for _, name in draw_all(full_result(rounds=2), tmp_path)]
    assert names == ["throughput.png", "cpu.png", "latency.png", "sustained.png"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in names)
    assert draw_all(empty_result(), tmp_path) == []
