"""What an error becomes outside Python: for NBD and SCSI clients, over HTTP and in the shell.

`FACES` is the one table from the leaves of `storage.errors` to the outside; a test holds it
complete.
"""

import errno as errnos
from collections.abc import Mapping
from typing import Final, NamedTuple

from storage import errors
from storage.errors import StorageError

NBD_ERRNOS: Final = frozenset(
    {
        errnos.EPERM,
        errnos.EIO,
        errnos.ENOMEM,
        errnos.EINVAL,
        errnos.ENOSPC,
        errnos.EOVERFLOW,
        errnos.ENOTSUP,
        errnos.ESHUTDOWN,
    }
)
"""The only errnos an NBD reply carries (NBD protocol, "Error values"); ENOENT besides, at open."""


class Sense(NamedTuple):
    """SCSI sense data: key, additional code and its qualifier (SPC-5)."""

    key: int
    asc: int
    ascq: int


class Face(NamedTuple):
    """What a leaf becomes for an NBD client, a SCSI initiator, an HTTP client and the shell."""

    nbd_errno: int
    sense: Sense
    http_status: int
    exit_status: int


EXIT_UNEXPECTED: Final = 1
"""A fault of Nearstone itself, or a check of `doctor` that failed."""
EXIT_REFUSED: Final = 2
"""The command was wrong or is not possible now: nothing was changed."""
EXIT_FAILED: Final = 3
"""The command was right, but storage, a tool or the server failed while it was carried out."""

INVALID_FIELD: Final = Sense(0x5, 0x24, 0x00)  # ILLEGAL REQUEST, INVALID FIELD IN CDB
NO_UNIT: Final = Sense(0x5, 0x25, 0x00)  # ILLEGAL REQUEST, LOGICAL UNIT NOT SUPPORTED
WRITE_PROTECTED: Final = Sense(0x7, 0x27, 0x00)  # DATA PROTECT, WRITE PROTECTED
NO_SPACE: Final = Sense(0x7, 0x27, 0x07)  # DATA PROTECT, SPACE ALLOCATION FAILED WRITE PROTECT
MEDIUM: Final = Sense(0x3, 0x11, 0x00)  # MEDIUM ERROR, UNRECOVERED READ ERROR
HARDWARE: Final = Sense(0x4, 0x44, 0x00)  # HARDWARE ERROR, INTERNAL TARGET FAILURE
BECOMING_READY: Final = Sense(0x2, 0x04, 0x01)  # NOT READY, BECOMING READY: initiators retry
INTERVENE: Final = Sense(0x2, 0x04, 0x03)  # NOT READY, MANUAL INTERVENTION REQUIRED

UNKNOWN: Final = Face(errnos.EIO, HARDWARE, 500, EXIT_UNEXPECTED)
"""What an exception outside the tree becomes; whoever maps it logs its traceback once."""

_REFUSED: Final = Face(errnos.EINVAL, INVALID_FIELD, 422, EXIT_REFUSED)
_CONFLICT: Final = Face(errnos.EINVAL, INVALID_FIELD, 409, EXIT_REFUSED)
_ABSENT: Final = Face(errnos.EIO, INTERVENE, 503, EXIT_REFUSED)
_BROKEN: Final = Face(errnos.EIO, HARDWARE, 500, EXIT_FAILED)

FACES: Final[Mapping[type[StorageError], Face]] = {
    errors.InvalidRequest: Face(errnos.EINVAL, INVALID_FIELD, 400, EXIT_REFUSED),
    # EROFS is not among the errnos of NBD; the protocol asks for EPERM.
    errors.ReadOnly: Face(errnos.EPERM, WRITE_PROTECTED, 403, EXIT_REFUSED),
    errors.NoSpace: Face(errnos.ENOSPC, NO_SPACE, 507, EXIT_FAILED),
    errors.Corrupt: Face(errnos.EIO, MEDIUM, 500, EXIT_FAILED),
    errors.DiskFailed: Face(errnos.EIO, HARDWARE, 503, EXIT_FAILED),
    errors.DiskNotFound: Face(errnos.ENOENT, NO_UNIT, 404, EXIT_REFUSED),
    errors.DriveMissing: Face(errnos.EIO, INTERVENE, 503, EXIT_FAILED),
    errors.PoolClosed: Face(errnos.ESHUTDOWN, BECOMING_READY, 503, EXIT_FAILED),
    errors.StorageIO: _BROKEN,
    errors.PoolBusy: Face(errnos.ESHUTDOWN, BECOMING_READY, 409, EXIT_REFUSED),
    errors.PoolNotFound: _ABSENT,
    errors.PoolNotNamed: _REFUSED,
    errors.PoolExists: _CONFLICT,
    errors.PoolFolderUnusable: _ABSENT,
    errors.CatalogDamaged: _BROKEN,
    errors.CatalogTooNew: _ABSENT,
    errors.DriveUnusable: _REFUSED,
    errors.NameTaken: _CONFLICT,
    errors.BadName: _REFUSED,
    errors.BadSize: _REFUSED,
    errors.ShrinkLosesData: _CONFLICT,
    errors.DiskInUse: _CONFLICT,
    errors.HasSnapshots: _CONFLICT,
    errors.NotASnapshot: _REFUSED,
    errors.DiskNotReady: Face(errnos.ESHUTDOWN, BECOMING_READY, 409, EXIT_REFUSED),
    errors.ToolMissing: Face(errnos.ENOTSUP, HARDWARE, 501, EXIT_REFUSED),
    errors.ToolFailed: _BROKEN,
    errors.UnreadableImage: _REFUSED,
    errors.UnreadableFile: _REFUSED,
    errors.TargetExists: _CONFLICT,
    errors.TargetUnusable: _REFUSED,
    errors.BadConfig: _REFUSED,
    errors.NeedsConfirmation: _REFUSED,
    errors.ServerUnreachable: Face(errnos.ESHUTDOWN, BECOMING_READY, 503, EXIT_FAILED),
    errors.ServerFailed: _BROKEN,
    errors.ServerNotStarted: _BROKEN,
    errors.ProtocolMismatch: Face(errnos.ENOTSUP, INVALID_FIELD, 501, EXIT_REFUSED),
    errors.BadMessage: Face(errnos.EINVAL, INVALID_FIELD, 400, EXIT_REFUSED),
}


def face_of(exc: BaseException) -> Face:
    """The outside of `exc`; `UNKNOWN` for whatever is not a leaf of the tree."""
    if isinstance(exc, StorageError):
        return FACES.get(type(exc), UNKNOWN)
    return UNKNOWN


def errno_of(exc: BaseException) -> int:
    """The errno that tells an NBD client of `exc`; ENOENT only for `DiskNotFound`, met at open."""
    if isinstance(exc, MemoryError):
        return errnos.ENOMEM
    if isinstance(exc, OSError) and exc.errno is not None:
        if exc.errno in (errnos.EROFS, errnos.EACCES):
            return errnos.EPERM
        if exc.errno == errnos.EDQUOT:
            return errnos.ENOSPC
        return exc.errno if exc.errno in NBD_ERRNOS else errnos.EIO
    return face_of(exc).nbd_errno
