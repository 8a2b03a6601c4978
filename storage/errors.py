# ruff: noqa: N818  (the names are the vocabulary of the control protocol; "Error" would say nothing)
"""Every error of Nearstone in one tree; what each becomes outside Python says `storage.faces`.

A leaf carries fields, never a ready-made sentence: the fields travel unchanged through the control
socket, the Rust core (which constructs the classes by name with keyword arguments) and ``--json``.
The sentence for people is made from them at the very end: ``PROBLEM`` says which thing has what
wrong with it, ``NEXT_STEP`` what to do about it.

Invariants
- Leaves are dataclasses whose fields are int, str or None, so that they survive JSON.
- The names of classes and fields belong to the control protocol: rename none without a new version.
"""

import dataclasses
import errno as errnos
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

FieldValue = int | str | None


@dataclass(eq=False)
class StorageError(Exception):
    """Root of the tree; only leaves are raised."""

    PROBLEM: ClassVar[str]
    NEXT_STEP: ClassVar[str]

    def fields(self) -> dict[str, FieldValue]:
        """The leaf's fields by name, fit for JSON."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def problem(self) -> str:
        """Which thing has what wrong with it; no final stop."""
        return self.PROBLEM.format(**self.fields())

    @property
    def next_step(self) -> str:
        """What the operator can do now; no final stop."""
        return self.NEXT_STEP.format(**self.fields())

    def __str__(self) -> str:
        return f"{self.problem}; {self.next_step}"


@dataclass(eq=False)
class InvalidRequest(StorageError):
    """A request outside the disk or malformed; the caller must change it."""

    reason: str
    PROBLEM = "invalid request: {reason}"
    NEXT_STEP = "correct the request and send it again"


@dataclass(eq=False)
class ReadOnly(StorageError):
    """A change of a disk that may only be read, such as a snapshot; reads go on."""

    disk: int | str
    PROBLEM = "disk {disk!r} is read-only"
    NEXT_STEP = "a snapshot never changes: `nearstone disk clone` makes a disk of it that does"


@dataclass(eq=False)
class NoSpace(StorageError):
    """The drives are full: writes fail until space is freed, everything else goes on."""

    pool: str
    PROBLEM = "pool {pool} is out of space"
    NEXT_STEP = (
        "trim or delete disks, or free space on the drive; writes then work again by themselves"
    )


@dataclass(eq=False)
class Corrupt(StorageError):
    """Stored bytes fail their checksum and are not returned; the rest stays usable."""

    disk: int | str
    where: str
    detail: str
    PROBLEM = "disk {disk!r} is damaged at {where}: {detail}"
    NEXT_STEP = "look at the place with `nearstone inspect` and restore what it held from a backup"


@dataclass(eq=False)
class DiskFailed(StorageError):
    """The disk's log can no longer be written; a restart recovers what was acknowledged."""

    disk: int | str
    cause: str
    PROBLEM = "disk {disk!r} stopped because its log cannot be written: {cause}"
    NEXT_STEP = "put right what stopped it and restart the server"


@dataclass(eq=False)
class DiskNotFound(StorageError):
    """No such disk. `disk` is what was asked for: the name, or the number inside the core."""

    disk: int | str
    PROBLEM = "there is no disk {disk!r}"
    NEXT_STEP = "`nearstone disk list` shows the names"


@dataclass(eq=False)
class DriveMissing(StorageError):
    """The disk has segments on a drive that is not there; it is served when the drive is back."""

    disk: int | str
    drive: int
    PROBLEM = "disk {disk!r} needs drive {drive}, which is missing"
    NEXT_STEP = "`nearstone pool status` names the drive's folder; mount it and restart the server"


@dataclass(eq=False)
class PoolClosed(StorageError):
    """The pool is shut or shutting down; a client may reconnect and repeat the request."""

    PROBLEM = "the pool is shutting down"
    NEXT_STEP = "start the server again and repeat the request"


@dataclass(eq=False)
class StorageIO(StorageError):
    """The operating system failed a read or write of one of the pool's files."""

    where: str
    errno: int
    PROBLEM = "input/output error at {where}: errno {errno} ({name})"
    NEXT_STEP = "check the drive and the kernel's log (dmesg)"

    @property
    def problem(self) -> str:
        name = errnos.errorcode.get(self.errno, "unknown")
        return self.PROBLEM.format(**self.fields(), name=name)


