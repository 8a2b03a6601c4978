"""What a pool can be asked to do, whoever answers: this process or a server behind a socket.

`PoolService` is implemented by `storage.pool.Pool` and `storage.control.ControlClient`; one
conformance suite runs on both. What goes in and out is plain frozen dataclasses of JSON types. The
names of their fields are the keys of ``--json`` and of the control protocol: they are stable.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol, Self

RANGES_MAX: Final = 4096
"""Changed ranges in one answer."""


class DiskState(StrEnum):
    """READY serves; IMPORTING is being filled by an import; DELETING is about to vanish."""

    READY = "ready"
    IMPORTING = "importing"
    DELETING = "deleting"


class DriveState(StrEnum):
    """Only a PRESENT drive is used; of every other, `DriveInfo.problem` says what is wrong."""

    PRESENT = "present"
    MISSING = "missing"
    FOREIGN = "foreign"
    DUPLICATE = "duplicate"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Record:
    """A dataclass of JSON types that can be told to the other end of a wire."""

    def to_json(self) -> dict[str, Any]:
        """The fields by name, nested ones too."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The record that `to_json` told. Fields that this release does not know are left out."""
        known = {one.name for one in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in fields.items() if name in known})


@dataclass(frozen=True)
class DiskInfo(Record):
    """A disk as lists show it.

    `stored_bytes` is the space its segments take on the drives that are present. `clients` counts
    NBD connections. `problem` is None or says why the disk cannot be served whole. `snapshot_of` is
    the disk that a snapshot is of; its own name is then "DISK@SNAPSHOT", and it is read-only.
    """

    id: int
    name: str
    size_bytes: int
    state: DiskState
    created: str
    description: str
    stored_bytes: int
    clients: int
    problem: str | None = None
    snapshot_of: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", DiskState(self.state))


@dataclass(frozen=True)
class ChangedRange(Record):
    """Consecutive bytes of a disk that differ; `is_hole`: they read as zeros in the newer one."""

    offset: int
    length: int
    is_hole: bool


@dataclass(frozen=True)
class ChangedRanges(Record):
    """Ranges in ascending order, and the offset to ask for the next ones; None at the end."""

    next_offset: int | None
    ranges: list[ChangedRange]

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        ranges = [ChangedRange.from_json(one) for one in fields["ranges"]]
        return super().from_json({**fields, "ranges": ranges})


@dataclass(frozen=True)
class DiskDetails(DiskInfo):
    """A disk as `show` prints it; the figures below need the disk opened, and are None if it fails.

    `mapped_bytes` is the address space that holds data, `end_of_data_bytes` where the last of it
    ends, `statistics` what the core counts. `settings` are those made with `set_disk`.
    """

    mapped_bytes: int | None = None
    end_of_data_bytes: int | None = None
    statistics: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DriveInfo(Record):
    """A drive of the pool; sizes are of its file system and None unless the drive is present."""

    index: int
    uuid: str
    path: str
    state: DriveState
    problem: str | None
    total_bytes: int | None
    free_bytes: int | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", DriveState(self.state))


@dataclass(frozen=True)
class ScrubDamage(Record):
    """Bytes of a disk or snapshot that cannot be read; length 0 means all of it, `detail` why."""

    disk: str
    offset: int
    length: int
    detail: str


@dataclass(frozen=True)
class ScrubReport(Record):
    """The scrub that runs, else the last one.

    `state` is "never", "running", "finished" or "failed". Of the `total_bytes` of data of all disks
    and snapshots, `done_bytes` have been passed; only `read_bytes` of them had to be read, at most
    `rate_bytes` a second. `damaged` counts places, `damages` names the first 1000. `left_s` is a
    guess, None while there is none. `every` is the schedule, `next` when it is due; None without.
    """

    state: str
    started: str | None = None
    finished: str | None = None
    done_bytes: int = 0
    total_bytes: int = 0
    read_bytes: int = 0
    rate_bytes: int = 0
    elapsed_s: float = 0.0
    left_s: int | None = None
    damaged: int = 0
    damages: list[ScrubDamage] = field(default_factory=list)
    every: str | None = None
    next: str | None = None

    @property
    def problems(self) -> list[str]:
        """What needs the operator's attention."""
        if not self.damaged:
            return []
        return [
            f"the scrub found {self.damaged} damaged place(s): `nearstone pool scrub` lists them"
        ]

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        damages = [ScrubDamage.from_json(one) for one in fields.get("damages", ())]
        return super().from_json({**fields, "damages": damages})


