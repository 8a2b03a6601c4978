"""The plugin's callbacks one by one, with a stand-in for the module that exists only in nbdkit."""

import errno
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbd_plugin.dataplane import PLUGIN
from nbd_plugin.stopping import Stopping
from storage import _core
from storage.control import ControlServer
from storage.errors import BadConfig, DiskNotFound, PoolClosed, PoolNotFound
from storage.pool import Pool

DISK_SIZE_BYTES = 1 << 30

CALLBACKS = [
    "dump_plugin",
    "config",
    "config_complete",
    "thread_model",
    "get_ready",
    "after_fork",
    "preconnect",
    "cleanup",
    "list_exports",
    "default_export",
    "open",
    "close",
    "export_description",
    "get_size",
    "block_size",
    "is_rotational",
    "can_write",
    "can_flush",
    "can_trim",
    "can_zero",
    "can_fast_zero",
    "can_fua",
    "can_multi_conn",
    "can_cache",
    "can_extents",
    "pread",
    "pwrite",
    "flush",
    "trim",
    "zero",
    "cache",
    "extents",
]


class Nbdkit(types.ModuleType):
    """The module `nbdkit` as far as the plugin uses it, with the values of nbdkit's headers."""

    THREAD_MODEL_PARALLEL = 3
    FUA_NATIVE = 2
    CACHE_NATIVE = 2

    def __init__(self) -> None:
        super().__init__("nbdkit")
        self.errors: list[int] = []
        self.name = ""
        self.shutdowns = 0

    def set_error(self, number: int) -> None:
        self.errors.append(number)

    def export_name(self) -> str:
        return self.name

    def parse_size(self, text: str) -> int:
        return int(text)

    def shutdown(self) -> None:
        self.shutdowns += 1


@pytest.fixture
def nbdkit(monkeypatch: pytest.MonkeyPatch) -> Nbdkit:
    stand_in = Nbdkit()
    monkeypatch.setitem(sys.modules, "nbdkit", stand_in)
    return stand_in


