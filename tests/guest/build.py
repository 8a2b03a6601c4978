"""Makes what the guests boot: ``python -m tests.guest.build FOLDER``.

::

    FOLDER/vmlinuz      Debian's kernel for clouds, unpacked from its package, never installed
    FOLDER/initramfs    busybox, the kernel's modules, the tools of `TOOLS` with their libraries
    FOLDER/disk.img     a whole disk: MBR, a FAT partition with boot loader, kernel and initramfs,
                        an ext4 partition with the root file system
    FOLDER/libvirt-schemas  what libvirt accepts as XML

The tools are those of this machine, which `make setup` installs. The package's list is fetched into
the folder too, so that no root is needed and a stale list of the machine does no harm.
"""

import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_SOURCES: Final = Path(__file__).parent
_PATH: Final = f"{os.environ['PATH']}:/usr/sbin:/sbin"

TOOLS: Final = (
    "e2fsck",
    "mkfs.ext4",
    "mkfs.xfs",
    "nbd-client",
    "resize2fs",
    "sfdisk",
    "sqlite3",
    "xfs_growfs",
    "xfs_io",
    "xfs_repair",
)
"""What the guests run besides busybox."""

MODULES: Final = (
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "virtio_net",
    "virtio_rng",
    "sd_mod",
    "ext4",
    "xfs",
    "nbd",
)
"""Loaded by the guests when they start."""

_METADATA_PACKAGE: Final = "linux-image-cloud-amd64"
_MIB: Final = 1 << 20
_SECTOR_BYTES: Final = 512
_BOOT_START_BYTES: Final = _MIB
_BOOT_BYTES: Final = 63 * _MIB
_ROOT_BYTES: Final = 64 * _MIB


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """What the command printed. Raises: RuntimeError with what it complained of."""
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PATH": _PATH, "MTOOLS_SKIP_CHECK": "1"},
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
    return done.stdout


def _program(name: str) -> Path:
    path = shutil.which(name, path=_PATH)
    if path is None:
        raise RuntimeError(f"{name} is missing; `make setup` installs it")
    return Path(path)


