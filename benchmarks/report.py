"""The report in markdown: goals, figures, losses, method, machine."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from benchmarks import spread
from benchmarks.goal import (
    SUBJECT,
    Verdict,
    format_spread,
    judge_all,
    median_latency_us,
    operations_per_s,
)
from benchmarks.page_cache import PageCache
from benchmarks.result import BenchmarkResult, ContenderFacts, Measurement
from benchmarks.spread import Spread
from benchmarks.units import MIB, format_figure, format_size
from benchmarks.workload import WORKLOADS, Headline, Workload

# A claim needs this much.
_ROUNDS_MIN = 5
_SECONDS_MIN = 5.0
_SIZE_BYTES_MIN = 4 << 30
# Other work on the machine beyond this share of all cores makes a run doubtful. The kernel's own
# write-back for the measured server is in it too, so the bound is generous.
_DISTURBED_SHARE = 0.15
_WORST_SHOWN = 5
# Differences this small are not called a loss or a win: rounds differ by more.
_EVEN_SHARE = 0.03


def render(result: BenchmarkResult, plots: Sequence[tuple[str, str]] = ()) -> str:
    """Return the whole report.

    Args:
        plots: (title, file name beside the report).
    """
    sections = [
        _heading(result),
        _goals(result),
        *(_workload(result, item) for item in _measured_workloads(result)),
        _losses(result),
        _cost(result),
        _sustained(result),
        _plots(plots),
        _method(result),
        _machine(result),
        _doubts(result),
        _repeat(result),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, first_figure: int = 1) -> str:
    """Return a markdown table; columns from `first_figure` on are aligned to the right."""
    rules = ["---" if column < first_figure else "---:" for column in range(len(header))]
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    lines.insert(1, "|" + "|".join(rules) + "|")
    return "\n".join(lines)


def limits(result: BenchmarkResult) -> list[str]:
    """Return in plain words why this run is too small to base a claim on; empty when it is not."""
    settings = result.settings
    reasons = []
    if settings.rounds < _ROUNDS_MIN:
        reasons.append(f"{settings.rounds} round(s) instead of {_ROUNDS_MIN}")
    if settings.seconds < _SECONDS_MIN:
        reasons.append(f"{settings.seconds:g} s for each run instead of {_SECONDS_MIN:g} s")
    if settings.size_bytes < _SIZE_BYTES_MIN:
        reasons.append(
            f"a disk of {format_size(settings.size_bytes)} instead of "
            f"{format_size(_SIZE_BYTES_MIN)}"
        )
    return reasons


def _heading(result: BenchmarkResult) -> str:
    findings = judge_all(result)
    count = {verdict: sum(f.verdict is verdict for f in findings) for verdict in Verdict}
    lines = [
        f"# Benchmark of {result.started[:10]}",
        "",
        (
            f"{count[Verdict.REACHED]} of {len(findings)} goals reached, "
            f"{count[Verdict.MISSED]} not reached, {count[Verdict.UNKNOWN]} not measured. "
            "All figures are medians over the rounds, with the least and the greatest in "
            "parentheses; a ratio is taken within each round, and its median counts."
        ),
    ]
    if reasons := limits(result):
        lines += ["", f"**Too small a run to base a claim on:** {', '.join(reasons)}."]
    if result.failures:
        lines += ["", f"**{len(result.failures)} run(s) failed**, see *Doubts*."]
    return "\n".join(lines)


def _goals(result: BenchmarkResult) -> str:
    rows = [(f.workload, f.goal, f.measured, f.verdict.value) for f in judge_all(result)]
    header = ("workload", "goal", "measured", "verdict")
    return "## Goals\n\n" + table(header, rows, first_figure=len(header))


def _measured_workloads(result: BenchmarkResult) -> list[Workload]:
    names = {item.workload for item in result.measurements}
    return [item for item in WORKLOADS if item.name in names]


def _figure(
    result: BenchmarkResult,
    workload: str,
    contender: str,
    value: Callable[[Measurement], float],
) -> Spread | None:
    return spread.spread(result.by_round(workload, contender, value).values())


def _cell(found: Spread | None, unit: str = "") -> str:
    return "–" if found is None else format_spread(found, unit)


def _median(found: Spread | None) -> str:
    return "–" if found is None else format_figure(found.median)


def _latency(kind: str, name: str) -> Callable[[Measurement], float]:
    def value(measurement: Measurement) -> float:
        return float(getattr(measurement.outcome.latency[kind], name))

    return value


def _workload(result: BenchmarkResult, workload: Workload) -> str:
    """Return one workload's table: a row for each contender."""
    is_bandwidth = workload.headline is Headline.BANDWIDTH
    measured = [item for item in result.measurements if item.workload == workload.name]
    kinds = [k for k in ("read", "write", "flush") if any(k in m.outcome.latency for m in measured)]
    header = ["contender", "MiB/s" if is_bandwidth else "operations/s", "Nearstone ÷ this"]
    header += [f"{kind} median / p99 / p99.9 µs" for kind in kinds]
    header += ["server CPU µs per operation", "with work put off"]
    subject = result.by_round(workload.name, SUBJECT, operations_per_s)
    rows = []
    for facts in result.contenders:
        own = result.by_round(workload.name, facts.name, operations_per_s)
        if not own:
            continue
        rate = spread.spread(
            result.by_round(
                workload.name,
                facts.name,
                lambda m: (
                    m.outcome.bytes_per_s / MIB if is_bandwidth else m.outcome.operations_per_s
                ),
            ).values()
        )
        row = [facts.title, _cell(rate)]
        row.append("" if facts.name == SUBJECT else _cell(spread.ratio(subject, own), "×"))
        for kind in kinds:
            values = (
                _median(_figure(result, workload.name, facts.name, _latency(kind, name)))
                for name in ("p50_us", "p99_us", "p999_us")
            )
            row.append(" / ".join(values))
        for cpu in (
            lambda m: m.cpu_us_per_operation,
            lambda m: m.cpu_us_per_operation_with_after,
        ):
            row.append(_median(_figure(result, workload.name, facts.name, cpu)))
        rows.append(row)
    return f"## {workload.title}\n\n" + table(header, rows)


