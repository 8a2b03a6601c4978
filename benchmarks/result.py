"""Everything one benchmark run found, and its JSON form.

`results.json` is complete: the report and the plots can be drawn again from it alone.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from benchmarks.fio import FioOutcome
from benchmarks.machine import Machine
from benchmarks.page_cache import PageCache
from benchmarks.sample import DataSample

FORMAT = 1


@dataclass(frozen=True)
class Settings:
    """What was asked for."""

    contenders: list[str]
    workloads: list[str]
    rounds: int
    seconds: float
    warmup_s: float
    sustained_s: float
    size_bytes: int
    page_cache: PageCache
    is_quick: bool


@dataclass(frozen=True)
class ContenderFacts:
    """What a contender is, and what filling it took."""

    name: str
    title: str
    remark: str
    version: str
    command: str
    prefill_bytes_per_s: float
    # None for a disk in memory.
    prefill_stored_bytes: int | None


@dataclass(frozen=True)
class Ending:
    """A contender after all rounds."""

    written_bytes: int  # by clients, over its whole life
    stored_bytes: int | None
    memory_bytes: int
    idle_cpu_share: float  # of one core, while no client is connected


@dataclass(frozen=True)
class Measurement:
    """One measured run."""

    round_number: int
    workload: str
    contender: str
    started: str
    outcome: FioOutcome
    server_cpu_s: float
    # Spent by the server after the run, until it was quiet: work put off, still work.
    server_cpu_after_s: float
    client_cpu_s: float
    wall_s: float  # over which all CPU times were taken: the run, and fio's start and end
    # Of the machine during the run, by nobody above: the kernel's write-back, other programs.
    other_cpu_s: float
    stolen_cpu_s: float
    was_quiet_after: bool

    @property
    def cpu_us_per_operation(self) -> float:
        """Server CPU during the run for each operation."""
        return self.server_cpu_s / self.outcome.operations * 1e6

    @property
    def cpu_us_per_operation_with_after(self) -> float:
        """The same with what the server did afterwards."""
        total = self.server_cpu_s + self.server_cpu_after_s
        return total / self.outcome.operations * 1e6


@dataclass(frozen=True)
class Sustained:
    """A short and a long run of random writes, one after the other."""

    contender: str
    short_s: float
    long_s: float
    short_operations_per_s: float
    long_operations_per_s: float
    # (seconds since start, operations a second) of the long run.
    points: list[tuple[float, float]]

    @property
    def share(self) -> float:
        """The long run's throughput as a share of the short one's."""
        return self.long_operations_per_s / self.short_operations_per_s


@dataclass(frozen=True)
class Failure:
    """A run that gave no figures."""

    contender: str
    stage: str
    message: str


@dataclass
class BenchmarkResult:
    """One benchmark run; filled as it goes."""

    started: str
    machine: Machine
    settings: Settings
    sample: DataSample
    warnings: list[str]
    finished: str = ""
    contenders: list[ContenderFacts] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    sustained: list[Sustained] = field(default_factory=list)
    endings: dict[str, Ending] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    format: int = FORMAT

    def by_round(
        self, workload: str, contender: str, value: Callable[[Measurement], float]
    ) -> dict[int, float]:
        """Return `value` of each measurement of this pair, by round number."""
        return {
            item.round_number: value(item)
            for item in self.measurements
            if item.workload == workload and item.contender == contender
        }

    def facts(self, contender: str) -> ContenderFacts | None:
        """Return what is known of a contender, None when it did not take part."""
        return next((item for item in self.contenders if item.name == contender), None)


def save(result: BenchmarkResult, path: Path) -> None:
    """Write `result` as JSON."""
    path.write_text(json.dumps(to_json(result), indent=1) + "\n")


def to_json(result: BenchmarkResult) -> dict[str, Any]:
    """Return `result` as a JSON object."""
    return dataclasses.asdict(result)


def load(path: Path) -> BenchmarkResult:
    """Read a result that `save` wrote.

    Raises:
        ValueError: the file is of another format.
    """
    document = json.loads(path.read_text())
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{path} is not a result of format {FORMAT}")
    result = _decode(BenchmarkResult, document)
    if not isinstance(result, BenchmarkResult):
        raise ValueError(f"{path} is not a result")
    return result


def _decode(kind: Any, value: Any) -> Any:
    """Return `value`, which came from JSON, as an instance of the annotated type `kind`."""
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return [_decode(arguments[0], item) for item in value]
    if origin is tuple:
        return tuple(_decode(part, item) for part, item in zip(arguments, value, strict=True))
    if origin is dict:
        return {arguments[0](key): _decode(arguments[1], item) for key, item in value.items()}
    if origin is types.UnionType:
        if value is None:
            return None
        (inner,) = (part for part in arguments if part is not types.NoneType)
        return _decode(inner, value)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if kind is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, kind):
        raise ValueError(f"{value!r} is not of type {kind.__name__}")
    return value


def _decode_dataclass(kind: Any, value: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    names = {item.name for item in dataclasses.fields(kind)}
    if names != value.keys():
        differing = ", ".join(sorted(names ^ value.keys()))
        raise ValueError(f"{kind.__name__} and the file differ in: {differing}")
    return kind(**{name: _decode(hints[name], value[name]) for name in names})
