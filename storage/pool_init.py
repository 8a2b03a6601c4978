"""Making a new pool, so that a crash leaves either a pool or an empty folder that can become one.

1. ``catalog.sqlite.new`` is written, with the uuids of the pool and its drives.
2. The drives get their labels.
3. ``catalog.sqlite.new`` becomes ``catalog.sqlite``: from here on the folder is a pool.

After a crash between 1 and 3 the next `init_pool` on the folder finds ``catalog.sqlite.new``, takes
the labels that it names off again, and begins anew.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from uuid import uuid4

from storage.catalog import CATALOG_FILE, RESERVE_FILE, Catalog, DriveRow, create_catalog
from storage.drives import (
    LABEL_FILE,
    POOL_FOLDER_PATH,
    SEGMENTS_FOLDER,
    Label,
    check_new_drives,
    folder_of,
    read_label,
    sync_folder,
    write_label,
)
from storage.errors import DriveUnusable, PoolExists, PoolFolderUnusable, StorageError
from storage.leftovers import ANCHORS_FOLDER
from storage.lock import LOCK_FILE, PoolLock
from storage.units import DriveIndex, UnixSeconds

DRIVES_MAX: Final = 64
"""A disk's root has a bit for each drive in 64."""

_NEW_CATALOG: Final = f"{CATALOG_FILE}.new"
# What a folder may hold and still count as empty: a file system's own folder, and what an
# interrupted initialisation leaves.
_HARMLESS: Final = frozenset({"lost+found", LOCK_FILE, LABEL_FILE, f"{LABEL_FILE}.new"})
_HARMLESS_IF_EMPTY: Final = frozenset({ANCHORS_FOLDER, SEGMENTS_FOLDER})


def is_pool(folder: Path) -> bool:
    """Whether a pool is there. Raises: PoolFolderUnusable when that cannot be found out."""
    try:
        (folder / CATALOG_FILE).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as exc:
        raise PoolFolderUnusable(pool=str(folder), detail=exc.strerror or str(exc)) from exc
    return True


def init_pool(pool: Path, drives: Sequence[Path]) -> None:
    """See `storage.pool.Pool.init`."""
    pool = Path(os.path.abspath(pool))  # noqa: PTH100  links in the path stay as they were written
    if is_pool(pool):
        raise PoolExists(pool=str(pool))
    if len(drives) > DRIVES_MAX:
        raise DriveUnusable(path=str(drives[-1]), detail=f"a pool has at most {DRIVES_MAX} drives")
    is_new = _make_folder(pool)
    _check_empty(pool)  # before even the lock's file is made in what may be anybody's folder
    try:
        with PoolLock(pool):
            if is_pool(pool):
                raise PoolExists(pool=str(pool))
            _check_empty(pool)
            _undo_interrupted(pool)
            folders = [Path(os.path.abspath(drive)) for drive in drives] or [pool]  # noqa: PTH100
            check_new_drives(folders)
            try:
                _fill(pool, folders)
            except BaseException:
                _undo_interrupted(pool)
                raise
    except StorageError:
        _remove_if_bare(pool, is_new)
        raise
    except OSError as exc:
        _remove_if_bare(pool, is_new)
        raise PoolFolderUnusable(pool=str(pool), detail=exc.strerror or str(exc)) from exc


def _make_folder(pool: Path) -> bool:
    """Sees to it that the folder exists; returns whether it had to be made."""
    if pool.is_dir():
        return False
    try:
        pool.parent.mkdir(parents=True, exist_ok=True)
        # Others may pass through to a socket that they are allowed to use, but not look around.
        pool.mkdir(mode=0o711)
    except OSError as exc:
        raise PoolFolderUnusable(pool=str(pool), detail=exc.strerror or str(exc)) from exc
    return True


def _remove_if_bare(pool: Path, is_new: bool) -> None:
    """Removes the folder that a failed initialisation made, and what little it holds by now."""
    if not is_new:
        return
    with contextlib.suppress(OSError):
        (pool / LOCK_FILE).unlink(missing_ok=True)
        for name in _HARMLESS_IF_EMPTY:
            if (pool / name).exists():
                (pool / name).rmdir()
        pool.rmdir()


def _check_empty(pool: Path) -> None:
    for entry in sorted(pool.iterdir()):
        if entry.name in _HARMLESS or entry.name.startswith((_NEW_CATALOG, RESERVE_FILE)):
            continue
        if entry.name in _HARMLESS_IF_EMPTY and entry.is_dir() and not any(entry.iterdir()):
            continue
        detail = f"it is not empty (it holds {entry.name}) and has no {CATALOG_FILE}"
        raise PoolFolderUnusable(pool=str(pool), detail=detail)


def _undo_interrupted(pool: Path) -> None:
    """Takes back the labels that an initialisation of this folder gave before it was cut short."""
    new_catalog = pool / _NEW_CATALOG
    if not new_catalog.exists():
        return
    try:
        catalog = Catalog(new_catalog)
    except StorageError:
        pass  # cut short while it was written: no label was given yet
    else:
        for row in catalog.drives():
            folder = folder_of(row, pool)
            with contextlib.suppress(OSError, ValueError):
                label = read_label(folder)
                if label is not None and label.pool == catalog.pool_uuid:
                    (folder / LABEL_FILE).unlink()
        catalog.close()
    for suffix in ("", "-wal", "-shm", "-journal"):
        (pool / f"{_NEW_CATALOG}{suffix}").unlink(missing_ok=True)
    (pool / RESERVE_FILE).unlink(missing_ok=True)


def _fill(pool: Path, folders: Sequence[Path]) -> None:
    pool_uuid = uuid4()
    rows = [
        DriveRow(
            DriveIndex(index),
            uuid4(),
            POOL_FOLDER_PATH if folder.samefile(pool) else str(folder),
        )
        for index, folder in enumerate(folders)
    ]
    (pool / ANCHORS_FOLDER).mkdir(mode=0o700, exist_ok=True)
    new_catalog = pool / _NEW_CATALOG
    create_catalog(new_catalog, pool_uuid, UnixSeconds(int(time.time())), rows)
    sync_folder(pool)
    for row in rows:
        write_label(folder_of(row, pool), Label(pool_uuid, row.uuid, row.index))
    new_catalog.rename(pool / CATALOG_FILE)
    sync_folder(pool)
    sync_folder(pool.parent)
