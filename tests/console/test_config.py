"""Which settings win, and what is said about wrong ones."""

from pathlib import Path

import pytest

from console import config
from console.config import load_config
from storage.errors import BadConfig
from storage.units import GIB, MIB
from tests.console.conftest import Cli


@pytest.fixture
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    path = tmp_path / "home" / "nearstone" / "config.toml"
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def system_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "etc.toml"
    monkeypatch.setattr(config, "SYSTEM_CONFIG", path)
    return path


def test_nothing_is_set() -> None:
    assert (load_config().pool, load_config().memory) == (None, None)


def test_the_nearer_source_wins(
    user_file: Path, system_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system_file.write_text('pool = "/system"\nmemory = "1G"\n')
    assert load_config().pool == Path("/system")
    user_file.write_text('pool = "/user"\n')
    assert (load_config().pool, load_config().memory) == (Path("/user"), GIB)
    monkeypatch.setenv("NEARSTONE_POOL", "/variable")
    monkeypatch.setenv("NEARSTONE_MEMORY", "64MiB")
    assert (load_config().pool, load_config().memory) == (Path("/variable"), 64 * MIB)


def test_the_home_folder_is_understood(user_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    user_file.write_text('pool = "~/pool"\n')
    assert load_config().pool == Path("/home/me/pool")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("pool = \n", "line 1"),
        ('memory = "-1G"', "memory: '-1G' is not a usable size"),
        ('memry = "1G"', "memry: there is no such setting"),
        ("pool = 7", "pool: "),
        ('pool = "\udcff"', "utf-8"),
    ],
)
def test_a_wrong_file_is_named(user_file: Path, content: str, words: str) -> None:
    user_file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(BadConfig, match=words) as caught:
        load_config()
    assert caught.value.source == str(user_file)


@pytest.mark.parametrize("memory", ["lots", "", "-1G", "1K"])
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, memory: str) -> None:
    monkeypatch.setenv("NEARSTONE_MEMORY", memory)
    with pytest.raises(BadConfig, match=f"'{memory}'") as caught:
        load_config()
    assert caught.value.source == "NEARSTONE_MEMORY"


@pytest.mark.parametrize("memory", ["lots", "", "-1G", "1K"])
def test_a_wrong_option(bare: Cli, pool_dir: Path, memory: str) -> None:
    outcome = bare("serve", "--pool", pool_dir, f"--memory={memory}")
    assert (outcome.status, outcome.out) == (2, "")
    assert "is not a usable size" in outcome.err
    assert not pool_dir.exists()


def test_commands_find_the_pool_in_every_way(
    bare: Cli, pool_dir: Path, user_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare("pool", "init", pool_dir)
    assert bare("disk", "list", "--pool", pool_dir).status == 0
    user_file.write_text(f'pool = "{pool_dir}"\n')
    assert bare("disk", "list").status == 0
    monkeypatch.setenv("NEARSTONE_POOL", "/nowhere")
    assert bare("disk", "list").status == 2
    assert bare("disk", "list", "--pool", pool_dir).status == 0