def _losses(result: BenchmarkResult) -> str:
    """Return where Nearstone does worse than somebody, worst first."""
    if result.facts(SUBJECT) is None:
        return ""
    rivals = [facts for facts in result.contenders if facts.name != SUBJECT]
    found = [
        loss
        for facts in rivals
        for loss in (*_losses_of_runs(result, facts), *_losses_at_the_end(result, facts))
    ]
    heading = "## Where Nearstone does worse\n\n"
    if not found:
        return heading + f"Nowhere in this run, by more than {_EVEN_SHARE:.0%}."
    rows = [row for _, row in sorted(found, key=lambda item: item[0])]
    header = ("workload", "against", "what", "Nearstone ÷ it")
    return (
        heading
        + f"Every comparison that Nearstone loses by more than {_EVEN_SHARE:.0%}, the worst "
        + "first.\n\n"
        + table(header, rows, first_figure=3)
    )


# How bad it is (1: even, 0: infinitely worse), and the row that says so.
_Loss = tuple[float, tuple[str, str, str, str]]


def _losses_of_runs(result: BenchmarkResult, rival: ContenderFacts) -> Iterator[_Loss]:
    # What is compared, and whether more of it is better.
    measures: tuple[tuple[str, Callable[[Measurement], float], bool], ...] = (
        ("throughput", operations_per_s, True),
        ("median latency", median_latency_us, False),
        ("99th percentile of latency", _slowest_p99_us, False),
        ("server CPU per operation", lambda m: m.cpu_us_per_operation_with_after, False),
    )
    for workload in _measured_workloads(result):
        for name, value, more_is_better in measures:
            ratio = spread.ratio(
                result.by_round(workload.name, SUBJECT, value),
                result.by_round(workload.name, rival.name, value),
            )
            if ratio is None or ratio.median == 0:
                continue
            merit = ratio.median if more_is_better else 1 / ratio.median
            if merit < 1 - _EVEN_SHARE:
                yield merit, (workload.title, rival.title, name, format_spread(ratio, "×"))


