"""Carrying out one benchmark: start, fill, measure in interleaved rounds, stop.

All servers stay up during the whole session, since a disk in memory cannot be stopped without
losing what it was filled with. So that they do not disturb each other, a run is over only when the
dirty pages are on the drive and every server is quiet; what a server did until then is counted as
its own (`server_cpu_after_s`).
"""

import datetime
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks import interrupt, page_cache, schedule
from benchmarks.accounting import machine_cpu, tree_cpu_s, tree_run_ns
from benchmarks.contenders import Contender, Place
from benchmarks.errors import ContenderFailed, FioFailed, UnusableOption
from benchmarks.fio import FioOutcome, FioRun, parse_iops_log, run_fio
from benchmarks.machine import describe_machine
from benchmarks.page_cache import PageCache
from benchmarks.result import (
    BenchmarkResult,
    ContenderFacts,
    Ending,
    Failure,
    Measurement,
    Settings,
    Sustained,
)
from benchmarks.sample import RATIO_HIGH, RATIO_LOW, take_sample
from benchmarks.units import format_figure, format_size
from benchmarks.workload import PREFILL, RANDOM_WRITE, READ_AGAIN, Workload

# A server is quiet when all of them together used less than this share of a core in one window.
_QUIET_SHARE_MAX = 0.05
_QUIET_WINDOW_S = 0.3
# Background work (reclaim, checkpoints) may go on longer than is worth waiting for.
_QUIET_TIMEOUT_S = 20.0
_IDLE_WINDOW_S = 5.0
# A Unix socket's path has at most 107 bytes; this much comes after the session's folder.
_FOLDER_LENGTH_MAX = 80
_PREFILL_SEED, _READ_AGAIN_SEED = 1, 2
_SUSTAINED_SEEDS = (500, 501)


@dataclass(frozen=True)
class Plan:
    """What a session is to do."""

    contenders: Sequence[type[Contender]]
    workloads: Sequence[Workload]
    sustained: Sequence[str]  # names of contenders to run long
    settings: Settings


