"""The command line, called in this process; the settings of whoever runs the tests do not count."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from console import config
from console.app import run
from tests.serving import Server


@dataclass(frozen=True)
class Outcome:
    """How one command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The result, or the error if there is no result, as JSON."""
        return json.loads(self.out or self.err)


Cli = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("NEARSTONE_POOL", "NEARSTONE_MEMORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setattr(config, "SYSTEM_CONFIG", tmp_path / "nowhere" / "config.toml")


@pytest.fixture
def bare(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Calls ``nearstone`` with exactly the arguments given."""

    def call(*arguments: object) -> Outcome:
        status = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call


@pytest.fixture
def pool_dir(folder: Path) -> Path:
    """Where the pool will be; its path is short enough for sockets."""
    return folder / "pool"


@pytest.fixture
def cli(bare: Cli, pool_dir: Path) -> Cli:
    """Calls ``nearstone`` on the test's pool, with no server."""
    return lambda *arguments: bare("--pool", pool_dir, *arguments)


@pytest.fixture(params=["without a server", "with a server"])
def either(request: pytest.FixtureRequest, cli: Cli, pool_dir: Path) -> Iterator[Cli]:
    """Calls ``nearstone`` on the test's pool, once with a server and once without."""
    cli("pool", "init")
    if request.param == "without a server":
        yield cli
        return
    with Server(pool_dir):
        yield cli
