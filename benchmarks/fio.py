"""One run of fio against one NBD server, and its JSON made small.

The seed of a run is given, so that all contenders of a round get the same offsets and the next
round gets others. fio prints remarks of the nbd engine to standard output, therefore its JSON goes
to a file.
"""

import json
import math
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import interrupt
from benchmarks.errors import FioFailed
from benchmarks.units import MIB
from benchmarks.workload import DATA_OPTIONS, Workload

# Percentiles that fio computes when not told otherwise, by the names its JSON gives them.
_PERCENTILES = {"p50_us": "50.000000", "p99_us": "99.000000", "p999_us": "99.900000"}
BINS_PER_DECADE = 20
# How much longer than asked a run may take (slow flushes, eight clients starting) before it counts
# as hung.
_GRACE_S = 120.0
# A run over the whole disk that is slower than this counts as hung, too.
_FILL_BYTES_PER_S_MIN = 4 * MIB
_END_TIMEOUT_S = 10.0
_ERROR_TAIL_CHARACTERS = 1000


@dataclass(frozen=True)
class Latency:
    """Time of one operation as the client saw it, microseconds."""

    mean_us: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float
    # Histogram: operations by twentieth of a decade of nanoseconds, see `bin_of`.
    bins: dict[int, int]


@dataclass(frozen=True)
class FioOutcome:
    """What fio found in one run. An operation is one read or write; flushes do not count."""

    operations: int
    length_bytes: int
    written_bytes: int
    operations_per_s: float
    bytes_per_s: float
    runtime_s: float
    # By what was timed: "read", "write", "flush". A flush is timed apart from its write.
    latency: dict[str, Latency]


@dataclass(frozen=True)
class FioRun:
    """What to run.

    Args:
        seconds: duration, or None for "once over the whole disk".
        iops_log: prefix of fio's log of operations a second, or None.
    """

    workload: Workload
    uri: str
    size_bytes: int
    seconds: float | None
    seed: int
    iops_log: Path | None = None

    def command(self, output: Path) -> list[str]:
        """Return the command line that writes JSON to `output`."""
        options = {
            "name": self.workload.name,
            "ioengine": "nbd",
            "uri": self.uri,
            "size": str(self.size_bytes),
            **dict(self.workload.options),
            **dict(DATA_OPTIONS),
            "randrepeat": "0",
            "randseed": str(self.seed),
            # A random map would make a run shorter than the disk touch no block twice; guests do.
            "norandommap": "1",
            "group_reporting": "1",
            # Total latency: fio's default (completion latency) starts only when the engine has
            # sent the request, and a server on the same machine may have answered by then.
            "lat_percentiles": "1",
            "clat_percentiles": "0",
        }
        if self.seconds is not None:
            options |= {"time_based": "1", "runtime": f"{round(self.seconds * 1000)}ms"}
        if self.iops_log is not None:
            options |= {"write_iops_log": str(self.iops_log), "log_avg_msec": "1000"}
        arguments = [f"--{name}={value}" for name, value in options.items()]
        return ["fio", f"--output={output}", "--output-format=json+", *arguments]


def run_fio(run: FioRun, folder: Path) -> tuple[FioOutcome, dict[str, Any]]:
    """Run fio to its end; return the outcome and fio's JSON as it was.

    Args:
        folder: for the JSON file; it is removed again.

    Raises:
        FioFailed: fio or one of its jobs reported an error, or it hung.
    """
    output = folder / "fio.json"
    expected_s = run.size_bytes / _FILL_BYTES_PER_S_MIN if run.seconds is None else run.seconds
    timeout_s = expected_s + _GRACE_S
    status, printed = _run_to_end(run.command(output), folder, timeout_s)
    if status is None:
        raise FioFailed(f"fio {run.workload.name} hung: stopped after {timeout_s:.0f} s")
    if status != 0:
        tail = printed.strip()[-_ERROR_TAIL_CHARACTERS:]
        raise FioFailed(f"fio {run.workload.name} ended with status {status}: {tail}")
    try:
        document = json.loads(output.read_text())
    except ValueError as error:
        raise FioFailed(f"fio {run.workload.name} wrote no JSON: {error}") from error
    finally:
        output.unlink(missing_ok=True)
    return parse_outcome(document), document


def _run_to_end(command: list[str], folder: Path, timeout_s: float) -> tuple[int | None, str]:
    """Run a command; return its status (None: stopped for taking too long) and what it printed.

    It never outlives the call, not even when that is interrupted.
    """
    process: subprocess.Popen[str] | None = None
    try:
        with interrupt.deferred():
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        printed, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return None, ""
    else:
        return process.returncode, printed
    finally:
        with interrupt.deferred():
            if process is not None:
                _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def parse_outcome(document: Mapping[str, Any]) -> FioOutcome:
    """Return the outcome that fio's JSON (formats json and json+, one group) describes.

    Raises:
        FioFailed: a job failed, nothing was done, or the JSON is of another shape.
    """
    try:
        (job,) = document["jobs"]
        if job["error"] != 0:
            raise FioFailed(f"fio job {job['jobname']} failed with error {job['error']}")
        directions = {name: job[name] for name in ("read", "write") if job[name]["total_ios"] > 0}
        if not directions:
            raise FioFailed(f"fio job {job['jobname']} did nothing")
        latency = {name: _parse_latency(part["lat_ns"]) for name, part in directions.items()}
        if job["sync"]["total_ios"] > 0:
            latency["flush"] = _parse_latency(job["sync"]["lat_ns"])
        return FioOutcome(
            operations=sum(part["total_ios"] for part in directions.values()),
            length_bytes=sum(part["io_bytes"] for part in directions.values()),
            written_bytes=job["write"]["io_bytes"],
            operations_per_s=sum(part["iops"] for part in directions.values()),
            bytes_per_s=sum(part["bw_bytes"] for part in directions.values()),
            runtime_s=max(part["runtime"] for part in directions.values()) / 1000,
            latency=latency,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FioFailed(f"fio's JSON is not understood: {error!r}") from error


def _parse_latency(part: Mapping[str, Any]) -> Latency:
    percentiles = {name: part["percentile"][key] / 1000 for name, key in _PERCENTILES.items()}
    bins: dict[int, int] = {}
    for time_ns, count in part.get("bins", {}).items():
        number = bin_of(int(time_ns))
        bins[number] = bins.get(number, 0) + count
    return Latency(
        mean_us=part["mean"] / 1000,
        max_us=part["max"] / 1000,
        bins=bins,
        **percentiles,
    )


def bin_of(time_ns: int) -> int:
    """Return the histogram bin of a time; fio's own bins are far finer than a plot can show."""
    return math.floor(math.log10(max(time_ns, 1)) * BINS_PER_DECADE)


def parse_iops_log(text: str) -> list[tuple[float, float]]:
    """Return (seconds since start, operations a second) from one fio IOPS log.

    Each line is "milliseconds, value, direction, block size, offset…"; with `log_avg_msec` a value
    is the mean of the interval that ends there. Lines of the same time (several directions) are
    added up.
    """
    points: dict[float, float] = {}
    for line in text.splitlines():
        fields = line.split(",")
        if len(fields) >= 2:
            time_s = int(fields[0]) / 1000
            points[time_s] = points.get(time_s, 0.0) + float(fields[1])
    return sorted(points.items())
