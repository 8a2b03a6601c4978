"""The recipes of ``disk attach``, each held against the program that it is for where it is here."""

import shlex
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.console.conftest import Cli
from tests.serving import Server


def recipe(cli: Cli, target: str, name: str = "vm1") -> str:
    outcome = cli("disk", "attach", name, "--as", target)
    assert outcome.status == 0, outcome
    return outcome.out


def run_program(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_qemu_takes_the_line(cli: Cli, pool_dir: Path) -> None:
    cli("disk", "create", "vm1", "1M")
    with Server(pool_dir):
        words = shlex.split(recipe(cli, "qemu").replace("\\\n", ""))
        assert words[::2] == ["-blockdev", "-device"]
        blockdev = words[1]
        opened = run_program(["qemu-io", "--image-opts", blockdev, "-c", "read 0 1M"])
        assert "read 1048576/1048576" in opened
    for setting in ("reconnect-delay=", "discard=unmap", "detect-zeroes=unmap"):
        assert setting in blockdev
    device = words[3].split(",")
    assert device[0] == "virtio-blk-pci"
    assert {"drive=nearstone-1", "werror=stop", "rerror=stop"} <= set(device)


def test_libvirt_gets_a_whole_element(cli: Cli, pool_dir: Path) -> None:
    cli("disk", "create", "vm1", "1M")
    disk = ET.fromstring(recipe(cli, "libvirt"))
    assert (disk.tag, disk.attrib) == ("disk", {"type": "network", "device": "disk"})
    driver = disk.find("driver")
    source = disk.find("source")
    assert driver is not None
    assert source is not None
    assert driver.attrib == {
        "name": "qemu",
        "type": "raw",
        "cache": "none",
        "error_policy": "stop",
        "rerror_policy": "stop",
        "discard": "unmap",
        "detect_zeroes": "unmap",
    }
    assert source.attrib == {"protocol": "nbd", "name": "vm1"}
    parts = {child.tag: child.attrib for child in source}
    assert parts["host"] == {"transport": "unix", "socket": f"{pool_dir}/nbd.sock"}
    assert int(parts["reconnect"]["delay"]) > 0


def test_fio_takes_the_line(cli: Cli, pool_dir: Path) -> None:
    cli("disk", "create", "vm1", "1M")
    with Server(pool_dir):
        words = shlex.split(recipe(cli, "fio"))
        report = run_program([*words, "--runtime=1", f"--aux-path={pool_dir.parent}"])
    assert "err= 0" in report


def test_nbd_client(cli: Cli, pool_dir: Path) -> None:
    cli("disk", "create", "vm1", "1M")
    words = shlex.split(recipe(cli, "nbd-client"))
    assert words[words.index("-unix") + 1] == f"{pool_dir}/nbd.sock"
    assert words[words.index("-name") + 1] == "vm1"


@pytest.mark.parametrize("folder_name", ["a b", "a,b", "a&b=c", "ä?#%41", "it's"])
def test_strange_folders(bare: Cli, folder: Path, folder_name: str) -> None:
    pool = folder / folder_name

    def cli(*arguments: object) -> object:
        return bare("--pool", pool, *arguments)

    bare("--pool", pool, "disk", "create", "vm1", "1M")
    with Server(pool):
        blockdev = shlex.split(recipe(cli, "qemu"))[1]  # type: ignore[arg-type]
        run_program(["qemu-io", "--image-opts", blockdev, "-c", "read 0 512"])
        uri = bare("--pool", pool, "disk", "attach", "vm1", "--as", "fio", "--json").json["uri"]
        assert run_program(["nbdinfo", "--size", uri]).strip() == str(1 << 20)
        status = bare("--pool", pool, "pool", "status", "--json").json
        assert len(status["uris"]) == 1
    disk = ET.fromstring(recipe(cli, "libvirt"))  # type: ignore[arg-type]
    host = disk.find("source/host")
    assert host is not None
    assert host.get("socket") == f"{pool}/nbd.sock"


def test_another_socket_of_the_server(cli: Cli, folder: Path, pool_dir: Path) -> None:
    cli("disk", "create", "vm1", "1M")
    with Server(pool_dir, "--socket", str(folder / "other.sock")):
        assert f"server.path={folder}/other.sock," in recipe(cli, "qemu")


def test_whether_a_server_runs_is_said(cli: Cli, pool_dir: Path) -> None:
    cli("disk", "create", "vm1", "1M")
    assert "no server runs" in cli("disk", "attach", "vm1", "--as", "qemu").err
    with Server(pool_dir):
        assert cli("disk", "attach", "vm1", "--as", "qemu").err == ""


def test_the_keys_of_json_are_stable(cli: Cli) -> None:
    cli("disk", "create", "vm1", "1M")
    attached = cli("disk", "attach", "vm1", "--as", "nbd-client", "--json").json
    assert set(attached) == {"name", "as", "uri", "text"}
