"""What can be wrong with an installation, one line each.

The chain that must hold: nbdkit is there, has its Python plugin, embeds the same Python that made
this environment, finds this environment's packages, can load the core, and can serve. Every link is
tested by using it; a link is only tested when the one it hangs on holds, so that one fault gives
one finding. `nearstone doctor` prints the results.
"""

import ctypes
import errno
import importlib
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from nbd_plugin import dataplane
from storage.errors import StorageError, ToolMissing

NBDKIT_VERSION_MIN: Final = (1, 32)
"""The oldest whose Python callbacks we know: `block_size` and `cleanup` with API version 2."""

_SYSTEM_PYTHON: Final = Path("/usr/bin/python3")
_PROBE_TIMEOUT_S: Final = 60
_OPEN_FILES_MIN: Final = 4096

_FALLOC_FL_KEEP_SIZE: Final = 0x01
_FALLOC_FL_PUNCH_HOLE: Final = 0x02

# program, Debian's package, what is missing without it
_TOOLS: Final = (
    ("nbdinfo", "libnbd-bin", "looking at disks from the shell"),
    ("nbdcopy", "libnbd-bin", "copying disks from the shell"),
    ("qemu-img", "qemu-utils", "`disk import` and `disk export`"),
    ("fio", "fio", "`make bench`"),
    ("certtool", "gnutls-bin", "making TLS certificates"),
    ("psktool", "gnutls-bin", "making TLS pre-shared keys"),
)


@dataclass(frozen=True)
class CheckResult:
    """One finding.

    detail: what was found, in one line. fix: what to do about it, empty when there is nothing to
    do. is_required: whether serving needs it; what is not required only takes something away.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""
    is_required: bool = True


class Finding(Exception):  # noqa: N818  it is a result, not an error
    """Ends a check."""

    def __init__(self, detail: str, fix: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fix = fix


def run_checks(pool: Path | None = None) -> list[CheckResult]:
    """Examine this installation, and the folder `pool` when one is given. Changes nothing.

    Returns: the results in the order in which things depend on each other.
    """
    results: list[CheckResult] = []
    chain: tuple[tuple[str, Callable[[], str]], ...] = (
        ("nbdkit", _nbdkit),
        ("nbdkit python plugin", _python_plugin),
        ("python", _python),
        ("core", _core),
        ("nbdkit finds nearstone", _plugin_loads),
        ("serving", _serving),
    )
    for name, check in chain:
        results.append(_check(name, check))
        if not results[-1].ok:
            break
    results.append(_check("command", _command_on_path, is_required=False))
    results.append(_check("open files", _open_files, is_required=False))
    results.extend(_tools())
    if pool is not None:
        results.append(_check("pool folder", lambda: _pool_folder(pool)))
    return results


def _check(name: str, check: Callable[[], str], is_required: bool = True) -> CheckResult:
    try:
        return CheckResult(name, True, check(), is_required=is_required)
    except Finding as finding:
        return CheckResult(name, False, finding.detail, finding.fix, is_required)


# ---------------------------------------------------------------------------------- the chain


def _python() -> str:
    """This environment was made by the Python that nbdkit embeds, the distribution's."""
    version = platform.python_version()
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    if _SYSTEM_PYTHON.exists() and base != _SYSTEM_PYTHON.resolve():
        raise Finding(
            f"{sys.prefix} belongs to {base}, which is not the Python that nbdkit embeds",
            f"make it anew with {_SYSTEM_PYTHON} -m venv (in a checkout: make clean build)",
        )
    return f"{version} in {sys.prefix}"


def _nbdkit() -> str:
    try:
        path = dataplane.find_nbdkit()
    except ToolMissing as exc:
        raise Finding("not installed", _apt(exc.package)) from exc
    text = _run([path, "--version"]).stdout
    found = re.search(r"nbdkit (\d+)\.(\d+)\S*", text)
    if found is None:
        raise Finding(f"{path} does not say its version", "install nbdkit anew")
    if (int(found[1]), int(found[2])) < NBDKIT_VERSION_MIN:
        wanted = ".".join(map(str, NBDKIT_VERSION_MIN))
        raise Finding(f"{found[0]} is too old", f"install nbdkit {wanted} or newer")
    return f"{found[0].removeprefix('nbdkit ')} at {path}"


def _python_plugin() -> str:
    """The plugin is there and embeds a Python of our version."""
    probe = _run([dataplane.find_nbdkit(), "python", "--dump-plugin"])
    embedded = _facts(probe.stdout).get("python_version")
    if probe.returncode != 0 or embedded is None:
        raise Finding("nbdkit has no Python plugin", _apt("nbdkit-plugin-python"))
    major, minor = embedded.split(".")[:2]
    if (int(major), int(minor)) != sys.version_info[:2]:
        raise Finding(
            f"nbdkit embeds Python {embedded}, this environment has {platform.python_version()}",
            f"make the environment anew with {_SYSTEM_PYTHON} -m venv",
        )
    return f"embeds Python {embedded}"


def _core() -> str:
    """The extension can be loaded and is what the sources say."""
    folder = Path(importlib.import_module("storage").__file__ or "").parent
    return check_core(folder, lambda: importlib.import_module("storage._core"))


