"""The faces an error can show outside Python; `storage.errors.FACES` says who shows which."""

import errno as errnos
from typing import Final, NamedTuple

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
