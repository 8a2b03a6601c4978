"""The doctor names each thing that can be wrong with an installation, and only that."""

import os
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from console.doctor import CheckResult, Finding, check_core, run_checks
from storage import _core

WHAT_SERVING_NEEDS = [
    "nbdkit",
    "nbdkit python plugin",
    "python",
    "core",
    "nbdkit finds nearstone",
    "serving",
]

PutNbdkit = Callable[[str], None]


@pytest.fixture
def put_nbdkit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> PutNbdkit:
    """Put a shell script in the place of nbdkit."""

    def put(script: str) -> None:
        (folder / "nbdkit").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "nbdkit").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return put


def _failures(results: list[CheckResult]) -> list[CheckResult]:
    return [result for result in results if result.is_required and not result.ok]


def _only_failure() -> CheckResult:
    (failure,) = _failures(run_checks())
    assert failure.fix
    assert "\n" not in failure.detail + failure.fix
    return failure


def test_nothing_is_wrong_here(folder: Path) -> None:
    results = run_checks(folder / "pool")
    assert _failures(results) == []
    assert [result.name for result in results][:6] == WHAT_SERVING_NEEDS
    assert list(folder.iterdir()) == []


def test_no_nbdkit_and_no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "apt-get install nbdkit nbdkit-plugin-python" in _only_failure().fix
    missing = {result.name: result for result in run_checks() if not result.is_required}
    assert "apt-get install qemu-utils" in missing["qemu-img"].fix
    assert not missing["fio"].ok


def test_an_old_nbdkit(put_nbdkit: PutNbdkit) -> None:
    put_nbdkit("echo nbdkit 1.16.2")
    failure = _only_failure()
    assert failure.name == "nbdkit"
    assert "1.16.2 is too old" in failure.detail


def test_nbdkit_without_its_python_plugin(put_nbdkit: PutNbdkit) -> None:
    put_nbdkit("[ $1 = --version ] && echo nbdkit 1.32.5 && exit; echo cannot open >&2; exit 1")
    failure = _only_failure()
    assert failure.name == "nbdkit python plugin"
    assert "apt-get install nbdkit-plugin-python" in failure.fix


def test_nbdkit_with_another_python(put_nbdkit: PutNbdkit) -> None:
    put_nbdkit("[ $1 = --version ] && echo nbdkit 1.32.5 || echo python_version=3.9.2")
    failure = _only_failure()
    assert failure.name == "nbdkit python plugin"
    assert "embeds Python 3.9.2" in failure.detail


def test_nbdkit_that_does_not_find_us(put_nbdkit: PutNbdkit) -> None:
    put_nbdkit(
        "case $* in"
        " --version) echo nbdkit 1.32.5;;"
        " *plugin.py*) echo \"ModuleNotFoundError: No module named 'storage'\" >&2; exit 1;;"
        " *) echo python_version=3.11.2;;"
        "esac"
    )
    failure = _only_failure()
    assert failure.name == "nbdkit finds nearstone"
    assert "No module named 'storage'" in failure.detail
    assert "--dump-plugin" in failure.fix


def test_nbdkit_that_takes_another_environment(put_nbdkit: PutNbdkit) -> None:
    put_nbdkit(
        "case $* in"
        " --version) echo nbdkit 1.32.5;;"
        " *plugin.py*) echo nearstone_environment=/usr;;"
        " *) echo python_version=3.11.2;;"
        "esac"
    )
    failure = _only_failure()
    assert failure.name == "nbdkit finds nearstone"
    assert "/usr" in failure.detail


def test_nbdkit_that_dies_of_the_plugin(put_nbdkit: PutNbdkit) -> None:
    put_nbdkit(
        "case $* in"
        " --version) echo nbdkit 1.32.5;;"
        " *plugin.py*) kill -SEGV $$;;"
        " *) echo python_version=3.11.2;;"
        "esac"
    )
    assert "SIGSEGV" in _only_failure().detail


def test_a_server_that_does_not_come_up(put_nbdkit: PutNbdkit) -> None:
    put_nbdkit('case $* in *report-fd*) exit 1;; *) exec /usr/bin/nbdkit "$@";; esac')
    failure = _only_failure()
    assert failure.name == "serving"
    assert "ended with status 1" in failure.detail


def _finding(folder: Path, load: Callable[[], types.ModuleType]) -> str:
    with pytest.raises(Finding) as caught:
        check_core(folder, load)
    return caught.value.detail


def _cannot_load() -> types.ModuleType:
    raise ImportError("undefined symbol: PyNothing")


def test_the_core(folder: Path) -> None:
    assert "is missing" in _finding(folder, lambda: _core)
    (folder / "_core.abi3.so").touch()
    assert "undefined symbol" in _finding(folder, _cannot_load)
    other = types.ModuleType("_core")
    other.CORE_VERSION = "0.0.9"  # type: ignore[attr-defined]
    assert "release 0.0.9" in _finding(folder, lambda: other)
    assert _core.CORE_VERSION in check_core(folder, lambda: _core)


def test_a_core_older_than_its_sources(folder: Path) -> None:
    source = folder / "core" / "src" / "lib.rs"
    source.parent.mkdir(parents=True)
    source.touch()
    (folder / "_core.abi3.so").touch()
    os.utime(folder / "_core.abi3.so", (1, 1))
    assert "older than the Rust sources" in _finding(folder, lambda: _core)


def test_a_pool_folder_that_cannot_be_written() -> None:
    (failure,) = _failures(run_checks(Path("/proc/pool")))
    assert failure.name == "pool folder"
    assert "/proc cannot be written" in failure.detail


def test_another_nearstone_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "nearstone").write_text("#!/bin/sh\n")
    (folder / "nearstone").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    (result,) = [result for result in run_checks() if result.name == "command"]
    assert not result.ok
    assert str(folder) in result.detail