@dataclass(eq=False)
class PoolBusy(StorageError):
    """Another process holds the pool's lock; `pid` is None when it has not said which."""

    pool: str
    pid: int | None
    PROBLEM = "pool {pool} is in use by another process (pid {pid})"
    NEXT_STEP = "stop that process, or reach it through its control socket"


@dataclass(eq=False)
class PoolNotFound(StorageError):
    """The folder is not a pool."""

    pool: str
    PROBLEM = "{pool} is not a pool: it has no catalog.sqlite"
    NEXT_STEP = "check the path, or make a pool there with `nearstone pool init {pool}`"


@dataclass(eq=False)
class PoolNotNamed(StorageError):
    """The command needs a pool and was not told which."""

    PROBLEM = "no pool was named"
    NEXT_STEP = "give --pool DIR, set NEARSTONE_POOL, or write pool in the configuration file"


@dataclass(eq=False)
class PoolExists(StorageError):
    """`pool init` on a folder that is a pool already."""

    pool: str
    PROBLEM = "{pool} is a pool already"
    NEXT_STEP = "use it as it is, or choose another folder"


@dataclass(eq=False)
class PoolFolderUnusable(StorageError):
    """The pool's folder cannot be made or opened."""

    pool: str
    detail: str
    PROBLEM = "pool folder {pool} cannot be used: {detail}"
    NEXT_STEP = "name a pool, or an empty or new folder, that you may read and write"


@dataclass(eq=False)
class CatalogDamaged(StorageError):
    """The catalog cannot be read. The disks' data is not touched by that."""

    path: str
    detail: str
    PROBLEM = "the catalog {path} cannot be read: {detail}"
    NEXT_STEP = "stop everything that uses the pool and restore the catalog from a backup"


@dataclass(eq=False)
class CatalogTooNew(StorageError):
    """The catalog was written by a later release."""

    path: str
    found_version: int
    known_version: int
    PROBLEM = "the catalog {path} has version {found_version}; this release knows {known_version}"
    NEXT_STEP = "use the newer release that wrote it"


@dataclass(eq=False)
class DriveUnusable(StorageError):
    """A folder given as a drive cannot serve as one."""

    path: str
    detail: str
    PROBLEM = "{path} cannot be used as a drive: {detail}"
    NEXT_STEP = "give another folder"


@dataclass(eq=False)
class NameTaken(StorageError):
    """A disk of that name exists."""

    name: str
    PROBLEM = "a disk named {name!r} exists already"
    NEXT_STEP = "choose another name, or delete or rename that disk first"


@dataclass(eq=False)
class BadName(StorageError):
    """Not a name for a disk."""

    name: str
    reason: str
    PROBLEM = "{name!r} cannot name a disk: {reason}"
    NEXT_STEP = "use 1 to 128 letters, digits and the signs . _ - starting with a letter or digit"


@dataclass(eq=False)
class BadSize(StorageError):
    """Not a size a disk can have. `size` is what was given."""

    size: str
    reason: str
    PROBLEM = "{size!r} is not a usable size: {reason}"
    NEXT_STEP = "give something like 20G, 512MiB or 1.5T (binary units), from 512 bytes to 256T"


@dataclass(eq=False)
class ShrinkLosesData(StorageError):
    """The smaller size would cut data off."""

    disk: str
    size_bytes: int
    end_of_data_bytes: int
    PROBLEM = (
        "disk {disk!r} holds data up to byte {end_of_data_bytes:,}; "
        "a size of {size_bytes:,} bytes would cut it off"
    )
    NEXT_STEP = "give at least that size, or lose the data with --force"


@dataclass(eq=False)
class DiskInUse(StorageError):
    """Clients are connected to the disk."""

    disk: str
    clients: int
    PROBLEM = "disk {disk!r} is in use: {clients} connection(s)"
    NEXT_STEP = "disconnect them, or cut them off with --force"


@dataclass(eq=False)
class HasSnapshots(StorageError):
    """A disk is not deleted as long as it has snapshots: they would be without a name."""

    disk: str
    snapshots: int
    PROBLEM = "disk {disk!r} has {snapshots} snapshot(s)"
    NEXT_STEP = "delete them first: `nearstone disk snapshots {disk}` lists them"


@dataclass(eq=False)
class NotASnapshot(StorageError):
    """What was named is a disk that changes; only a snapshot can be cloned or rolled back to."""

    name: str
    PROBLEM = "{name!r} is not a snapshot"
    NEXT_STEP = "name one as DISK@SNAPSHOT; `nearstone disk snapshots DISK` lists them"