def fetch(folder: Path) -> tuple[Path, Path]:
    """Unpack the newest kernel and libvirt's library, which brings the schema of its XML, from the
    machine's package sources into `folder`. Returns: where they are."""
    state = folder / "apt"
    (state / "lists" / "partial").mkdir(parents=True)
    (state / "archives" / "partial").mkdir(parents=True)
    # As whoever we are: apt's own user may not write to this folder, and warns.
    options = [f"Dir::State::Lists={state}/lists", f"Dir::Cache={state}", "APT::Sandbox::User="]
    words = [word for option in options for word in ("-o", option)]
    run("apt-get", *words, "-q", "update")
    depends = run("apt-cache", *words, "depends", _METADATA_PACKAGE)
    found = re.search(r"Depends: (linux-image-\S+-cloud-amd64)$", depends, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{_METADATA_PACKAGE} names no kernel: {depends}")
    run("apt-get", *words, "-q", "download", found[1], "libvirt0", cwd=state)
    unpacked = folder / "kernel", folder / "libvirt"
    for name, target in zip(("linux-image", "libvirt0"), unpacked, strict=True):
        (package,) = state.glob(f"{name}*.deb")
        run("dpkg-deb", "-x", package, target)
    shutil.rmtree(state)
    return unpacked


def copy_modules(kernel: Path, root: Path) -> None:
    """Copy `MODULES` and what they depend on from an unpacked kernel."""
    (version,) = [path.name for path in (kernel / "lib" / "modules").iterdir()]
    run("busybox", "depmod", "-b", kernel, version)
    source = kernel / "lib" / "modules" / version
    paths = {}
    depends = {}
    for line in (source / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        name = _module_name(path)
        paths[name] = path
        depends[name] = [_module_name(other) for other in others.split()]
    builtin = {_module_name(line) for line in (source / "modules.builtin").read_text().split()}
    wanted = [name for name in MODULES if name not in builtin]
    target = root / "lib" / "modules" / version
    while wanted:
        name = wanted.pop()
        place = target / paths[name]
        if place.exists():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / paths[name], place)
        wanted += depends[name]
    run("busybox", "depmod", "-b", root, version)
    (root / "etc").mkdir(exist_ok=True)
    names = [name for name in MODULES if name not in builtin]
    (root / "etc" / "modules").write_text("\n".join(names) + "\n")


def _module_name(path: str) -> str:
    return Path(path).name.partition(".")[0].replace("-", "_")


def copy_programs(root: Path, load: Path) -> None:
    """Busybox, `TOOLS`, our load and the shared libraries of them all."""
    for name in ("bin", "lib", "lib64", "dev", "proc", "sys", "run", "tmp", "mnt", "sbin"):
        (root / name).mkdir(exist_ok=True)
    shutil.copy(_program("busybox"), root / "bin" / "busybox")
    shutil.copy(load, root / "bin" / "verified-load")
    shutil.copy(_SOURCES / "init", root / "init")
    (root / "init").chmod(0o755)
    programs = [_program(name) for name in TOOLS]
    for program in programs:
        shutil.copy(program, root / "sbin" / program.name)
    for library in _libraries([load, *programs]):
        folder = "lib64" if library.name.startswith("ld-linux") else "lib"
        shutil.copy(library, root / folder / library.name)


def _libraries(programs: Iterable[Path]) -> set[Path]:
    printed = "".join(run("ldd", program) for program in programs)
    return {Path(path) for path in re.findall(r"(/\S+) \(0x", printed)}


def pack_initramfs(root: Path, archive: Path) -> None:
    """One cpio archive; not compressed, since the guest's processor may be an emulated one."""
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    with archive.open("wb") as file:
        subprocess.run(
            ["busybox", "cpio", "-o", "-H", "newc"],
            input="\n".join(names).encode(),
            stdout=file,
            stderr=subprocess.PIPE,
            cwd=root,
            check=True,
        )


def make_disk(folder: Path, root: Path) -> None:
    """A disk that a BIOS boots by itself: SYSLINUX in the first partition, root in the second."""
    boot, root_image = folder / "boot.img", folder / "root.img"
    config = folder / "syslinux.cfg"
    config.write_text(
        "default linux\nlabel linux\n  kernel vmlinuz\n  initrd initramfs\n"
        "  append console=ttyS0 quiet panic=-1 root=/dev/vda2\n"
    )
    # The number of sectors before the partition: the boot loader looks its files up with it.
    hidden = str(_BOOT_START_BYTES // _SECTOR_BYTES)
    run("mkfs.vfat", "-C", "-F", "32", "-h", hidden, boot, str(_BOOT_BYTES >> 10))
    run("syslinux", "--install", boot)
    run("mcopy", "-i", boot, config, folder / "vmlinuz", folder / "initramfs", "::")
    run("mkfs.ext4", "-q", "-F", "-d", root, root_image, f"{_ROOT_BYTES >> 10}k")
    partitions = [(0x80, 0x0C, _BOOT_START_BYTES, _BOOT_BYTES)]
    partitions.append((0x00, 0x83, _BOOT_START_BYTES + _BOOT_BYTES, _ROOT_BYTES))
    loader = Path("/usr/lib/syslinux/mbr/mbr.bin").read_bytes().ljust(446, b"\0")
    table = b"".join(
        struct.pack(
            "<B3sB3sII",
            flag,
            b"\xfe\xff\xff",
            kind,
            b"\xfe\xff\xff",
            start_bytes // _SECTOR_BYTES,
            length_bytes // _SECTOR_BYTES,
        )
        for flag, kind, start_bytes, length_bytes in partitions
    )
    with (folder / "disk.img").open("wb") as disk:
        disk.write(loader + table.ljust(64, b"\0") + b"\x55\xaa")
        for (_, _, start_bytes, _), image in zip(partitions, (boot, root_image), strict=True):
            disk.seek(start_bytes)
            disk.write(image.read_bytes())
    for path in (boot, root_image, config):
        path.unlink()


def build(folder: Path) -> None:
    """Make everything anew in `folder`."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    kernel, libvirt = fetch(folder)
    shutil.copytree(libvirt / "usr" / "share" / "libvirt" / "schemas", folder / "libvirt-schemas")
    (image,) = (kernel / "boot").glob("vmlinuz-*")
    shutil.copy(image, folder / "vmlinuz")
    load = folder / "verified-load"
    run("rustc", "--edition", "2024", "-O", "-o", load, _SOURCES / "load.rs")
    root = folder / "root"
    root.mkdir()
    copy_programs(root, load)
    copy_modules(kernel, root)
    pack_initramfs(root, folder / "initramfs")
    make_disk(folder, root)
    for path in (kernel, libvirt, root):
        shutil.rmtree(path)


if __name__ == "__main__":
    build(Path(sys.argv[1]).resolve())
