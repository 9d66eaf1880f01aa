"""Local cache of data sets on object stores.

A data set given as ``s3://bucket/ntu-60``, ``gs://…`` or ``file:///mnt/…`` (anything ``pyarrow.fs`` supports) is copied
to this machine once, verified, and then memory-mapped by every process. Copies are stored under ``FGST_CACHE``
(default ``~/.cache/fgst``), named by the digest of the data set's description, so a modified data set gets a new copy.
Concurrent processes share one download; interrupted downloads resume with the files that are complete.
``FGST_CACHE_LIMIT`` (e.g. ``20G``) bounds the total size; the least recently used copies are evicted first.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
from filelock import FileLock, Timeout
from pyarrow import fs

from fgst import durable
from fgst.data.layout import DESCRIPTION, FileEntry, file_digest, parse_description
from fgst.errors import InputError
from fgst.parsing import MAX_BYTES

_CHUNK = 8 * 1024 * 1024
_REPORT_SECONDS = 10.0  # between two progress messages of a download
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_remote(location: str | os.PathLike[str]) -> bool:
    """Return whether a data set's location is a URI rather than a local path."""
    return isinstance(location, str) and _SCHEME.match(location) is not None


def cache_folder() -> Path:
    """Return the folder of the cache on this machine."""
    return Path(os.environ.get("FGST_CACHE") or Path.home() / ".cache" / "fgst").absolute()


def cache_limit() -> int | None:
    """Return ``FGST_CACHE_LIMIT`` in bytes, or ``None`` if it is not set.

    Raises:
        InputError: if it is not a valid size.
    """
    text = os.environ.get("FGST_CACHE_LIMIT", "")
    return read_size(text, "FGST_CACHE_LIMIT") if text else None


def read_size(text: str, name: str) -> int:
    """Parse ``20G``, ``500M``, ``1.5T`` or a number of bytes; units are powers of 1000.

    Args:
        text: the size.
        name: the option or variable that it comes from, for the error message.

    Raises:
        InputError: if it is not a valid size.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kKMGT]?)i?B?", text.strip())
    if match is None:
        raise InputError(f"{name} is {text!r}; write a size such as 20G")
    return int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " "))


def local_copy(location: str) -> Path:
    """Return the local directory of the data set at a URI, downloading it first if it is not cached.

    Raises:
        InputError: if there is no data set, it cannot be read, its files do not match its description, or the disk
            or the cache limit has no room for it.
    """
    if urlsplit(location).password:
        raise InputError(
            "the data set's URI contains a password; pass credentials in environment variables instead, because URIs "
            "are recorded"
        )
    try:
        filesystem, base = fs.FileSystem.from_uri(location)
        with filesystem.open_input_stream(f"{base}/{DESCRIPTION}") as stream:
            description = stream.read(MAX_BYTES)
    except FileNotFoundError:
        raise InputError(f"{location}: is not a data set (no {DESCRIPTION})") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{location}: cannot be read ({_first_line(error)})") from None
    files = parse_description(description, location).files
    folder = cache_folder() / hashlib.sha256(description).hexdigest()[:32]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / DESCRIPTION).is_file():
                _make_room(folder, sum(file.bytes for file in files))
                _download(filesystem, base, location, files, description, folder)
            os.utime(folder)  # the time of last use, for eviction
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror or error}); set FGST_CACHE to another folder"
        ) from None
    return folder


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _Progress:
    """Reports a download's progress on stderr every few seconds."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._resumed = 0  # bytes that an interrupted download had copied before
        self._started = self._reported = time.monotonic()

    def skip(self, size: int) -> None:
        self._done += size
        self._resumed += size

    def add(self, size: int) -> None:
        self._done += size
        now = time.monotonic()
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            rate = (self._done - self._resumed) / (now - self._started)
            seconds = (self._total - self._done) / rate
            print(
                f"{self._done / self._total:.0%}, {rate / 1e6:,.0f} MB/s, {seconds:.0f} s left",
                file=sys.stderr,
                flush=True,
            )


def _download(
    filesystem: fs.FileSystem, base: str, location: str, files: Sequence[FileEntry], description: bytes, folder: Path
) -> None:
    """Download into a neighbouring ``.partial`` folder, verify each file, and rename the folder at the end.

    Files that an interrupted download completed are reused.
    """
    partial = _partial(folder)
    partial.mkdir(exist_ok=True)
    total = sum(file.bytes for file in files)
    print(f"copying {location} ({total / 1e6:,.0f} MB) to {folder}", file=sys.stderr, flush=True)
    progress = _Progress(total)
    for file in files:
        target = partial / file.name
        if target.is_file() and target.stat().st_size == file.bytes and file_digest(target) == file.sha256:
            progress.skip(file.bytes)
            continue
        try:
            matches = _download_file(filesystem, f"{base}/{file.name}", target, file, progress)
        except FileNotFoundError:
            raise InputError(f"{location}/{file.name}: is missing; upload the data set again") from None
        except pa.ArrowException as error:
            raise InputError(f"{location}/{file.name}: cannot be read ({_first_line(error)})") from None
        if not matches:
            target.unlink()
            raise InputError(
                f"{location}/{file.name}: does not match its entry in {DESCRIPTION}; upload the data set again"
            )
    (partial / DESCRIPTION).write_bytes(description)
    durable.publish(partial, folder)


def _download_file(
    filesystem: fs.FileSystem, path: str, target: Path, expected: FileEntry, progress: _Progress
) -> bool:
    """Copy one file; return whether its size and digest are those expected."""
    digest, size = hashlib.sha256(), 0
    with filesystem.open_input_stream(path) as stream, target.open("wb") as file:
        while size <= expected.bytes and (chunk := stream.read(_CHUNK)):
            digest.update(chunk)
            file.write(chunk)
            size += len(chunk)
            progress.add(len(chunk))
    return size == expected.bytes and digest.hexdigest() == expected.sha256


def _partial(folder: Path) -> Path:
    """The folder of an unfinished download."""
    return folder.with_name(folder.name + ".partial")


def _readable(size: int) -> str:
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    unit, name = next((unit, name) for unit, name in units if size >= unit or unit == 1e3)
    return f"{size / unit:.1f} {name}"


def _make_room(folder: Path, needed: int) -> None:
    """Evict the least recently used copies until ``needed`` more bytes fit the cache limit; check the free disk space.

    Raises:
        InputError: if the limit or the disk is too small for the data set.
    """
    limit = cache_limit()
    if limit is not None:
        if needed > limit:
            raise InputError(
                f"the data set takes {_readable(needed)}, more than --cache-limit (FGST_CACHE_LIMIT) of "
                f"{_readable(limit)}"
            )
        copies = [entry for entry in folder.parent.iterdir() if (entry / DESCRIPTION).is_file() and entry != folder]
        sizes = {entry: sum(file.stat().st_size for file in entry.iterdir()) for entry in copies}
        for entry in sorted(copies, key=lambda entry: entry.stat().st_mtime):
            if sum(sizes.values()) + needed <= limit:
                break
            try:
                # Processes that have mapped the files keep their data: only the directory entries are removed.
                with FileLock(f"{entry}.lock", timeout=0):
                    shutil.rmtree(entry)
                    del sizes[entry]
            except Timeout:
                continue
    partial = _partial(folder)
    present = sum(file.stat().st_size for file in partial.iterdir()) if partial.is_dir() else 0
    free = shutil.disk_usage(folder.parent).free
    if needed - present > free:
        raise InputError(
            f"{folder.parent}: has {_readable(free)} free, but the data set takes {_readable(needed)}; free some "
            "space, or set FGST_CACHE to another folder"
        )