@dataclass(eq=False)
class DiskNotReady(StorageError):
    """The disk is being imported or deleted."""

    disk: str
    state: str
    PROBLEM = "disk {disk!r} cannot be used now: it is {state}"
    NEXT_STEP = "wait until that has ended"


@dataclass(eq=False)
class ToolMissing(StorageError):
    """A program that the command needs is not installed."""

    tool: str
    package: str
    PROBLEM = "the program {tool} is not installed"
    NEXT_STEP = (
        "install it (Debian and Ubuntu: apt install {package}) and check with `nearstone doctor`"
    )


@dataclass(eq=False)
class ToolFailed(StorageError):
    """A program failed; what it was doing has been undone."""

    tool: str
    detail: str
    PROBLEM = "{tool} failed: {detail}"
    NEXT_STEP = "put that right and repeat the command; what it had begun has been undone"


@dataclass(eq=False)
class UnreadableImage(StorageError):
    """The file is not an image that can be imported."""

    path: str
    detail: str
    PROBLEM = "{path} cannot be read as an image: {detail}"
    NEXT_STEP = "check the file, or name its format with --format"


@dataclass(eq=False)
class UnreadableFile(StorageError):
    """`inspect` cannot make sense of the file."""

    path: str
    detail: str
    PROBLEM = "{path} cannot be inspected: {detail}"
    NEXT_STEP = "give one of the pool's files: a segment, an anchor, the catalog or a drive's label"


@dataclass(eq=False)
class TargetExists(StorageError):
    """The file to write exists."""

    path: str
    PROBLEM = "{path} exists already"
    NEXT_STEP = "choose another file name, or replace it with --force"


@dataclass(eq=False)
class TargetUnusable(StorageError):
    """The file to write cannot be written."""

    path: str
    detail: str
    PROBLEM = "{path} cannot be written: {detail}"
    NEXT_STEP = "choose another place"


@dataclass(eq=False)
class BadConfig(StorageError):
    """A configuration file or variable has something wrong in it."""

    source: str
    detail: str
    PROBLEM = "the configuration in {source} is wrong: {detail}"
    NEXT_STEP = "correct it there; docs/cli.md lists the settings"


@dataclass(eq=False)
class NeedsConfirmation(StorageError):
    """A command that destroys something was neither confirmed nor given --yes."""

    action: str
    PROBLEM = "not confirmed: {action}"
    NEXT_STEP = "repeat the command with --yes to go ahead"


@dataclass(eq=False)
class ServerUnreachable(StorageError):
    """The connection to the server broke: whether the request was carried out is not known."""

    socket: str
    detail: str
    PROBLEM = "the server does not answer on {socket}: {detail}"
    NEXT_STEP = "check with `nearstone pool status` what was done, and that the server runs"


@dataclass(eq=False)
class ServerFailed(StorageError):
    """The server met an error that it has no class for; its log has the traceback."""

    kind: str
    detail: str
    PROBLEM = "the server failed unexpectedly ({kind}: {detail})"
    NEXT_STEP = "its log has the details; please report it"


@dataclass(eq=False)
class ServerNotStarted(StorageError):
    """A server that a command needs did not come up."""

    detail: str
    PROBLEM = "the server did not start: {detail}"
    NEXT_STEP = "`nearstone doctor` checks the installation"


@dataclass(eq=False)
class ProtocolMismatch(StorageError):
    """Client and server are of releases that do not understand each other."""

    client_version: int
    server_version: int
    PROBLEM = "the server speaks control protocol {server_version}, this command {client_version}"
    NEXT_STEP = "restart the server after an upgrade, or use the command of the same release"


@dataclass(eq=False)
class BadMessage(StorageError):
    """A message on the control socket is malformed."""

    reason: str
    PROBLEM = "malformed control message: {reason}"
    NEXT_STEP = "correct the client"


def with_traceback(error: BaseException) -> BaseException:
    """`error` with a traceback, for those that a native function is about to raise.

    An exception that has met no Python frame has none, and nbdkit 1.32 dereferences the traceback
    of whatever a callback raises (check_python_failure in its errors.c): it would crash.
    """
    try:
        raise error
    except BaseException as raised:  # whatever it is, it is only being prepared
        return raised


def rebuild(class_name: str, fields: Mapping[str, FieldValue], message: str) -> StorageError:
    """The leaf that crossed a wire by name and fields; `ServerFailed` if there is no such leaf."""
    for leaf in StorageError.__subclasses__():
        if leaf.__name__ == class_name:
            try:
                return leaf(**fields)
            except TypeError:
                break
    return ServerFailed(kind=class_name, detail=message)
