"""The plots of a report, as PNG files (matplotlib, the `dev` extra)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import spread
from benchmarks.fio import BINS_PER_DECADE
from benchmarks.result import BenchmarkResult, Measurement
from benchmarks.units import MIB
from benchmarks.workload import (
    LATENCY_READ,
    LATENCY_WRITE,
    WORKLOADS,
    WRITE_FLUSH,
    WRITE_FLUSH_8,
    Headline,
    Workload,
)

_DPI = 110
# Colour-blind safe (Okabe and Ito); a contender has the same colour in every plot.
_COLOURS = ("#0072B2", "#999999", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")


def draw_all(result: BenchmarkResult, folder: Path) -> list[tuple[str, str]]:
    """Write the plots for which `result` has data; return (title, file name) of each."""
    import matplotlib

    matplotlib.use("agg")
    drawn = []
    for title, name, draw in (
        ("Throughput", "throughput.png", _draw_throughput),
        ("Server CPU per operation", "cpu.png", _draw_cpu),
        ("Latency", "latency.png", _draw_latency),
        ("Sustained random write", "sustained.png", _draw_sustained),
    ):
        figure = draw(result)
        if figure is not None:
            figure.savefig(folder / name, dpi=_DPI, metadata={"Software": None})
            drawn.append((title, name))
            _close(figure)
    return drawn


def _close(figure: Any) -> None:
    from matplotlib import pyplot

    pyplot.close(figure)


def _panels(count: int, width: float, height: float) -> tuple[Any, list[Any]]:
    from matplotlib import pyplot

    columns = min(count, 3)
    rows = -(-count // columns)
    figure, axes = pyplot.subplots(
        rows,
        columns,
        figsize=(width * columns, height * rows),
        squeeze=False,
        layout="constrained",
    )
    flat = list(axes.flat)
    for unused in flat[count:]:
        unused.set_axis_off()
    return figure, flat[:count]


def _colour(result: BenchmarkResult, contender: str) -> str:
    names = [facts.name for facts in result.contenders]
    return _COLOURS[names.index(contender) % len(_COLOURS)]


def _workloads(result: BenchmarkResult) -> list[Workload]:
    measured = {item.workload for item in result.measurements}
    return [item for item in WORKLOADS if item.name in measured]


def _draw_bars(
    result: BenchmarkResult, unit: Callable[[Workload], tuple[str, Callable[[Measurement], float]]]
) -> Any:
    """Draw one panel a workload, one bar a contender: median, with least and greatest."""
    workloads = _workloads(result)
    if not workloads:
        return None
    figure, panels = _panels(len(workloads), 3.6, 2.6)
    for axes, workload in zip(panels, workloads, strict=True):
        label, value = unit(workload)
        for place, facts in enumerate(result.contenders):
            found = spread.spread(result.by_round(workload.name, facts.name, value).values())
            if found is not None:
                error = [[found.median - found.low], [found.high - found.median]]
                colour = _colour(result, facts.name)
                axes.bar(place, found.median, color=colour, yerr=error, capsize=3)
        axes.set_title(workload.title, fontsize=9)
        axes.set_ylabel(label, fontsize=8)
        axes.set_ylim(bottom=0)
        axes.set_xticks(range(len(result.contenders)))
        axes.set_xticklabels([f.name for f in result.contenders], fontsize=8, rotation=25)
        axes.tick_params(axis="y", labelsize=8)
    return figure


def _draw_throughput(result: BenchmarkResult) -> Any:
    def unit(workload: Workload) -> tuple[str, Callable[[Measurement], float]]:
        if workload.headline is Headline.BANDWIDTH:
            return "MiB/s", lambda m: m.outcome.bytes_per_s / MIB
        return "operations/s", lambda m: m.outcome.operations_per_s

    return _draw_bars(result, unit)


def _draw_cpu(result: BenchmarkResult) -> Any:
    return _draw_bars(result, lambda workload: ("µs", lambda m: m.cpu_us_per_operation_with_after))


def _draw_latency(result: BenchmarkResult) -> Any:
    """Draw histograms over a logarithmic time axis, all rounds together."""
    wanted = (
        (LATENCY_READ, "read"),
        (LATENCY_WRITE, "write"),
        (WRITE_FLUSH, "flush"),
        (WRITE_FLUSH_8, "flush"),
    )
    measured = {item.name for item in _workloads(result)}
    shown = [(workload, kind) for workload, kind in wanted if workload.name in measured]
    if not shown:
        return None
    figure, panels = _panels(len(shown), 4.6, 3.0)
    for axes, (workload, kind) in zip(panels, shown, strict=True):
        for facts in result.contenders:
            times_us, shares = _histogram(result, workload.name, facts.name, kind)
            if times_us:
                colour = _colour(result, facts.name)
                axes.step(times_us, shares, where="post", color=colour, label=facts.title)
        axes.set_xscale("log")
        axes.set_title(f"{workload.title}: {kind}", fontsize=9)
        axes.set_xlabel("µs", fontsize=8)
        axes.set_ylabel("% of operations per bin", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=7)
    return figure


def _histogram(
    result: BenchmarkResult, workload: str, contender: str, kind: str
) -> tuple[list[float], list[float]]:
    """Return (lower bound of each bin in µs, percent of operations in it), without gaps."""
    bins: dict[int, int] = {}
    for item in result.measurements:
        if item.workload == workload and item.contender == contender:
            latency = item.outcome.latency.get(kind)
            for number, count in latency.bins.items() if latency else ():
                bins[number] = bins.get(number, 0) + count
    if not bins:
        return [], []
    total = sum(bins.values())
    # One empty bin on either side brings the line down to the axis.
    numbers = range(min(bins) - 1, max(bins) + 2)
    times_us = [10 ** (number / BINS_PER_DECADE) / 1000 for number in numbers]
    return times_us, [100 * bins.get(number, 0) / total for number in numbers]


def _draw_sustained(result: BenchmarkResult) -> Any:
    if not any(item.points for item in result.sustained):
        return None
    figure, (axes,) = _panels(1, 7.0, 3.2)
    for item in result.sustained:
        times_s, rates = zip(*item.points, strict=True) if item.points else ((), ())
        facts = result.facts(item.contender)
        label = item.contender if facts is None else facts.title
        axes.plot(times_s, rates, color=_colour(result, item.contender), label=label)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds", fontsize=8)
    axes.set_ylabel("operations/s", fontsize=8)
    axes.set_title("4 KiB random write, depth 32, second by second", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7)
    return figure
