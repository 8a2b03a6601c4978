"""The command line, from refusals to one real, tiny benchmark."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.accounting import birth_of, tree_pids
from benchmarks.cli import main
from benchmarks.result import save
from tests.benchmarks.builder import full_result

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contenders", "ceph"], "there is no 'ceph'"),
        (["--contenders", "file", "--workloads", "tpcc"], "there is no 'tpcc'"),
        (["--size", "lots"], "is not a size"),
        (["--size", "1M"], "at least 64M"),
        (["--contenders", "file", "--rounds", "0"], "--rounds: at least 1"),
        (["--contenders", "file", "--seconds", "0"], "--seconds: at least 0.1"),
        (["--contenders", "file", "--dir", "/nowhere"], "is not a folder"),
        (["--contenders", "file", "--size", "900T"], "the benchmark needs about"),
        (["--render", "/nowhere"], "--render:"),
    ],
)
def test_a_refusal_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert "nearstone" in printed
    assert "write-flush-8" in printed


def test_a_report_is_drawn_again_from_its_results(tmp_path: Path) -> None:
    save(full_result(rounds=1), tmp_path / "results.json")
    assert main(["--render", str(tmp_path), "--no-plots"]) == 0
    assert "## Goals" in (tmp_path / "report.md").read_text()


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks", "--dir", str(folder), "--quick", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_real_benchmark(folder: Path) -> None:
    output = folder / "results"
    chosen = ["--contenders", "memory,file", "--workloads", "random-write,write-flush"]
    sizes = ["--size", "64M", "--rounds", "2", "--seconds", "0.3", "--sustained", "2.5"]
    process = start(folder, *chosen, *sizes, "--output", str(output), "--json")
    printed, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    document = json.loads(printed)
    assert document == json.loads((output / "results.json").read_text())
    assert len(document["measurements"]) == 2 * 2 * 2
    assert document["failures"] == []
    assert all(item["server_cpu_s"] > 0 for item in document["measurements"])
    assert document["contenders"][1]["prefill_stored_bytes"] == pytest.approx(64 << 20, rel=0.01)
    with gzip.open(output / "fio.jsonl.gz", "rt") as lines:
        runs = [json.loads(line) for line in lines]
    # Of each contender the prefill and eight runs (half of them warm-ups); of `file` the long run.
    assert len(runs) == 2 * (1 + 8) + 2
    report = (output / "report.md").read_text()
    assert "nbdkit file plugin" in report
    assert (output / "throughput.png").exists()
    # Nothing of the session is left but what was asked for.
    assert list(folder.iterdir()) == [output]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(folder: Path, number: signal.Signals) -> None:
    process = start(folder, "--contenders", "memory,file", "--size", "64M", "--no-plots")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("round 1"):
            break
    pids = tree_pids(process.pid)
    assert len(pids) > 2
    os.kill(process.pid, number)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "everything it had started is stopped" in told
    deadline = time.monotonic() + 10
    while living := [pid for pid in pids if birth_of(pid) is not None]:
        assert time.monotonic() < deadline, f"still running: {living}"
        time.sleep(0.02)
    assert list(folder.rglob("*")) == []