def check_core(folder: Path, load: Callable[[], ModuleType]) -> str:
    """Examine the extension in the package's folder.

    Args: load: imports it.
    Returns: what it is. Raises: Finding
    """
    rebuild = "build it (in a checkout: make build; else install the package anew)"
    files = sorted(folder.glob("_core*.so"))
    if not files:
        raise Finding(f"the Rust core is missing: no _core*.so in {folder}", rebuild)
    try:
        core = load()
    except ImportError as exc:
        raise Finding(f"{files[0]} cannot be loaded: {exc}", rebuild) from exc
    installed = importlib.metadata.version("nearstone")
    if installed != core.CORE_VERSION:
        raise Finding(f"release {core.CORE_VERSION}, but the rest is {installed}", rebuild)
    newest = max((path.stat().st_mtime for path in _core_sources(folder)), default=0.0)
    if newest > files[0].stat().st_mtime:
        raise Finding(f"{files[0].name} is older than the Rust sources beside it", rebuild)
    return f"{core.CORE_VERSION}, {files[0].name}"


def _core_sources(folder: Path) -> Iterator[Path]:
    """The Rust sources in a checkout; nothing in an installed package."""
    yield from folder.glob("core/src/**/*.rs")
    yield from folder.glob("core/Cargo.toml")


def _plugin_loads() -> str:
    """Nbdkit's own Python, started as the launcher starts it, imports all that the plugin needs."""
    command = [dataplane.find_nbdkit(), "python", str(dataplane.PLUGIN), "--dump-plugin"]
    probe = _run(command, dataplane.environment())
    facts = _facts(probe.stdout)
    if probe.returncode < 0:
        name = signal.Signals(-probe.returncode).name
        raise Finding(f"nbdkit is ended by {name} when it loads the plugin", "report it")
    if probe.returncode != 0 or "nearstone_environment" not in facts:
        reasons = [line.strip() for line in probe.stderr.splitlines() if "Error" in line]
        raise Finding(
            f"nbdkit's Python cannot load it: {' '.join(reasons[:1]) or 'it does not say why'}",
            f"see all of it: PATH={sys.prefix}/bin:$PATH {' '.join(command)}",
        )
    if not Path(facts["nearstone_environment"]).samefile(sys.prefix):
        raise Finding(
            f"nbdkit's Python takes {facts['nearstone_environment']} for its environment",
            f"check {sys.prefix}/bin/python3 and {sys.prefix}/pyvenv.cfg",
        )
    return f"in {facts['nearstone_environment']}"


def _serving() -> str:
    """A server on a throwaway pool comes up and goes down."""
    from nbd_plugin.launcher import private_server  # needs the core, checked before

    with tempfile.TemporaryDirectory(prefix="nearstone-doctor-") as folder:
        try:
            with private_server(Path(folder, "pool")):
                pass
        except StorageError as exc:
            raise Finding(exc.problem, exc.next_step) from exc
    return "a server on a throwaway pool started and stopped"


# -------------------------------------------------------------------------- what stands around


def _command_on_path() -> str:
    own = Path(sys.prefix, "bin", "nearstone")
    found = shutil.which("nearstone")
    if found is None:
        return f"{own} (not on PATH: call it by its path)"
    if not own.exists() or not Path(found).samefile(own):
        raise Finding(
            f"`nearstone` on PATH is {found}, not the one that is running, {own}",
            f"put {own.parent} first on PATH, or call {own}",
        )
    return found


def _open_files() -> str:
    """The launcher raises the soft limit to the hard one; that must be enough."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _OPEN_FILES_MIN:
        raise Finding(
            f"a process may open only {hard} files",
            f"raise the hard limit to {_OPEN_FILES_MIN} or more (LimitNOFILE=, ulimit -Hn)",
        )
    return "no limit" if hard == resource.RLIM_INFINITY else f"up to {hard}"


def _tools() -> Iterator[CheckResult]:
    for program, package, purpose in _TOOLS:
        found = shutil.which(program)
        if found is None:
            yield CheckResult(
                program, False, f"missing: needed for {purpose}", _apt(package), False
            )
        else:
            yield CheckResult(program, True, found, is_required=False)


def _pool_folder(pool: Path) -> str:
    """The folder can be written, and its file system can give space back."""
    folder = pool if pool.exists() else pool.absolute().parent
    if not folder.is_dir():
        raise Finding(f"{folder} is not a folder", "give another --pool")
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
            _punch_hole(file.fileno(), 1 << 16)
    except OSError as exc:
        if exc.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise Finding(
                f"{folder}: its file system cannot punch holes, so space would not come back",
                "use ext4, XFS or Btrfs",
            ) from exc
        raise Finding(
            f"{folder} cannot be written: {os.strerror(exc.errno or 0)}",
            "check its owner, its permissions and the free space",
        ) from exc
    free_gib = shutil.disk_usage(folder).free / (1 << 30)
    return f"{pool.absolute()}, {free_gib:.1f} GiB free"


def _punch_hole(fd: int, length_bytes: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    if libc.fallocate(fd, mode, 0, length_bytes) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# --------------------------------------------------------------------------------------- tools


def _run(
    command: list[str], variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise Finding(f"`{' '.join(command)}` does not end", "run it by hand") from exc
    except OSError as exc:
        raise Finding(f"`{command[0]}` cannot be run: {exc.strerror}", "install it anew") from exc


def _facts(text: str) -> dict[str, str]:
    """The `key=value` lines of a dump."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _apt(package: str) -> str:
    return f"install it (Debian and Ubuntu: apt-get install {package})"
