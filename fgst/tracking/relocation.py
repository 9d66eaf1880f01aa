"""Artifacts of an embedded tracking store stay next to its database when the folder is moved, renamed or copied.

MLflow stores absolute locations. A copied project would write to, and delete from, the original; a renamed one would
recreate its old folder. Therefore the locations in the database are updated whenever it is opened from another folder:
``OLD/mlruns/…`` becomes ``NEW/mlruns/…``, and so do the checkpoint folders and Optuna databases that sweeps recorded
inside the old folder. Locations elsewhere are not touched.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fgst.tracking.tags import Tags
from fgst.tracking.uris import database_path, sqlite_uri

FOLDER = "mlruns"
"""Folder of the artifacts, next to the database."""
# Columns with absolute locations, by table.
_LOCATIONS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}


def artifact_location(database: Path, experiment: str) -> str:
    """The URI under which an experiment's artifacts are stored."""
    return (database.parent / FOLDER / experiment.replace("/", "-").replace(" ", "-")).as_uri()


def relocate(database: Path) -> None:
    """Update the locations in a database that was moved or copied since it was last opened.

    Nothing is changed if the old folder is the same directory under another name, e.g. through a symbolic link.

    Raises:
        OSError, sqlite3.Error: if the database cannot be read or written.
    """
    new = database.parent
    with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as connection:
        if not (moved := _former_folders(connection, new)):
            return
        connection.execute("BEGIN IMMEDIATE")
        for old in _former_folders(connection, new):  # another process may have been faster
            _update(connection, old, new)
        connection.execute("COMMIT")
    for old in moved:
        print(
            f"note: the tracking store was moved or copied from {old}; its artifacts are expected in {new / FOLDER}",
            file=sys.stderr,
            flush=True,
        )


def _former_folders(connection: sqlite3.Connection, folder: Path) -> list[Path]:
    """Folders other than ``folder`` from which experiments were created whose artifacts lay next to the database."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
        return []
    folders = set()
    for (location,) in connection.execute("SELECT artifact_location FROM experiments"):
        path = _local_path(location or "")
        # MLflow itself names an experiment's folder by its number; where such a folder lies is up to the user.
        if path is not None and path.parent.name == FOLDER and not path.name.isdigit():
            folders.add(path.parent.parent)
    return sorted(old for old in folders if old != folder and not _is_same_folder(old, folder))


def _is_same_folder(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _local_path(location: str) -> Path | None:
    parts = urlsplit(location)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    return Path(location) if location.startswith("/") else None


def _update(connection: sqlite3.Connection, old: Path, new: Path) -> None:
    """Replace the beginning of all locations inside ``old``."""
    for table, columns in _LOCATIONS.items():
        existing = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        for column in existing.intersection(columns):
            for before, after in (
                ((old / FOLDER).as_uri(), (new / FOLDER).as_uri()),
                (str(old / FOLDER), str(new / FOLDER)),
            ):
                _replace_prefix(connection, table, column, before, after)
    tags = connection.execute(
        "SELECT run_uuid, key, value FROM tags WHERE key IN (?, ?)", (Tags.STORAGE, Tags.STUDY_STORAGE)
    ).fetchall()
    for run_id, key, value in tags:
        is_study = key == Tags.STUDY_STORAGE
        path = database_path(value) if is_study else Path(value)
        if path is not None and path.is_relative_to(old):
            moved = new / path.relative_to(old)
            location = sqlite_uri(moved) if is_study else str(moved)
            connection.execute("UPDATE tags SET value = ? WHERE run_uuid = ? AND key = ?", (location, run_id, key))


def _replace_prefix(connection: sqlite3.Connection, table: str, column: str, before: str, after: str) -> None:
    connection.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
        f"WHERE substr({column}, 1, ?) = ? AND substr({column}, ?, 1) IN ('', '/')",
        (after, len(before) + 1, len(before), before, len(before) + 1),
    )
