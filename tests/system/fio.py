"""fio with its NBD engine, as a client that checks what it reads."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Options = Mapping[str, str | int]


@dataclass(frozen=True)
class FioResult:
    """Sums over all jobs."""

    reads: int
    writes: int
    trims: int
    read_bytes: int
    written_bytes: int


def run_fio(folder: Path, uris: Sequence[str], options: Options) -> FioResult:
    """One job, with the same options, for each of the disks, all at once.

    Raises: AssertionError, when fio found an error or could not do its work.
    """
    shared = {
        "ioengine": "nbd",
        "thread": 1,
        # Wrong data is an error at once.
        "verify_fatal": 1,
        "verify_state_save": 0,
        "random_generator": "tausworthe64",
        "group_reporting": 1,
        **options,
    }
    lines = ["[global]", *(f"{name}={value}" for name, value in shared.items())]
    for number, uri in enumerate(uris):
        lines += [f"[disk{number}]", f"uri={uri}"]
    job_file = folder / "job.fio"
    job_file.write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        ["fio", "--output-format=json", str(job_file)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    # Warnings may come before the report, and a crash without one.
    _, start, rest = done.stdout.partition("{\n")
    assert start, (done.returncode, done.stdout, done.stderr)
    jobs: list[dict[str, Any]] = json.loads(start + rest)["jobs"]
    errors = [job["error"] for job in jobs]
    assert (done.returncode, errors) == (0, [0] * len(jobs)), (shared, done.stderr)

    def total(direction: str, figure: str) -> int:
        return sum(int(job[direction][figure]) for job in jobs)

    return FioResult(
        reads=total("read", "total_ios"),
        writes=total("write", "total_ios"),
        trims=total("trim", "total_ios"),
        read_bytes=total("read", "io_bytes"),
        written_bytes=total("write", "io_bytes"),
    )