def _losses_at_the_end(result: BenchmarkResult, rival: ContenderFacts) -> Iterator[_Loss]:
    own, other = result.endings.get(SUBJECT), result.endings.get(rival.name)
    if own is None or other is None:
        return
    for name, mine, theirs in (
        ("stored bytes", own.stored_bytes, other.stored_bytes),
        ("server memory", own.memory_bytes, other.memory_bytes),
    ):
        if mine and theirs and theirs / mine < 1 - _EVEN_SHARE:
            ratio = f"{format_figure(mine / theirs)} ×"
            yield theirs / mine, ("after all rounds", rival.title, name, ratio)


def _slowest_p99_us(measurement: Measurement) -> float:
    return max(latency.p99_us for latency in measurement.outcome.latency.values())


def _cost(result: BenchmarkResult) -> str:
    size = result.settings.size_bytes
    rows = []
    for facts in result.contenders:
        ending = result.endings.get(facts.name)
        stored = facts.prefill_stored_bytes
        row = [
            facts.title,
            f"{facts.prefill_bytes_per_s / MIB:.0f}",
            "in memory" if stored is None else f"{stored / size:.3f}",
        ]
        if ending is None:
            row += ["–"] * 4
        else:
            end_stored = ending.stored_bytes
            row += [
                "in memory" if end_stored is None else f"{end_stored / size:.3f}",
                format_size(ending.written_bytes),
                format_size(ending.memory_bytes),
                f"{ending.idle_cpu_share:.2%}",
            ]
        rows.append(row)
    header = (
        "contender",
        "filling, MiB/s",
        "stored bytes per byte of the disk once filled",
        "the same after all rounds",
        "written by clients until then",
        "server memory (without mapped files)",
        "CPU while idle, of one core",
    )
    return "## Space, memory, idle cost\n\n" + table(header, rows)


def _sustained(result: BenchmarkResult) -> str:
    if not result.sustained:
        return ""
    rows = []
    for item in result.sustained:
        facts = result.facts(item.contender)
        rows.append(
            (
                item.contender if facts is None else facts.title,
                format_figure(item.short_operations_per_s),
                format_figure(item.long_operations_per_s),
                f"{item.share:.2f} ×",
            )
        )
    first = result.sustained[0]
    header = ("contender", f"{first.short_s:g} s", f"{first.long_s:g} s", "long ÷ short")
    return "## Sustained 4 KiB random write, depth 32, operations/s\n\n" + table(header, rows)


def _plots(plots: Sequence[tuple[str, str]]) -> str:
    if not plots:
        return ""
    return "## Plots\n\n" + "\n\n".join(f"![{title}]({name})" for title, name in plots)


