"""Backups of the tracking server's folder in an object store, which preserve it while no machine runs the server."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fgst import durable
from fgst.errors import InputError

EXCLUDED = ("lock", "socket", "mlflow.log", "postgres.log")


def save_backup(folder: Path, uri: str) -> int:
    """Save a stopped server's folder as one archive. Artifacts stored elsewhere are not included.

    Args:
        folder: the server's folder.
        uri: URI of the archive, e.g. s3://bucket/server.tar.gz; an existing one is replaced once this one is complete.

    Returns:
        The size of the archive in bytes.

    Raises:
        InputError: if the folder is not a server's, its server is running, or the archive cannot be written.
    """
    filesystem, path = _open_uri(uri)
    if not (folder / "known").exists():
        raise InputError(f"{folder} is not a tracking server's folder: no server has ever started there")
    with _copy_errors(uri), tempfile.TemporaryFile() as packed:
        try:
            with FileLock(folder / "lock", timeout=0):
                with tarfile.open(fileobj=packed, mode="w:gz") as archive:
                    for entry in sorted(folder.iterdir()):
                        if entry.name not in EXCLUDED:
                            archive.add(entry, entry.name)
                size = packed.tell()
                packed.seek(0)
                # Object stores show an object once it is complete; a file becomes visible in the same way.
                local = filesystem.type_name == "local"
                with (
                    durable.replacing(Path(path)) if local else nullcontext(path) as target,
                    filesystem.open_output_stream(str(target)) as stream,
                ):
                    while chunk := packed.read(8 * 1024 * 1024):
                        stream.write(chunk)
        except Timeout:
            raise InputError(
                f"{folder}: its server is running; stop it first, so that its database is consistent"
            ) from None
    return size


def restore_backup(folder: Path, uri: str) -> bool:
    """Restore a server's folder from its archive.

    Args:
        folder: where to restore it; may exist, but must not contain a server's data.
        uri: URI of the archive.

    Returns:
        Whether there was an archive.

    Raises:
        InputError: if the folder contains a server's data, or the archive is incomplete or something else.
    """
    from pyarrow import fs  # lazy: not needed by the server itself

    filesystem, path = _open_uri(uri)
    if (folder / "known").exists():
        raise InputError(f"{folder} already contains a tracking server's data, which is not overwritten")
    with _copy_errors(uri):
        if filesystem.get_file_info(path).type != fs.FileType.File:
            return False
        durable.make_folder(folder)
        complete = False
        with filesystem.open_input_stream(path) as stream, tarfile.open(fileobj=stream, mode="r|gz") as archive:
            for member in archive:
                if member.name == "known":
                    complete = True  # created last, below: an interrupted restore can be repeated
                else:
                    # The filter "tar" preserves modes, and as root owners: PostgreSQL requires both for its folder.
                    archive.extract(member, folder, filter="tar")
        if not complete:
            raise InputError(f"{path} is not a backup of a tracking server")
        durable.sync_tree(folder)
        durable.write(folder / "known", b"")
    return True


def _open_uri(uri: str) -> tuple[Any, str]:
    """Return the ``pyarrow`` file system of a URI, and the path in it."""
    from pyarrow import fs  # lazy: not needed by the server itself

    if "://" not in uri:
        raise InputError(f"{uri}: not a URI, e.g. s3://bucket/fgst/server.tar.gz")
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (OSError, ValueError) as error:
        raise InputError(f"{uri}: cannot be accessed ({str(error).splitlines()[0]})") from None
    return filesystem, path


@contextmanager
def _copy_errors(uri: str) -> Iterator[None]:
    """Turn the errors of copying and unpacking into one-line messages."""
    try:
        yield
    except (OSError, EOFError, tarfile.TarError) as error:  # includes Arrow's own errors
        raise InputError(f"{uri}: cannot be copied ({str(error).splitlines()[0]})") from None
