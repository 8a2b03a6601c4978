"""The tree of errors and its table."""

import dataclasses
import errno as errnos
import json

import pytest

from storage import errors
from storage.errors import StorageError, rebuild
from storage.faces import EXIT_FAILED, EXIT_REFUSED, FACES, NBD_ERRNOS, errno_of

LEAVES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, StorageError) and value is not StorageError
]


def example(leaf: type[StorageError]) -> StorageError:
    """A leaf with a plausible value in every field."""
    values = {}
    for field in dataclasses.fields(leaf):
        kinds = str(field.type)
        values[field.name] = 7 if "int" in kinds else f"the {field.name}"
    return leaf(**values)


def test_the_table_names_every_leaf_and_nothing_else() -> None:
    assert set(FACES) == set(LEAVES)


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)
class TestLeaf:
    def test_its_faces_are_ones_that_travel(self, leaf: type[StorageError]) -> None:
        face = FACES[leaf]
        assert face.nbd_errno in NBD_ERRNOS or leaf is errors.DiskNotFound
        assert 400 <= face.http_status < 600
        assert face.exit_status in (EXIT_REFUSED, EXIT_FAILED)
        assert 0 < face.sense.key < 16

    def test_its_fields_survive_json(self, leaf: type[StorageError]) -> None:
        error = example(leaf)
        fields = json.loads(json.dumps(error.fields()))
        again = rebuild(leaf.__name__, fields, str(error))
        assert type(again) is leaf
        assert again.fields() == error.fields()
        assert str(again) == str(error)

    def test_it_says_what_is_wrong_and_what_to_do(self, leaf: type[StorageError]) -> None:
        error = example(leaf)
        for text in (error.problem, error.next_step):
            assert text
            assert text == text.strip()
            assert not text.endswith(".")
            assert "{" not in text

    def test_it_can_be_raised_and_chained(self, leaf: type[StorageError]) -> None:
        with pytest.raises(leaf) as caught:
            try:
                raise KeyError("inner")
            except KeyError as inner:
                raise example(leaf) from inner
        assert isinstance(caught.value.__cause__, KeyError)
        assert hash(caught.value) is not None


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (errors.NoSpace(pool="p"), errnos.ENOSPC),
        (errors.ReadOnly(disk=1), errnos.EPERM),
        (errors.DiskNotFound(disk="a"), errnos.ENOENT),
        (errors.PoolClosed(), errnos.ESHUTDOWN),
        (OSError(errnos.ENOSPC, "full"), errnos.ENOSPC),
        (OSError(errnos.EDQUOT, "quota"), errnos.ENOSPC),
        (OSError(errnos.EROFS, "read-only"), errnos.EPERM),
        (FileNotFoundError(errnos.ENOENT, "gone"), errnos.EIO),
        (OSError("no number"), errnos.EIO),
        (MemoryError(), errnos.ENOMEM),
        (ValueError("a fault of ours"), errnos.EIO),
    ],
)
def test_every_exception_has_an_errno_that_nbd_carries(exc: Exception, expected: int) -> None:
    assert errno_of(exc) == expected


def test_an_unknown_leaf_from_a_newer_server_is_reported_not_lost() -> None:
    error = rebuild("SnapshotBusy", {"disk": "a"}, "snapshot busy; wait")
    assert isinstance(error, errors.ServerFailed)
    assert "SnapshotBusy" in str(error)
    assert "snapshot busy" in str(error)


def test_a_known_leaf_with_strange_fields_is_reported_not_lost() -> None:
    error = rebuild("NoSpace", {"colour": "blue"}, "out of space")
    assert isinstance(error, errors.ServerFailed)