def _method(result: BenchmarkResult) -> str:
    settings, sample = result.settings, result.sample
    cache = (
        "kept; the whole disk is read once before each run that reads"
        if settings.page_cache is PageCache.KEEP
        else "emptied before every run"
    )
    points = (
        (
            f"Disk of {format_size(settings.size_bytes)}, written completely once before the first "
            "round; every workload runs over all of it."
        ),
        (
            f"{settings.rounds} round(s); in each, all contenders run every workload one after "
            f"the other, {settings.seconds:g} s each after {settings.warmup_s:g} s of warm-up; the "
            "order of contenders moves on by one each round; all get the same offsets."
        ),
        (
            "Data: half random bytes, half one repeated pattern in every 4 KiB; a sample was "
            f"{sample.ratio_4k:.2f}:1 for LZ4 at 4 KiB, {sample.ratio_16k:.2f}:1 at 16 KiB, "
            f"{sample.unique_share:.1%} of its blocks unique. Such data are easy to compress fast; "
            "text of the same ratio costs LZ4 several times the CPU."
        ),
        (
            f"Page cache: {cache}. Dirty pages are written back, and all servers are quiet, before "
            "the next run begins."
        ),
        (
            "Server CPU: user and system time of the server's processes. What the kernel does for "
            "them in threads of its own (write-back) is in nobody's figure."
        ),
        (
            "The client (fio's nbd engine) runs on the same cores: at high rates it is part of the "
            "limit, which flatters the slower servers."
        ),
    )
    lines = [f"- {point}" for point in points]
    rows = [
        (facts.title, f"`{facts.command}`", facts.version, facts.remark)
        for facts in result.contenders
    ]
    header = ("contender", "command", "version", "remark")
    listing = table(header, rows, first_figure=len(header))
    return "## Method\n\n" + "\n".join(lines) + "\n\n" + listing


def _machine(result: BenchmarkResult) -> str:
    machine = result.machine
    rows = (
        ("processor", f"{machine.processor}, {machine.cores} cores"),
        ("memory", format_size(machine.memory_bytes)),
        ("kind", "virtual machine" if machine.is_virtual else "hardware"),
        ("kernel", f"{machine.kernel}, {machine.distribution}"),
        ("drive", machine.drive),
        ("file system", machine.file_system),
        ("fio", machine.fio),
        ("source", machine.source),
        ("time", f"{result.started} to {result.finished}"),
    )
    return "## Machine\n\n" + table(("", ""), rows, first_figure=2)


def _doubts(result: BenchmarkResult) -> str:
    """Return everything that could make a reader distrust the figures."""
    doubts = list(result.warnings)
    doubts += [f"{f.contender} failed in {f.stage}: {f.message}" for f in result.failures]
    disturbed = sorted(
        ((_elsewhere_share(result, item), item) for item in result.measurements),
        key=lambda pair: -pair[0],
    )
    disturbed = [pair for pair in disturbed if pair[0] > _DISTURBED_SHARE]
    if disturbed:
        worst = ", ".join(
            f"{item.workload} of {item.contender} in round {item.round_number + 1} ({share:.0%})"
            for share, item in disturbed[:_WORST_SHOWN]
        )
        doubts.append(
            f"in {len(disturbed)} of {len(result.measurements)} runs more than "
            f"{_DISTURBED_SHARE:.0%} of the machine's CPU went elsewhere (kernel write-back, other "
            f"programs, the hypervisor); the most in {worst}"
        )
    unquiet = sum(not item.was_quiet_after for item in result.measurements)
    if unquiet:
        doubts.append(
            f"after {unquiet} of {len(result.measurements)} runs a server was still busy when "
            "waiting for it was given up; the next run may have been slowed by it"
        )
    if not doubts:
        return "## Doubts\n\nNone: nothing failed, no run was disturbed."
    return "## Doubts\n\n" + "\n".join(f"- {doubt}" for doubt in doubts)


def _elsewhere_share(result: BenchmarkResult, item: Measurement) -> float:
    """Return the share of all cores that neither server nor client had during a run."""
    return (item.other_cpu_s + item.stolen_cpu_s) / (item.wall_s * result.machine.cores)


def _repeat(result: BenchmarkResult) -> str:
    settings = result.settings
    command = (
        f"python -m benchmarks --contenders {','.join(settings.contenders)} "
        f"--workloads {','.join(settings.workloads)} --rounds {settings.rounds} "
        f"--seconds {settings.seconds:g} --size {settings.size_bytes} "
        f"--page-cache {settings.page_cache.value}"
    )
    return (
        "## Repeat it\n\n`make bench`, or with exactly these settings:\n\n"
        f"```\n{command}\n```\n\n"
        "`results.json` beside this file has every figure, `fio.jsonl.gz` what fio itself said "
        "about each run."
    )
