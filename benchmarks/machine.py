"""The machine a benchmark ran on, as far as a reader needs it to judge the figures."""

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders.base import first_line


@dataclass(frozen=True)
class Machine:
    """Hardware, kernel and tools."""

    processor: str
    cores: int
    memory_bytes: int
    is_virtual: bool
    kernel: str
    distribution: str
    drive: str
    file_system: str
    fio: str
    source: str  # commit of the checkout, "+changes" when it has uncommitted ones


def describe_machine(folder: Path) -> Machine:
    """Describe this machine and the drive that holds `folder`."""
    processor, is_virtual = _processor()
    device, file_system = _mount_of(folder)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        processor=processor,
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=pages,
        is_virtual=is_virtual,
        kernel=platform.release(),
        distribution=platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        drive=_drive(folder, device),
        file_system=file_system,
        fio=first_line(["fio", "--version"]),
        source=_source(),
    )


def _processor() -> tuple[str, bool]:
    text = Path("/proc/cpuinfo").read_text()
    fields = {
        name.strip(): value.strip()
        for name, _, value in (line.partition(":") for line in text.splitlines())
    }
    return fields.get("model name", platform.machine()), "hypervisor" in fields.get("flags", "")


def parse_mounts(text: str, path: str) -> tuple[str, str]:
    """Return (device, file system) of the mount in /proc/mounts that holds `path`."""
    best = ("unknown", "unknown")
    best_length = -1
    for line in text.splitlines():
        device, mount_point, kind = line.split()[:3]
        prefix = mount_point.rstrip("/") + "/"
        if (path + "/").startswith(prefix) and len(mount_point) >= best_length:
            best, best_length = (device, kind), len(mount_point)
    return best


def _mount_of(folder: Path) -> tuple[str, str]:
    return parse_mounts(Path("/proc/mounts").read_text(), str(folder.resolve()))


def _drive(folder: Path, device: str) -> str:
    """Return name, model, kind and I/O scheduler of the drive under `folder`."""
    number = folder.stat().st_dev
    block = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not block.exists():
        return device
    block = block.resolve()
    if (block / "partition").exists():
        block = block.parent
    parts = [block.name]
    for name, wording in (
        ("device/model", "{}"),
        ("queue/rotational", "rotational flag {}"),
        ("queue/scheduler", "scheduler {}"),
        ("queue/write_cache", "cache {}"),
    ):
        try:
            parts.append(wording.format((block / name).read_text().strip()))
        except OSError:
            continue
    return ", ".join(parts)


def _source() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True)
        except OSError:
            return ""
        return done.stdout.strip()

    commit = git("rev-parse", "--short", "HEAD")
    if not commit:
        return "unknown"
    return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
