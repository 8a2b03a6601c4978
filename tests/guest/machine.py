"""Virtual machines under QEMU, started and ended by a test."""

import contextlib
import itertools
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.guest.console import TIMEOUT_S, Console
from tests.guest.qmp import Qmp, connect_unix

ARTIFACTS: Final = Path(__file__).parents[2] / "build" / "guest"
"""What `make guest` makes; see `tests.guest.build`."""

_KERNEL_OPTIONS: Final = "console=ttyS0 quiet panic=-1"
_KVM_PROBE_TIMEOUT_S: Final = 20.0

_numbers = itertools.count()


@dataclass(frozen=True)
class Hardware:
    """What a machine consists of.

    disks: arguments of QEMU, see `tests.guest.disks`. boots_itself: from its first disk, as a
    BIOS does, and not with the kernel and initramfs of `ARTIFACTS`. kernel_options: added to the
    kernel's command line.
    """

    accelerator: str
    disks: Sequence[str] = ()
    memory_mib: int = 256
    kernel_options: str = ""
    boots_itself: bool = False
    extra: Sequence[str] = field(default=())

    def arguments(self) -> list[str]:
        """The part of the command line that two ends of a migration share."""
        words = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        words += ["-machine", f"q35,accel={self.accelerator}", "-cpu", "max"]
        words += ["-m", str(self.memory_mib), "-device", "virtio-rng-pci"]
        if not self.boots_itself:
            words += ["-kernel", f"{ARTIFACTS}/vmlinuz", "-initrd", f"{ARTIFACTS}/initramfs"]
            words += ["-append", f"{_KERNEL_OPTIONS} {self.kernel_options}"]
        return [*words, *self.disks, *self.extra]


class Machine:
    """A QEMU process, from `start` until `kill` or the end of the block; a context manager."""

    def __init__(self, folder: Path, hardware: Hardware) -> None:
        """Args: folder: for sockets and logs; its path must be short."""
        self.hardware = hardware
        self._stem = folder / f"vm{next(_numbers)}"
        self._process: subprocess.Popen[bytes] | None = None
        self._connections = contextlib.ExitStack()

    def launch(self, *options: str, timeout_s: float = TIMEOUT_S) -> Self:
        """Start QEMU without waiting for the guest."""
        words = [*self.hardware.arguments(), *options]
        for name in ("shell", "qmp"):
            path = self._path(name)
            words += ["-chardev", f"socket,id={name},path={path},server=on,wait=off"]
        words += ["-serial", f"file:{self._path('kernel')}", "-serial", "chardev:shell"]
        words += ["-mon", "chardev=qmp,mode=control"]
        with self._path("log").open("wb") as log:
            self._process = subprocess.Popen(
                ["qemu-system-x86_64", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            line = connect_unix(self._path("shell"), timeout_s)
            self.shell = Console(line, self.log)
            self._connections.callback(self.shell.close)
            self.qmp = Qmp.connect(self._path("qmp"), timeout_s)
            self._connections.callback(self.qmp.close)
        except OSError as error:
            self.kill()
            raise RuntimeError(f"QEMU did not start: {self.log()}") from error
        return self

    def start(self) -> Self:
        """Start QEMU and wait until the guest answers."""
        self.launch()
        try:
            self.shell.wait_until_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def kill(self) -> None:
        """What a power cut is to the guest."""
        self._connections.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def log(self) -> str:
        """What QEMU and the guest's kernel have said."""
        paths = (self._path("log"), self._path("kernel"))
        return "\n".join(path.read_text(errors="replace") for path in paths if path.exists())

    def _path(self, name: str) -> Path:
        return self._stem.with_suffix(f".{name}")

    def __enter__(self) -> Self:
        return self if self._process is not None else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


def choose_accelerator(folder: Path) -> str:
    """`kvm` where a guest really starts with it, else `tcg`.

    That /dev/kvm can be opened proves little: without help from the processor underneath, a guest
    may not execute one instruction.
    """
    machine = Machine(folder, Hardware("kvm"))
    try:
        # With a broken KVM, QEMU itself may hang before it answers.
        machine.launch(timeout_s=_KVM_PROBE_TIMEOUT_S)
        machine.shell.wait_until_ready(_KVM_PROBE_TIMEOUT_S)
    except (AssertionError, OSError, RuntimeError):
        return "tcg"
    finally:
        machine.kill()
    return "kvm"
