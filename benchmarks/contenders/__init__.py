"""The contenders: one class for each way to serve a disk over NBD.

`CONTENDERS` has them by name, in the order in which reports list them.
"""

from benchmarks.contenders.base import Contender, Place
from benchmarks.contenders.btrfs import Qcow2OnBtrfs
from benchmarks.contenders.nbd_server import NbdServer
from benchmarks.contenders.nbdkit import NbdkitFile, NbdkitMemory
from benchmarks.contenders.nearstone import Nearstone, NearstoneUncompressed
from benchmarks.contenders.qemu import QemuQcow2, QemuRaw

__all__ = ["CONTENDERS", "DEFAULT_CONTENDERS", "Contender", "Place"]

CONTENDERS: dict[str, type[Contender]] = {
    contender.name: contender
    for contender in (
        Nearstone,
        NearstoneUncompressed,
        NbdkitMemory,
        NbdkitFile,
        QemuQcow2,
        QemuRaw,
        NbdServer,
        Qcow2OnBtrfs,
    )
}

# Those that the goals name. All of them together hold more than the page cache of a 24 GiB
# machine at the default size, so that each would evict the others.
DEFAULT_CONTENDERS = (Nearstone.name, NbdkitMemory.name, NbdkitFile.name, QemuQcow2.name)
