"""The command line: `python -m benchmarks`.

Exit status: 0 everything was measured, 1 some run failed (the report says which), 2 the benchmark
cannot run like this (nothing was started), 130 interrupted.
"""

import argparse
import datetime
import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import interrupt, plot, report, requirement, result
from benchmarks.contenders import CONTENDERS, DEFAULT_CONTENDERS, Contender, Place
from benchmarks.errors import BenchmarkError, RequirementMissing, UnusableOption
from benchmarks.page_cache import PageCache
from benchmarks.session import Plan, Session
from benchmarks.units import MIB, parse_size
from benchmarks.workload import WORKLOADS, Workload

_RESULTS = Path(__file__).parent / "results"
# How the yardsticks fare in a long run shows what is the drive's doing and what is Nearstone's.
_SUSTAINED_DEFAULT = ("nearstone", "file", "qcow2")
_SIZE_BYTES_MIN = 64 * MIB

_EPILOG = """\
examples:
  python -m benchmarks
      five rounds against what the goals name; about 40 minutes
  python -m benchmarks --quick
      a few minutes, to see that everything works; no basis for claims
  python -m benchmarks --contenders nearstone,file --workloads write-flush,write-flush-8
      one question only
  python -m benchmarks --contenders all --size 2G --dir /mnt/nvme
      every contender that is installed, on another drive
  python -m benchmarks --render benchmarks/results/2026-11-24
      draw report and plots again from results.json
"""