@pytest.fixture
def plugin(nbdkit: Nbdkit) -> types.ModuleType:
    """The script, loaded afresh."""
    spec = importlib.util.spec_from_file_location("plugin_under_test", PLUGIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pool(
    folder: Path, plugin: types.ModuleType, nbdkit: Nbdkit, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pool]:
    """An open pool with one disk, being served by the plugin."""
    Pool.init(folder / "pool")
    with Pool.open(folder / "pool") as pool, ControlServer(pool, folder / "c.sock") as control:
        pool.create_disk("one", DISK_SIZE_BYTES, "the first")
        server = plugin.Server(pool, control, Stopping(nbdkit.shutdown))
        monkeypatch.setattr(plugin, "server", server)
        yield pool


def test_every_callback_is_there(plugin: types.ModuleType) -> None:
    assert [name for name in CALLBACKS if not callable(getattr(plugin, name, None))] == []


@pytest.mark.parametrize("name", ["pread", "pwrite", "flush", "trim", "zero", "cache", "extents"])
def test_requests_never_meet_python(plugin: types.ModuleType, name: str) -> None:
    assert getattr(plugin, name) is getattr(_core, name)


def test_a_client_gets_the_disk_it_names(
    plugin: types.ModuleType, nbdkit: Nbdkit, pool: Pool
) -> None:
    nbdkit.name = "one"
    disk = plugin.open(False)
    assert plugin.get_size(disk) == DISK_SIZE_BYTES
    assert plugin.export_description(disk) == "the first"
    assert pool.list_disks()[0].clients == 1
    plugin.close(disk)
    assert pool.list_disks()[0].clients == 0


def test_an_unknown_name_is_enoent(plugin: types.ModuleType, nbdkit: Nbdkit, pool: Pool) -> None:
    nbdkit.name = "two"
    with pytest.raises(DiskNotFound):
        plugin.open(False)
    assert nbdkit.errors == [errno.ENOENT]


def test_a_disk_made_later_is_there(plugin: types.ModuleType, nbdkit: Nbdkit, pool: Pool) -> None:
    pool.create_disk("two", 4096)
    assert list(plugin.list_exports(False, False)) == [
        ("one", "the first"),
        ("two", "a disk of 4 KiB"),
    ]
    nbdkit.name = "two"
    assert plugin.get_size(plugin.open(False)) == 4096


def test_a_disk_that_is_imported_is_not_listed(plugin: types.ModuleType, pool: Pool) -> None:
    pool.create_disk("two", 4096, importing=True)
    assert [name for name, _ in plugin.list_exports(False, False)] == ["one"]


def test_the_only_disk_is_the_default(plugin: types.ModuleType, pool: Pool) -> None:
    assert plugin.default_export(False, False) == "one"
    pool.create_disk("two", 4096)
    assert plugin.default_export(False, False) == ""


def test_capabilities(plugin: types.ModuleType, nbdkit: Nbdkit, pool: Pool) -> None:
    nbdkit.name = "one"
    disk = plugin.open(False)
    assert plugin.block_size(disk) == (1, 4096, 32 << 20)
    assert plugin.is_rotational(disk) is False
    yes = ["write", "flush", "trim", "zero", "fast_zero", "multi_conn", "extents"]
    assert [name for name in yes if getattr(plugin, f"can_{name}")(disk) is not True] == []
    assert plugin.can_fua(disk) == nbdkit.FUA_NATIVE
    assert plugin.can_cache(disk) == nbdkit.CACHE_NATIVE
    assert plugin.thread_model() == plugin.THREAD_MODEL


def test_nobody_gets_in_before_the_pool_is_open(plugin: types.ModuleType, nbdkit: Nbdkit) -> None:
    for callback in (plugin.preconnect, plugin.open):
        with pytest.raises(PoolClosed):
            callback(False)
    assert nbdkit.errors == [errno.ESHUTDOWN, errno.ESHUTDOWN]


def test_an_unexpected_failure_is_eio(
    plugin: types.ModuleType, nbdkit: Nbdkit, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise RuntimeError

    monkeypatch.setattr(nbdkit, "export_name", fail)
    with pytest.raises(RuntimeError):
        plugin.open(False)
    assert nbdkit.errors == [errno.EIO]


def test_network_clients_need_tls_when_that_is_required(
    plugin: types.ModuleType, nbdkit: Nbdkit, pool: Pool
) -> None:
    # Outside nbdkit nobody can say where a client comes from: then it counts as the network.
    plugin.config("network-tls", "yes")
    nbdkit.name = "one"
    for callback, arguments in (
        (plugin.list_exports, (False, False)),
        (plugin.default_export, (False, False)),
        (plugin.open, (False,)),
    ):
        with pytest.raises(PermissionError):
            callback(*arguments)
    assert nbdkit.errors == [errno.EPERM] * 3
    assert plugin.default_export(False, True) == "one"


def test_configuration(plugin: types.ModuleType, folder: Path) -> None:
    with pytest.raises(BadConfig, match="pool=FOLDER"):
        plugin.config_complete()
    with pytest.raises(BadConfig, match="unknown"):
        plugin.config("pol", "x")
    with pytest.raises(BadConfig, match="'yes'"):
        plugin.config("network-tls", "please")
    plugin.config("pool", str(folder))
    plugin.config("memory", "1048576")
    plugin.config("environment", sys.prefix)
    plugin.config_complete()
    assert plugin.settings.memory_bytes == 1 << 20
    with pytest.raises(PoolNotFound):
        plugin.get_ready()


def test_another_python_is_noticed(plugin: types.ModuleType, folder: Path) -> None:
    plugin.config("pool", str(folder))
    plugin.config("environment", "/usr")
    with pytest.raises(BadConfig, match="PATH"):
        plugin.config_complete()


def test_tls_cannot_be_required_of_an_nbdkit_that_cannot_tell(
    plugin: types.ModuleType, folder: Path
) -> None:
    plugin.config("pool", str(folder))
    plugin.config("network-tls", "yes")
    with pytest.raises(BadConfig, match="TLS"):
        plugin.config_complete()


def test_the_dump_names_core_and_environment(
    plugin: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin.dump_plugin()
    dump = capsys.readouterr().out
    assert f"nearstone_core_version={_core.CORE_VERSION}\n" in dump
    assert f"nearstone_environment={sys.prefix}\n" in dump
