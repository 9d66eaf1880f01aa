"""Writes that survive power cuts. All files that must not be lost are written by these functions.

A file system keeps new content and new names in memory for a while and may write them to the disk in any order. A file
that was merely written and renamed can therefore be empty after a power cut. Here, content is written under a temporary
name and synced, and only then gets its final name: at every moment, a file or folder is complete or as it was before.
When a function returns, its result is on the disk.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"
"""How names of unfinished files begin. They end like the final name, because libraries choose formats by the suffix."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # Linux


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync folders; their servers do it themselves.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Wait until a folder is on the disk with everything in it."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                sync(path)
        sync(Path(parent))


def make_folder(path: Path) -> None:
    """Create a folder, and the missing ones above it, if it does not exist."""
    path = path.absolute()
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync(folder.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a new file, or a new version of an existing one.

    Yields:
        A temporary path in the same folder. If the context ends without an exception, the file there gets its final
        name; otherwise, it is removed.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write(path: Path, content: str | bytes) -> None:
    """Write a new file, or a new version of an existing one."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def copy_tree(source: Path, target: Path) -> None:
    """Copy the content of a folder into another one, file by file. Permissions are those of new files."""
    make_folder(target)
    for entry in sorted(source.iterdir()):
        if entry.is_dir():
            copy_tree(entry, target / entry.name)
        else:
            with replacing(target / entry.name) as temporary:
                shutil.copyfile(entry, temporary)


def publish(temporary: Path, final: Path) -> None:
    """Give a complete folder its final name in the same parent folder. A folder of that name is replaced and removed.

    If that fails, ``final`` is as it was before.
    """
    sync_tree(temporary)
    replaced = None
    if not final.exists():
        temporary.rename(final)
    elif _exchange(temporary, final):
        replaced = temporary
    else:
        replaced = temporary.with_name(f"{temporary.name}.old.tmp")
        final.rename(replaced)
        try:
            temporary.rename(final)
        except BaseException:
            replaced.rename(final)  # if this fails, too, the old folder remains under its temporary name
            raise
    sync(final.parent)
    if replaced is not None:
        if replaced.is_symlink():
            replaced.unlink()
        shutil.rmtree(replaced, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; return whether the file system can do that."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # not Linux, or an old C library
        return False
    arguments = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    if renameat2(*arguments) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(second))


def make_sqlite_durable() -> None:
    """Let every commit to an SQLite database that SQLAlchemy opens in this process survive a power cut.

    By default, SQLite syncs its files, but not the removal of its journal that completes a commit, so that the last
    commit may be undone. Databases remain intact in either case.
    """
    from sqlalchemy import event  # lazy: it takes long to import
    from sqlalchemy.engine import Engine

    if not event.contains(Engine, "connect", _sync_commits):
        event.listen(Engine, "connect", _sync_commits)


def _sync_commits(connection: Any, _record: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        with suppress(sqlite3.Error):  # e.g. not a database: the first statement reports that
            connection.execute("PRAGMA synchronous = EXTRA")