T = TypeVar("T")


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit status."""
    try:
        options = _parser().parse_args(arguments)
        if options.list:
            print(_listing())
            return 0
        if options.render is not None:
            return _render(options)
        interrupt.install()
        return _run(options)
    except RequirementMissing as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks: interrupted; everything it had started is stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure Nearstone side by side with what a user would pick instead.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--contenders", metavar="A,B", help=f"'all', or of: {', '.join(CONTENDERS)}")
    names = ", ".join(workload.name for workload in WORKLOADS)
    add("--workloads", metavar="X,Y", help=f"of: {names} (default: all)")
    add("--rounds", type=int, metavar="N", help="interleaved rounds (default 5)")
    add("--seconds", type=float, metavar="S", help="length of each measured run (default 5)")
    add("--warmup", type=float, metavar="S", help="warm-up before each run (default 1)")
    add("--sustained", type=float, metavar="S", help="length of the long run (default 60; 0: none)")
    add("--size", metavar="SIZE", help="size of every disk (default 4G)")
    add(
        "--dir",
        type=Path,
        default=Path("/var/tmp"),
        metavar="FOLDER",
        help="a folder on the drive to measure (default /var/tmp)",
    )
    add(
        "--page-cache",
        choices=[p.value for p in PageCache],
        default=PageCache.KEEP.value,
        help="keep it warm (default), or drop it before every run (root)",
    )
    add("--nearstone", type=Path, metavar="PROGRAM", help="default: this environment's")
    add("--output", type=Path, metavar="FOLDER", help="default: benchmarks/results/DATE")
    add("--quick", action="store_true", help="2 rounds of 1 s over 256M, unless told otherwise")
    add("--no-plots", action="store_true", help="do without matplotlib")
    add("--json", action="store_true", help="print results.json to standard output as well")
    add("--list", action="store_true", help="list contenders and workloads, and end")
    add("--render", type=Path, metavar="FOLDER", help="draw the report of FOLDER again, and end")
    return parser


def _listing() -> str:
    lines = ["contenders (* by default):"]
    for name, contender in CONTENDERS.items():
        mark = "*" if name in DEFAULT_CONTENDERS else " "
        lines.append(f" {mark} {name:<12} {contender.title}: {contender.remark}")
    lines.append("workloads:")
    lines += [f"   {workload.name:<17} {workload.title}" for workload in WORKLOADS]
    return "\n".join(lines)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _size_of(options: argparse.Namespace) -> int:
    text = _or(options.size, "256M" if options.quick else "4G")
    try:
        size_bytes = parse_size(text)
    except ValueError as error:
        raise UnusableOption(f"--size: {error}") from None
    if size_bytes < _SIZE_BYTES_MIN or size_bytes % MIB:
        raise UnusableOption("--size: at least 64M, and whole MiB")
    return size_bytes


def _chosen_contenders(options: argparse.Namespace, place: Place) -> list[type[Contender]]:
    if options.contenders == "all":
        return [kind for kind in CONTENDERS.values() if requirement.is_usable(kind, place)]
    names = _or(options.contenders, ",".join(DEFAULT_CONTENDERS)).split(",")
    _refuse_unknown("--contenders", names, list(CONTENDERS))
    # In the order of reports; naming one twice does not run it twice.
    return [kind for name, kind in CONTENDERS.items() if name in names]


def _chosen_workloads(options: argparse.Namespace) -> list[Workload]:
    if options.workloads is None:
        return list(WORKLOADS)
    names = options.workloads.split(",")
    _refuse_unknown("--workloads", names, [workload.name for workload in WORKLOADS])
    return [workload for workload in WORKLOADS if workload.name in names]


def _refuse_unknown(option: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise UnusableOption(f"{option}: there is no {name!r}; choose of {', '.join(known)}")


def _plan(options: argparse.Namespace, place: Place) -> Plan:
    quick = options.quick
    contenders = _chosen_contenders(options, place)
    workloads = _chosen_workloads(options)
    settings = result.Settings(
        contenders=[kind.name for kind in contenders],
        workloads=[workload.name for workload in workloads],
        rounds=_or(options.rounds, 2 if quick else 5),
        seconds=_or(options.seconds, 1.0 if quick else 5.0),
        warmup_s=_or(options.warmup, 0.3 if quick else 1.0),
        sustained_s=_or(options.sustained, 3.0 if quick else 60.0),
        size_bytes=place.size_bytes,
        page_cache=PageCache(options.page_cache),
        is_quick=quick,
    )
    if settings.rounds < 1:
        raise UnusableOption("--rounds: at least 1")
    if settings.seconds < 0.1 or settings.warmup_s < 0 or settings.sustained_s < 0:
        raise UnusableOption("--seconds: at least 0.1; --warmup and --sustained: at least 0")
    long_run = _SUSTAINED_DEFAULT if settings.sustained_s > 0 else ()
    return Plan(contenders, workloads, long_run, settings)


def _run(options: argparse.Namespace) -> int:
    place = Place(options.dir, _size_of(options), options.nearstone)
    plan = _plan(options, place)
    warnings = requirement.check(
        plan.contenders,
        place,
        plan.settings.page_cache,
        draws_plots=not options.no_plots,
    )
    with Session(plan, place, warnings, _tell) as session:
        found = session.run()
    folder = options.output or _free_folder(is_quick=plan.settings.is_quick)
    folder.mkdir(parents=True, exist_ok=True)
    result.save(found, folder / "results.json")
    _save_fio_documents(session.fio_documents, folder / "fio.jsonl.gz")
    _draw(found, folder, with_plots=not options.no_plots)
    _tell(f"report: {folder / 'report.md'}")
    if options.json:
        json.dump(result.to_json(found), sys.stdout, indent=1)
        print()
    return 1 if found.failures else 0


def _render(options: argparse.Namespace) -> int:
    try:
        found = result.load(options.render / "results.json")
    except (OSError, ValueError) as error:
        raise UnusableOption(f"--render: {error}") from error
    _draw(found, options.render, with_plots=not options.no_plots)
    _tell(f"report: {options.render / 'report.md'}")
    return 0


def _draw(found: result.BenchmarkResult, folder: Path, *, with_plots: bool) -> None:
    plots = plot.draw_all(found, folder) if with_plots else []
    (folder / "report.md").write_text(report.render(found, plots))


def _free_folder(*, is_quick: bool) -> Path:
    """Return a folder of today that does not exist; quick runs go where nobody commits them."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    base = f"quick-{today}" if is_quick else today
    number = 1
    while (folder := _RESULTS / (base if number == 1 else f"{base}-{number}")).exists():
        number += 1
    return folder


def _save_fio_documents(documents: Sequence[dict[str, Any]], path: Path) -> None:
    """Write fio's own JSON, one run a line, without the finest histograms (they are bulky)."""
    # mtime 0: the same documents give the same file.
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        for document in documents:
            line = json.dumps(_without_bins(document), separators=(",", ":"))
            file.write(line.encode() + b"\n")


def _without_bins(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_bins(item) for key, item in value.items() if key != "bins"}
    if isinstance(value, list):
        return [_without_bins(item) for item in value]
    return value


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
