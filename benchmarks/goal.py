"""The goals Nearstone has set itself, and whether a result reaches them.

They are those of "Where we want to stand" that a benchmark on one machine can show. All compare
runs of the same round; absolute figures mean nothing on shared hardware.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum

from benchmarks import spread
from benchmarks.result import BenchmarkResult, Measurement
from benchmarks.spread import Spread
from benchmarks.units import format_figure
from benchmarks.workload import (
    LATENCY_READ,
    LATENCY_WRITE,
    RANDOM_READ,
    RANDOM_WRITE,
    SEQUENTIAL_READ,
    SEQUENTIAL_WRITE,
    WRITE_FLUSH,
    WRITE_FLUSH_8,
    Workload,
)

SUBJECT = "nearstone"


class Verdict(StrEnum):
    """In plain words, what became of a goal."""

    REACHED = "reached"
    MISSED = "not reached"
    UNKNOWN = "not measured"


@dataclass(frozen=True)
class Finding:
    """One goal beside what was measured."""

    workload: str
    goal: str
    measured: str
    verdict: Verdict


def operations_per_s(measurement: Measurement) -> float:
    """Return the throughput by which two contenders are compared."""
    return measurement.outcome.operations_per_s


def median_latency_us(measurement: Measurement) -> float:
    """Return the median latency of the operation that the workload is about."""
    latency = measurement.outcome.latency
    return (latency["read"] if "read" in latency else latency["write"]).p50_us


class Goal(ABC):
    """One goal."""

    @abstractmethod
    def judge(self, result: BenchmarkResult) -> Finding:
        """Return what `result` says about this goal."""


@dataclass(frozen=True)
class RatioGoal(Goal):
    """At least `minimum` times the throughput of another contender."""

    workload: Workload
    rival: str
    minimum: float

    def judge(self, result: BenchmarkResult) -> Finding:
        found = spread.ratio(
            result.by_round(self.workload.name, SUBJECT, operations_per_s),
            result.by_round(self.workload.name, self.rival, operations_per_s),
        )
        goal = f"at least {self.minimum:.1f} × {title_of(result, self.rival)}"
        return _finding(self.workload.title, goal, found, "×", at_least=self.minimum)


@dataclass(frozen=True)
class GroupCommitGoal(Goal):
    """Several clients that flush share the drive's work: at least `minimum` times one client."""

    one: Workload
    several: Workload
    minimum: float

    def judge(self, result: BenchmarkResult) -> Finding:
        found = spread.ratio(
            result.by_round(self.several.name, SUBJECT, operations_per_s),
            result.by_round(self.one.name, SUBJECT, operations_per_s),
        )
        goal = f"at least {self.minimum:.1f} × one such client (group commit)"
        return _finding(self.several.title, goal, found, "×", at_least=self.minimum)


@dataclass(frozen=True)
class AddedLatencyGoal(Goal):
    """At most `maximum_us` more than another contender, in the median."""

    workload: Workload
    rival: str
    maximum_us: float

    def judge(self, result: BenchmarkResult) -> Finding:
        found = spread.difference(
            result.by_round(self.workload.name, SUBJECT, median_latency_us),
            result.by_round(self.workload.name, self.rival, median_latency_us),
        )
        goal = f"median at most {self.maximum_us:.0f} µs above {title_of(result, self.rival)}"
        return _finding(self.workload.title, goal, found, "µs", at_most=self.maximum_us)


@dataclass(frozen=True)
class SustainedGoal(Goal):
    """A long run keeps at least `minimum` of a short one's throughput."""

    minimum: float

    def judge(self, result: BenchmarkResult) -> Finding:
        runs = [item for item in result.sustained if item.contender == SUBJECT]
        lengths = f"{runs[0].long_s:g} s against {runs[0].short_s:g} s" if runs else "long run"
        found = spread.spread(item.share for item in runs)
        goal = f"{lengths}: at least {self.minimum:.1f} × the short run"
        return _finding(RANDOM_WRITE.title, goal, found, "×", at_least=self.minimum)


@dataclass(frozen=True)
class IdleGoal(Goal):
    """A server without clients uses next to no CPU: nothing polls."""

    maximum_share: float

    def judge(self, result: BenchmarkResult) -> Finding:
        ending = result.endings.get(SUBJECT)
        found = spread.spread([] if ending is None else [ending.idle_cpu_share * 100])
        goal = f"at most {self.maximum_share:.1%} of one core"
        return _finding("no client connected", goal, found, "%", at_most=self.maximum_share * 100)


def title_of(result: BenchmarkResult, contender: str) -> str:
    """Return a contender's title, or its name when it did not take part."""
    facts = result.facts(contender)
    return contender if facts is None else facts.title


def format_spread(found: Spread, unit: str) -> str:
    """Return median and, when there are several values, least and greatest."""
    text = f"{format_figure(found.median)} {unit}".rstrip()
    if found.count > 1:
        text += f" ({format_figure(found.low)}–{format_figure(found.high)})"
    return text


def _finding(
    workload: str,
    goal: str,
    found: Spread | None,
    unit: str,
    *,
    at_least: float = float("-inf"),
    at_most: float = float("inf"),
) -> Finding:
    if found is None:
        return Finding(workload, goal, "–", Verdict.UNKNOWN)
    is_reached = at_least <= found.median <= at_most
    verdict = Verdict.REACHED if is_reached else Verdict.MISSED
    return Finding(workload, goal, format_spread(found, unit), verdict)


GOALS: tuple[Goal, ...] = (
    RatioGoal(RANDOM_READ, "memory", 0.9),
    RatioGoal(RANDOM_READ, "qcow2", 1.0),
    RatioGoal(RANDOM_WRITE, "qcow2", 2.0),
    RatioGoal(RANDOM_WRITE, "file", 0.8),
    RatioGoal(WRITE_FLUSH, "qcow2", 2.0),
    RatioGoal(WRITE_FLUSH, "file", 1.3),
    RatioGoal(WRITE_FLUSH_8, "qcow2", 2.0),
    RatioGoal(WRITE_FLUSH_8, "file", 1.3),
    GroupCommitGoal(WRITE_FLUSH, WRITE_FLUSH_8, 2.5),
    RatioGoal(SEQUENTIAL_READ, "qcow2", 1.0),
    RatioGoal(SEQUENTIAL_WRITE, "qcow2", 1.0),
    AddedLatencyGoal(LATENCY_READ, "memory", 15),
    AddedLatencyGoal(LATENCY_WRITE, "memory", 20),
    SustainedGoal(0.8),
    IdleGoal(0.002),
)


def judge_all(result: BenchmarkResult) -> list[Finding]:
    """Return what `result` says about every goal, in order."""
    return [goal.judge(result) for goal in GOALS]
