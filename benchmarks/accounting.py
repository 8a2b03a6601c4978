"""What the kernel has counted: CPU time and memory of a process and its children, of the machine.

CPU time comes in clock ticks of 10 ms, so a run of one second is exact to about 1 %. A server's
time does not include what the kernel does later on its behalf (writing back its dirty pages): that
is in the machine's time, and `other_cpu_s` of a run shows it.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class MachineCpu:
    """CPU time of the whole machine since boot, over all cores."""

    busy_s: float
    stolen_s: float  # taken away by the hypervisor for other guests


def parse_process_stat(text: str) -> tuple[int, float]:
    """Return (parent's pid, CPU seconds of the process and the children it has waited for).

    Args:
        text: a /proc/PID/stat line; the program's name in it may hold blanks and parentheses.
    """
    fields = text[text.rindex(")") + 2 :].split()
    # proc(5): fields[0] is field 3 (state); 14-17 are utime, stime, cutime, cstime.
    return int(fields[1]), sum(int(field) for field in fields[11:15]) / _TICKS_PER_S


def parse_machine_stat(text: str) -> MachineCpu:
    """Return the machine's CPU time from /proc/stat; idle and waiting for I/O are not busy."""
    fields = [int(field) / _TICKS_PER_S for field in text.split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields[:8]
    return MachineCpu(user + nice + system + irq + softirq, steal)


def machine_cpu() -> MachineCpu:
    """Return the machine's CPU time until now."""
    return parse_machine_stat((_PROC / "stat").read_text())


def birth_of(pid: int) -> int | None:
    """Return when a process began, in ticks since boot; None when it has ended.

    Together with its id this names one process for good, though ids are used anew.
    """
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _processes() -> dict[int, tuple[int, float]]:
    """Return parent and CPU seconds of every process of the machine."""
    found: dict[int, tuple[int, float]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = parse_process_stat((entry / "stat").read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
    return found


def _tree(root: int, processes: dict[int, tuple[int, float]]) -> set[int]:
    members = {root} & processes.keys()
    while grown := {pid for pid, (ppid, _) in processes.items() if ppid in members} - members:
        members |= grown
    return members


def tree_pids(root: int) -> set[int]:
    """Return `root` and all its living descendants; empty when `root` has ended."""
    return _tree(root, _processes())


def tree_cpu_s(roots: Iterable[int]) -> float:
    """Return the CPU seconds of all trees under `roots`.

    Children that ended count through the parent that waited for them, so a server that forks for
    each client (nbd-server) loses nothing.
    """
    processes = _processes()
    return sum(
        processes[pid][1] for pid in set().union(*(_tree(root, processes) for root in roots))
    )


def tree_run_ns(root: int) -> int:
    """Return the time on a CPU of all living threads under `root`, to the nanosecond.

    Finer than ticks, for a server that is idle; threads that ended are not in it.
    """
    total = 0
    for pid in tree_pids(root):
        for schedstat in (_PROC / str(pid) / "task").glob("*/schedstat"):
            try:
                total += int(schedstat.read_text().split()[0])
            except (FileNotFoundError, ProcessLookupError):
                continue
    return total


def tree_memory_bytes(root: int) -> int:
    """Return the anonymous and shared memory under `root` (file pages it has mapped are cache)."""
    total = 0
    for pid in tree_pids(root):
        try:
            status = (_PROC / str(pid) / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += parse_memory_status(status)
    return total


def parse_memory_status(text: str) -> int:
    """Return RssAnon + RssShmem in bytes from /proc/PID/status (0 for a kernel thread)."""
    return sum(
        int(line.split()[1]) * 1024
        for line in text.splitlines()
        if line.startswith(("RssAnon:", "RssShmem:"))
    )


def available_memory_bytes() -> int:
    """Return the memory that new programs could use without swapping."""
    for line in (_PROC / "meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable")