@dataclass(frozen=True)
class PoolStatus(Record):
    """The pool as a whole.

    `server_pid` is None when no server runs and `uris` then empty; `{name}` in a URI stands for the
    disk's name. `problems` is empty exactly when nothing needs the operator's attention.
    """

    pool: str
    uuid: str
    created: str
    disks: int
    provisioned_bytes: int
    stored_bytes: int
    server_pid: int | None
    uris: list[str]
    drives: list[DriveInfo]
    problems: list[str]
    statistics: dict[str, int]
    scrub: ScrubReport

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        drives = [DriveInfo.from_json(drive) for drive in fields["drives"]]
        scrub = ScrubReport.from_json(fields["scrub"])
        return super().from_json({**fields, "drives": drives, "scrub": scrub})


class PoolService(Protocol):
    """A pool's operations. Errors are leaves of `storage.errors`; a failed call changed nothing
    unless it says otherwise. Durability: what a call did survives power loss once it returns."""

    def status(self) -> PoolStatus:
        """The pool as a whole."""

    def set_pool(self, changes: Mapping[str, int | str | None]) -> ScrubReport:
        """Changes settings of the pool (`storage.scrub`), durably. None takes one back to its
        default, those that are not named stay. Raises: InvalidRequest."""

    def start_scrub(self, rate_bytes: int | None = None) -> ScrubReport:
        """Begins to read and verify all that is alive, unless that goes on already.

        Args: rate_bytes: read at most so many a second; None for the pool's setting.
        Raises: InvalidRequest.
        """

    def scrub_report(self) -> ScrubReport:
        """How far the scrub is, else what the last one found."""

    def list_disks(self) -> list[DiskInfo]:
        """All disks, by name, without snapshots; opens none."""

    def show_disk(self, name: str) -> DiskDetails:
        """One disk, opened for its figures. Raises: DiskNotFound."""

    def create_disk(
        self, name: str, size_bytes: int, description: str = "", importing: bool = False
    ) -> DiskInfo:
        """A new disk that reads as zeroes.

        With `importing`, the disk stays provisional until `finish_import`: when whoever creates it
        goes away before that, or the server stops, it is deleted again.

        Raises: BadName, BadSize, NameTaken, InvalidRequest (description), NoSpace.
        """

    def finish_import(self, name: str) -> DiskInfo:
        """Flushes a disk created with `importing` and keeps it. Raises: DiskNotFound."""

    def resize_disk(self, name: str, size_bytes: int, force: bool = False) -> DiskInfo:
        """Changes the size; what is cut off is gone at once, what is added reads as zeroes.

        Connected clients see the new size when they reconnect.

        Raises: DiskNotFound, DiskNotReady, BadSize; without `force` also ShrinkLosesData, and
            DiskInUse when a disk with clients would shrink.
        """

    def rename_disk(self, name: str, new_name: str) -> DiskInfo:
        """Gives the disk another name. Connections go on, but must use it when they reconnect.

        Raises: DiskNotFound, DiskNotReady, BadName, NameTaken.
        """

    def set_disk(self, name: str, changes: Mapping[str, int | str | None]) -> DiskDetails:
        """Changes settings of a disk or snapshot (`storage.settings`); they count at once and are
        durable. None takes one back to its default, those that are not named stay.

        Raises: DiskNotFound, DiskNotReady, InvalidRequest.
        """

    def delete_disk(self, name: str, force: bool = False) -> None:
        """Deletes a disk and all its data, or one snapshot. Clones stay whole, whatever goes first.

        Raises: DiskNotFound, HasSnapshots; without `force` DiskInUse.
        """

    def snapshot_disks(self, names: Sequence[str], snapshot: str) -> list[DiskInfo]:
        """Freezes disks, all at one instant, each as "NAME@SNAPSHOT". I/O goes on meanwhile.

        All snapshots are there and durable when the call returns, or none is.

        Raises: DiskNotFound, DiskNotReady, BadName, NameTaken, ReadOnly (of a snapshot), NoSpace,
            InvalidRequest (no disk, or one named twice).
        """

    def list_snapshots(self, name: str) -> list[DiskInfo]:
        """The disk's snapshots, oldest first. Raises: DiskNotFound."""

    def changed_ranges(self, older: str, newer: str, offset: int = 0) -> ChangedRanges:
        """Where the snapshot `newer` differs from the snapshot `older`, from `offset` on,
        `RANGES_MAX` ranges at most. Takes time in proportion to the change. Blocks written with
        what they held before count as changed; none that differs is left out.

        Raises: DiskNotFound, NotASnapshot, DiskNotReady, Corrupt.
        """

    def clone_disk(self, name: str, new_name: str) -> DiskInfo:
        """A new disk that begins as the snapshot `name`, at once and without copying.

        Raises: DiskNotFound, NotASnapshot, BadName, NameTaken, NoSpace.
        """

    def rollback_disk(self, name: str) -> DiskInfo:
        """Makes the disk's contents and size those of its snapshot `name`; all snapshots stay.

        Raises: DiskNotFound, NotASnapshot, DiskInUse.
        """

    def close(self) -> None:
        """Lets go of the pool or the connection; safe to call again."""
