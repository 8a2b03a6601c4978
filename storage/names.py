"""What people may call disks and snapshots, and write about them."""

import re
from typing import Final

from storage.errors import BadName, InvalidRequest

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_NAME_LENGTH_MAX: Final = 128
_DESCRIPTION_LENGTH_MAX: Final = 1024  # of 4-byte characters: what an NBD export description holds


def check_name(name: str) -> str:
    """Returns `name` if a disk may have it. Raises: BadName.

    The sign set is one that needs no quoting in a URI, a shell, XML or a file name.
    """
    if not name:
        raise BadName(name=name, reason="it is empty")
    if len(name) > _NAME_LENGTH_MAX:
        raise BadName(
            name=f"{name[:24]}…", reason=f"it is longer than {_NAME_LENGTH_MAX} characters"
        )
    if not _NAME.fullmatch(name):
        raise BadName(name=name, reason="it has characters that are not allowed")
    return name


def check_description(description: str) -> str:
    """Returns `description` if it can be stored and shown in one line. Raises: InvalidRequest."""
    if len(description) > _DESCRIPTION_LENGTH_MAX:
        raise InvalidRequest(
            reason=f"a description has at most {_DESCRIPTION_LENGTH_MAX} characters"
        )
    if not description.isprintable():
        raise InvalidRequest(reason="a description is one line of printable characters")
    return description
