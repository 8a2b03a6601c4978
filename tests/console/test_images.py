"""``nearstone disk import`` and ``export``: whole, or as if they had never been."""

import contextlib
import hashlib
import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from console.app import EXIT_INTERRUPTED, EXIT_TERMINATED
from storage.units import MIB
from tests.console.conftest import Cli
from tests.serving import NEARSTONE, Server
from tests.system.loop_drive import mounted_drive

IMAGE_SIZE_BYTES = 24 * MIB
FORMATS = ("raw", "qcow2", "vmdk", "vhdx")


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def qemu_img(*arguments: object) -> str:
    command = ["qemu-img", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def raw(folder: Path) -> Path:
    """A sparse image: data at both ends, zeroes and holes between."""
    path = folder / "image.raw"
    with path.open("wb") as file:
        file.write(os.urandom(2 * MIB) + b"text " * 100_000 + bytes(MIB))
        file.seek(IMAGE_SIZE_BYTES - MIB)
        file.write(os.urandom(MIB))
    return path


@pytest.mark.parametrize("image_format", FORMATS)
def test_there_and_back(either: Cli, folder: Path, raw: Path, image_format: str) -> None:
    image = folder / f"image.{image_format}"
    if image_format != "raw":
        qemu_img("convert", "-O", image_format, raw, image)
    imported = either("disk", "import", "vm1", image, "--description", "words", "--json")
    assert imported.status == 0, imported
    assert imported.json["state"] == "ready"
    assert imported.json["size_bytes"] == IMAGE_SIZE_BYTES
    assert imported.json["source_format"] == image_format
    assert imported.json["stored_bytes"] < 6 * MIB
    back = folder / f"back.{image_format}"
    exported = either("disk", "export", "vm1", back, "--json")
    assert exported.status == 0, exported
    assert exported.json == {
        "name": "vm1",
        "path": str(back),
        "format": image_format,
        "size_bytes": IMAGE_SIZE_BYTES,
        "stored_bytes": back.stat().st_blocks * 512,
    }
    assert back.stat().st_blocks * 512 < 12 * MIB
    again = folder / "again.raw"
    qemu_img("convert", "-f", image_format, "-O", "raw", back, again)
    assert checksum(again) == checksum(raw)


def test_a_file_system_image_survives(cli: Cli, folder: Path) -> None:
    image, back = folder / "fs.img", folder / "back.img"
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", "-d", "/etc/apt", image], check=True)
    assert cli("disk", "import", "vm1", image).status == 0
    assert cli("disk", "export", "vm1", back).status == 0
    assert checksum(back) == checksum(image)
    subprocess.run(["/sbin/e2fsck", "-fn", back], check=True, capture_output=True)


def test_a_larger_disk_than_the_image(cli: Cli, folder: Path, raw: Path) -> None:
    assert cli("disk", "import", "vm1", raw, "--size", "64M").status == 0
    assert cli("disk", "show", "vm1", "--json").json["size_bytes"] == 64 * MIB
    back = folder / "back.raw"
    assert cli("disk", "export", "vm1", back).status == 0
    content = back.read_bytes()
    assert content[:IMAGE_SIZE_BYTES] == raw.read_bytes()
    assert not any(content[IMAGE_SIZE_BYTES:])


class TestRefusedImports:
    """One error, status 2, and no disk. Each runs with a server and without."""

    def refuse(self, cli: Cli, words: str, *arguments: object) -> None:
        outcome = cli("disk", "import", *arguments)
        assert (outcome.status, outcome.out) == (2, "")
        assert words in outcome.err
        assert "Traceback" not in outcome.err
        assert len(outcome.err.splitlines()) == 2
        assert cli("disk", "list", "--json").json == []

    @pytest.mark.parametrize("path", ["/nowhere", "/etc", "/etc/passwd"])
    def test_no_image(self, either: Cli, path: str) -> None:
        self.refuse(either, f"{path} cannot be read as an image", "vm1", path)

    def test_not_of_that_format(self, either: Cli, raw: Path) -> None:
        for image_format in FORMATS[1:]:
            self.refuse(either, "cannot be read", "vm1", raw, "--format", image_format)

    def test_cut_off(self, either: Cli, folder: Path, raw: Path) -> None:
        image = folder / "image.qcow2"
        qemu_img("convert", "-O", "qcow2", raw, image)
        image.write_bytes(image.read_bytes()[: 700 * 1024])
        outcome = either("disk", "import", "vm1", image)
        assert outcome.status in (0, 2)  # qemu-img reads what is cut off as zeroes, or refuses
        if outcome.status:
            assert either("disk", "list", "--json").json == []

    def test_garbage_with_the_right_magic(self, either: Cli, folder: Path) -> None:
        image = folder / "image.qcow2"
        image.write_bytes(b"QFI\xfb\0\0\0\3" + b"\xa5" * 5000)
        self.refuse(either, "cannot be read", "vm1", image)

    def test_a_format_that_we_do_not_take(self, either: Cli, folder: Path) -> None:
        image = folder / "image.vdi"
        qemu_img("create", "-f", "vdi", image, "1M")
        self.refuse(either, "its format is vdi", "vm1", image)

    def test_references_to_other_files(self, either: Cli, folder: Path, raw: Path) -> None:
        secret = folder / "secrets" / "key"
        secret.parent.mkdir()
        secret.write_bytes(os.urandom(MIB))
        backed, flat = folder / "backed.qcow2", folder / "flat.vmdk"
        qemu_img("create", "-f", "qcow2", "-b", secret, "-F", "raw", backed)
        self.refuse(either, "refers to another file", "vm1", backed)
        external = folder / "external.qcow2"
        qemu_img("create", "-f", "qcow2", "-o", f"data_file={secret}", external, "1M")
        self.refuse(either, "refers to another file", "vm1", external)
        qemu_img("create", "-f", "vmdk", "-o", "subformat=monolithicFlat", flat, "1M")
        descriptor = flat.read_text(errors="surrogateescape")
        flat.write_text(descriptor.replace("flat-flat.vmdk", str(secret)), errors="surrogateescape")
        self.refuse(either, "refers to another file", "vm1", flat)

    def test_a_size_below_the_image(self, either: Cli, raw: Path) -> None:
        self.refuse(either, "the disk in the image has", "vm1", raw, "--size", "1M")

    def test_an_absurd_size(self, either: Cli, raw: Path) -> None:
        for size in ("-1G", "300T", "x"):
            self.refuse(either, "is not a usable size", "vm1", raw, "--size", size)

    def test_a_bad_name(self, either: Cli, raw: Path) -> None:
        self.refuse(either, "cannot name a disk", "a b", raw)

    def test_qemu_img_is_missing(
        self, either: Cli, raw: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        self.refuse(either, "qemu-img is not installed", "vm1", raw)

    def test_a_taken_name(self, either: Cli, raw: Path) -> None:
        made = either("disk", "create", "vm1", "1M", "--json").json
        outcome = either("disk", "import", "vm1", raw)
        assert outcome.status == 2
        assert "exists already" in outcome.err
        listed = either("disk", "list", "--json").json
        assert [(disk["id"], disk["size_bytes"]) for disk in listed] == [(made["id"], MIB)]


class TestRefusedExports:
    """One error, status 2, and no file."""

    def test_what_cannot_be_written(self, either: Cli, folder: Path) -> None:
        either("disk", "create", "vm1", "1M")
        taken = folder / "taken"
        taken.write_text("mine")
        os.mkfifo(folder / "fifo")
        for arguments, words in (
            ((taken,), "exists already"),
            ((folder,), "it is a folder"),
            ((folder / "no" / "file",), "No such file or directory"),
            ((folder / "fifo", "--force"), "not a regular file"),
            (("/proc/file",), "/proc/file cannot be written"),
            ((folder / ("x" * 300),), "File name too long"),
        ):
            before = sorted(folder.iterdir())
            outcome = either("disk", "export", "vm1", *arguments)
            assert (outcome.status, outcome.out) == (2, ""), outcome
            assert words in outcome.err
            assert sorted(folder.iterdir()) == before
        assert taken.read_text() == "mine"
        assert either("disk", "export", "vm1", taken, "--force").status == 0
        assert taken.stat().st_size == MIB

    def test_qemu_img_is_missing(
        self, either: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        either("disk", "create", "vm1", "1M")
        monkeypatch.setenv("PATH", "/nowhere")
        outcome = either("disk", "export", "vm1", folder / "file")
        assert outcome.status == 2
        assert "qemu-img is not installed" in outcome.err
        assert not (folder / "file").exists()


# Stands in for qemu-img: copies a little, says so, and then hangs, or fails in a given way.
FAKE_QEMU_IMG = """#!/bin/sh
if [ "$1" != convert ]; then exec {real} "$@"; fi
for target; do :; done
case "$target" in
nbd*) qemu-io -f raw -c 'write -P 7 0 1M' "$target" > /dev/null ;;
*) echo half > "$target" ;;
esac
printf '    (50.00/100%%)\\r'
touch {started}
{ending}
"""


@pytest.fixture
def broken_qemu_img(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A qemu-img that hangs; returns the file that appears when it has got that far."""
    return put_qemu_img(folder, monkeypatch, "exec sleep 60")


def put_qemu_img(folder: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> Path:
    programs, started = folder / "bin", folder / "started"
    programs.mkdir()
    script = programs / "qemu-img"
    script.write_text(
        FAKE_QEMU_IMG.format(real="/usr/bin/qemu-img", started=started, ending=ending)
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return started


def wait_for(path: Path) -> None:
    for _ in range(3000):
        if path.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} does not appear")


def wait_until_empty(cli: Cli) -> None:
    for _ in range(1000):
        if cli("disk", "list", "--json").json == []:
            return
        time.sleep(0.05)
    raise AssertionError("the disk is still there")


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, EXIT_INTERRUPTED),
        (signal.SIGTERM, EXIT_TERMINATED),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_an_interrupted_import_is_undone(
    either: Cli,
    pool_dir: Path,
    raw: Path,
    broken_qemu_img: Path,
    number: signal.Signals,
    status: int,
) -> None:
    with subprocess.Popen(
        [NEARSTONE, "--pool", pool_dir, "disk", "import", "vm1", raw], stderr=subprocess.PIPE
    ) as process:
        wait_for(broken_qemu_img)
        process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == status
    assert b"Traceback" not in err
    wait_until_empty(either)
    assert not any((pool_dir / "anchors").iterdir())


def test_an_import_in_progress_is_seen_and_cannot_be_changed(
    cli: Cli, pool_dir: Path, raw: Path, broken_qemu_img: Path
) -> None:
    cli("pool", "init")
    with Server(pool_dir):
        with subprocess.Popen(
            [NEARSTONE, "--pool", pool_dir, "disk", "import", "vm1", raw], stderr=subprocess.PIPE
        ) as process:
            wait_for(broken_qemu_img)
            assert cli("disk", "list", "--json").json[0]["state"] == "importing"
            assert "it is importing" in cli("disk", "rename", "vm1", "vm2").err
            assert cli("disk", "import", "vm1", raw).status == 2
            process.send_signal(signal.SIGINT)
            process.communicate()
        wait_until_empty(cli)


@pytest.mark.parametrize(
    ("complaint", "status", "class_name"),
    [
        ("error while writing at byte 1: No space left on device", 3, "NoSpace"),
        ("error while writing at byte 1: Input/output error", 3, "ToolFailed"),
        ("error while reading at byte 1: Input/output error", 2, "UnreadableImage"),
        ("", 3, "ToolFailed"),
    ],
)
def test_a_failed_import_is_undone(
    either: Cli,
    folder: Path,
    raw: Path,
    monkeypatch: pytest.MonkeyPatch,
    complaint: str,
    status: int,
    class_name: str,
) -> None:
    put_qemu_img(folder, monkeypatch, f"echo 'qemu-img: {complaint}' >&2; exit 1")
    outcome = either("disk", "import", "vm1", raw, "--json")
    assert outcome.status == status
    assert outcome.json["error"]["class"] == class_name
    assert either("disk", "list", "--json").json == []


@pytest.mark.parametrize("has_server", [False, True])
def test_a_full_drive_is_one_error_and_nothing_stays(
    bare: Cli, folder: Path, has_server: bool
) -> None:
    image = folder / "image.raw"
    image.write_bytes(os.urandom(48 * MIB))
    with mounted_drive(folder / "drive", 32 * MIB) as drive:
        pool = drive.place / "pool"
        bare("--pool", pool, "pool", "init")
        with Server(pool) if has_server else contextlib.nullcontext():
            outcome = bare("--pool", pool, "disk", "import", "vm1", image)
            assert (outcome.status, outcome.out) == (3, "")
            assert f"pool {pool} is out of space" in outcome.err
            assert len(outcome.err.splitlines()) == 2
            assert bare("--pool", pool, "disk", "list", "--json").json == []
            image.write_bytes(os.urandom(8 * MIB))
            assert bare("--pool", pool, "disk", "import", "vm1", image).status == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing(
    either: Cli, folder: Path, pool_dir: Path, broken_qemu_img: Path, number: signal.Signals
) -> None:
    either("disk", "create", "vm1", "1M")
    target = folder / "target"
    target.write_text("mine")
    with subprocess.Popen(
        [NEARSTONE, "--pool", pool_dir, "disk", "export", "vm1", target, "--force"],
        stderr=subprocess.PIPE,
    ) as process:
        wait_for(broken_qemu_img)
        process.send_signal(number)
        process.communicate()
    assert process.returncode > 128
    assert target.read_text() == "mine"
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_failed_export_leaves_nothing(
    either: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    either("disk", "create", "vm1", "1M")
    put_qemu_img(folder, monkeypatch, "echo 'qemu-img: disk on fire' >&2; exit 1")
    outcome = either("disk", "export", "vm1", folder / "target")
    assert outcome.status == 3
    assert "disk on fire" in outcome.err
    assert not (folder / "target").exists()
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_an_export_of_a_disk_in_use_says_so(cli: Cli, folder: Path, pool_dir: Path) -> None:
    cli("disk", "create", "vm1", "1M")
    with Server(pool_dir) as server:
        client = server.connect("vm1")
        outcome = cli("disk", "export", "vm1", folder / "target")
        assert outcome.status == 0
        assert "in use" in outcome.err
        client.shutdown()


def test_a_server_on_another_socket(cli: Cli, folder: Path, pool_dir: Path, raw: Path) -> None:
    cli("pool", "init")
    with Server(pool_dir, "--socket", str(folder / "other.sock")):
        assert cli("disk", "import", "vm1", raw).status == 0
        assert cli("disk", "export", "vm1", folder / "back").status == 0
    assert checksum(folder / "back") == checksum(raw)
