"""Small benchmark results with known figures."""

from benchmarks.fio import FioOutcome, Latency
from benchmarks.machine import Machine
from benchmarks.page_cache import PageCache
from benchmarks.result import (
    BenchmarkResult,
    ContenderFacts,
    Ending,
    Measurement,
    Settings,
    Sustained,
)
from benchmarks.sample import DataSample
from benchmarks.units import GIB, MIB
from benchmarks.workload import WORKLOADS, Access, Workload

# Operations a second by contender; every workload of a result gets these, round by round scaled.
RATES = {"nearstone": 90_000.0, "memory": 100_000.0, "file": 60_000.0, "qcow2": 40_000.0}


def outcome_of(workload: Workload, rate: float, median_us: float) -> FioOutcome:
    """Return a run of one second at `rate`."""
    latency = Latency(median_us * 1.1, median_us, median_us * 3, median_us * 9, 9999.0, {80: 3})
    kinds = [] if workload.access is Access.WRITE else ["read"]
    kinds += [] if workload.access is Access.READ else ["write"]
    kinds += ["flush"] if ("fsync", "1") in workload.options else []
    length = int(rate) * 4096
    return FioOutcome(
        operations=int(rate),
        length_bytes=length,
        written_bytes=0 if workload.access is Access.READ else length,
        operations_per_s=rate,
        bytes_per_s=length,
        runtime_s=1.0,
        latency=dict.fromkeys(kinds, latency),
    )


def measurement(
    workload: Workload,
    contender: str,
    round_number: int,
    rate: float,
    median_us: float = 30.0,
    other_cpu_s: float = 0.0,
) -> Measurement:
    """Return one measured run; its server used 10 µs an operation, and 2 µs more afterwards."""
    return Measurement(
        round_number=round_number,
        workload=workload.name,
        contender=contender,
        started="2026-11-24T10:00:00+00:00",
        outcome=outcome_of(workload, rate, median_us),
        server_cpu_s=int(rate) * 10e-6,
        server_cpu_after_s=int(rate) * 2e-6,
        client_cpu_s=0.5,
        wall_s=1.0,
        other_cpu_s=other_cpu_s,
        stolen_cpu_s=0.0,
        was_quiet_after=True,
    )


def empty_result(
    *, rounds: int = 5, seconds: float = 5.0, size_bytes: int = 4 * GIB
) -> BenchmarkResult:
    """Return a result in which nothing was measured."""
    return BenchmarkResult(
        started="2026-11-24T10:00:00+00:00",
        finished="2026-11-24T10:30:00+00:00",
        machine=Machine(
            "a processor", 2, 24 * GIB, True, "6.1", "Debian", "vda", "ext4", "fio-3.33", "abc"
        ),
        settings=Settings(
            contenders=list(RATES),
            workloads=[workload.name for workload in WORKLOADS],
            rounds=rounds,
            seconds=seconds,
            warmup_s=1.0,
            sustained_s=60.0,
            size_bytes=size_bytes,
            page_cache=PageCache.KEEP,
            is_quick=False,
        ),
        sample=DataSample(16 * MIB, 1.97, 1.98, 1.0),
        warnings=[],
    )


def full_result(rounds: int = 5) -> BenchmarkResult:
    """Return a result with every workload of four contenders.

    Round r runs at (r + 1) times RATES on all contenders, as when a shared machine gets faster:
    the ratios of each round are those of RATES.
    """
    result = empty_result(rounds=rounds)
    for name in RATES:
        stored = None if name == "memory" else 2 * GIB
        result.contenders.append(
            ContenderFacts(name, f"the {name}", "a remark", "1.0", "serve DIR", 1e9, stored)
        )
        result.endings[name] = Ending(8 * GIB, stored, 100 * MIB, 0.0001)
    for round_number in range(rounds):
        for workload in WORKLOADS:
            for name, rate in RATES.items():
                result.measurements.append(
                    measurement(workload, name, round_number, rate * (round_number + 1))
                )
    result.sustained.append(
        Sustained("nearstone", 5.0, 60.0, 90_000.0, 63_000.0, [(1.0, 90_000.0), (2.0, 60_000.0)])
    )
    return result