class Session:
    """One benchmark run; a context manager that leaves nothing running and nothing on the drive.

    Args:
        plan: what to do.
        place: `folder` is where the session makes its own folder.
        warnings: found before the start; more may be added.
        tell: takes one line of progress at a time.
    """

    def __init__(
        self, plan: Plan, place: Place, warnings: Iterable[str], tell: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._settings = plan.settings
        self._place = place
        self._warnings = list(warnings)
        self._tell = tell
        self._folder = Path()
        self._active: dict[str, Contender] = {}
        self._written: dict[str, int] = {}
        # fio's own JSON of every run, as it came.
        self.fio_documents: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        folder = tempfile.mkdtemp(prefix="nearstone-bench-", dir=self._place.folder)
        self._folder = Path(folder).resolve()
        if len(str(self._folder)) > _FOLDER_LENGTH_MAX:
            self._folder.rmdir()
            raise UnusableOption(f"--dir {self._place.folder} is too long for Unix sockets in it")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A second Ctrl-C must not leave half of the servers running.
        with interrupt.deferred():
            for contender in self._active.values():
                contender.stop()
            self._active.clear()
            shutil.rmtree(self._folder, ignore_errors=True)

    def run(self) -> BenchmarkResult:
        """Do everything planned and return what was found.

        Raises:
            BenchmarkError: no contender could be started, or fio does not work at all.
        """
        result = BenchmarkResult(
            started=_now(),
            machine=describe_machine(self._folder),
            settings=self._settings,
            sample=take_sample(self._folder),
            warnings=self._warnings,
        )
        if not result.sample.is_as_promised:
            result.warnings.append(
                f"fio's data are {result.sample.ratio_4k:.2f}:1 for LZ4 at 4 KiB with "
                f"{result.sample.unique_share:.1%} unique blocks; "
                f"{RATIO_LOW}:1 to {RATIO_HIGH}:1 and all unique was meant"
            )
        for kind in self._plan.contenders:
            self._start_and_fill(kind, result)
        if not self._active:
            raise ContenderFailed("all contenders", "none could be started and filled")
        self._measure_all(result)
        self._measure_endings(result)
        for name in self._plan.sustained:
            if name in self._active:
                self._measure_sustained(name, result)
        result.finished = _now()
        return result

    # ---------------------------------------------------------------------------------- stages

    def _start_and_fill(self, kind: type[Contender], result: BenchmarkResult) -> None:
        folder = self._folder / kind.name
        folder.mkdir()
        place = replace(self._place, folder=folder)
        contender = kind(place)
        self._tell(f"{kind.name}: start and fill {format_size(place.size_bytes)}")
        # Known to __exit__ before it is started, so that an interrupt in between stops it too.
        self._active[kind.name] = contender
        try:
            contender.start()
            outcome = self._fio(contender, PREFILL, None, _PREFILL_SEED)
        except (ContenderFailed, FioFailed) as error:
            self._record_failure(result, contender, "start and fill", error, is_fatal=True)
            return
        self._settle()
        result.contenders.append(
            ContenderFacts(
                name=kind.name,
                title=kind.title,
                remark=kind.remark,
                version=kind.version(place),
                command=contender.command_line(),
                prefill_bytes_per_s=outcome.bytes_per_s,
                prefill_stored_bytes=contender.stored_bytes(),
            )
        )

    def _measure_all(self, result: BenchmarkResult) -> None:
        steps = list(
            schedule.steps(list(self._active), self._plan.workloads, self._settings.rounds)
        )
        started = time.monotonic()
        for done, step in enumerate(steps):
            contender = self._active.get(step.contender)
            if contender is None:
                continue  # it failed earlier
            remaining = (time.monotonic() - started) / done * (len(steps) - done) if done else None
            stage = f"round {step.round_number + 1}, {step.workload.name}"
            try:
                measurement = self._measure(contender, step)
            except (ContenderFailed, FioFailed) as error:
                self._record_failure(result, contender, stage, error)
                continue
            result.measurements.append(measurement)
            left = "" if remaining is None else f"  [{remaining / 60:.0f} min left]"
            rate = format_figure(measurement.outcome.operations_per_s)
            self._tell(f"{stage}, {step.contender}: {rate} operations/s{left}")

    def _measure_endings(self, result: BenchmarkResult) -> None:
        self._settle()
        before = {name: tree_run_ns(item.pid) for name, item in self._active.items()}
        time.sleep(_IDLE_WINDOW_S)
        for name, contender in self._active.items():
            spent_ns = tree_run_ns(contender.pid) - before[name]
            result.endings[name] = Ending(
                written_bytes=self._written[name],
                stored_bytes=contender.stored_bytes(),
                memory_bytes=contender.memory_bytes(),
                idle_cpu_share=max(spent_ns, 0) / (_IDLE_WINDOW_S * 1e9),
            )

    def _measure_sustained(self, name: str, result: BenchmarkResult) -> None:
        short_s, long_s = self._settings.seconds, self._settings.sustained_s
        self._tell(f"sustained random write, {name}: {short_s:g} s, then {long_s:g} s")
        contender = self._active[name]
        log = self._folder / "sustained"
        try:
            short = self._fio(contender, RANDOM_WRITE, short_s, _SUSTAINED_SEEDS[0])
            self._settle()
            long = self._fio(contender, RANDOM_WRITE, long_s, _SUSTAINED_SEEDS[1], log)
            self._settle()
        except (ContenderFailed, FioFailed) as error:
            self._record_failure(result, contender, "sustained random write", error)
            return
        # fio adds the job's number to the name.
        points = parse_iops_log(Path(f"{log}_iops.1.log").read_text())
        result.sustained.append(
            Sustained(name, short_s, long_s, short.operations_per_s, long.operations_per_s, points)
        )

    # ------------------------------------------------------------------------------- one run

    def _measure(self, contender: Contender, step: schedule.Step) -> Measurement:
        if self._settings.warmup_s > 0:
            self._fio(contender, step.workload, self._settings.warmup_s, step.seed + 500_000)
        self._prepare_cache(contender, step.workload)
        started = _now()
        began = time.monotonic()
        machine_before, client_before = machine_cpu(), _children_cpu_s()
        server_before = tree_cpu_s([contender.pid])
        outcome = self._fio(contender, step.workload, self._settings.seconds, step.seed)
        server_s = tree_cpu_s([contender.pid]) - server_before
        client_s = _children_cpu_s() - client_before
        machine_after = machine_cpu()
        wall_s = time.monotonic() - began
        was_quiet = self._settle()
        after_s = tree_cpu_s([contender.pid]) - server_before - server_s
        busy_s = machine_after.busy_s - machine_before.busy_s
        return Measurement(
            round_number=step.round_number,
            workload=step.workload.name,
            contender=step.contender,
            started=started,
            outcome=outcome,
            server_cpu_s=server_s,
            server_cpu_after_s=max(after_s, 0.0),
            client_cpu_s=client_s,
            wall_s=wall_s,
            other_cpu_s=max(busy_s - server_s - client_s, 0.0),
            stolen_cpu_s=machine_after.stolen_s - machine_before.stolen_s,
            was_quiet_after=was_quiet,
        )

    def _fio(
        self,
        contender: Contender,
        workload: Workload,
        seconds: float | None,
        seed: int,
        iops_log: Path | None = None,
    ) -> FioOutcome:
        run = FioRun(workload, contender.uri, self._place.size_bytes, seconds, seed, iops_log)
        try:
            outcome, document = run_fio(run, self._folder)
        except FioFailed:
            if not contender.is_alive():
                cause = f"its server ended during {workload.name}"
                raise ContenderFailed(contender.name, cause, contender.log_tail()) from None
            raise
        self.fio_documents.append({"contender": contender.name, **document})
        self._written[contender.name] = self._written.get(contender.name, 0) + outcome.written_bytes
        return outcome

    def _prepare_cache(self, contender: Contender, workload: Workload) -> None:
        if self._settings.page_cache is PageCache.DROP:
            page_cache.write_back()
            page_cache.drop()
        elif workload.has_reads and contender.backing_files():
            self._fio(contender, READ_AGAIN, None, _READ_AGAIN_SEED)

    def _settle(self) -> bool:
        """Write back what is dirty and wait until all servers are quiet; say whether they are."""
        page_cache.write_back()
        deadline = time.monotonic() + _QUIET_TIMEOUT_S
        pids = [item.pid for item in self._active.values() if item.is_alive()]
        used_s = tree_cpu_s(pids)
        while time.monotonic() < deadline:
            time.sleep(_QUIET_WINDOW_S)
            before_s, used_s = used_s, tree_cpu_s(pids)
            if used_s - before_s <= _QUIET_SHARE_MAX * _QUIET_WINDOW_S:
                return True
        return False

    def _record_failure(
        self,
        result: BenchmarkResult,
        contender: Contender,
        stage: str,
        error: Exception,
        *,
        is_fatal: bool = False,
    ) -> None:
        """Note a failure; a contender that is dead or useless takes no further part."""
        self._tell(f"{contender.name} failed: {error}")
        result.failures.append(Failure(contender.name, stage, str(error)))
        if is_fatal or not contender.is_alive():
            contender.stop()
            del self._active[contender.name]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
