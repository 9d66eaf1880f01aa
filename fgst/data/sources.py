"""The files of a download: the members of a zip, read without unpacking it, or the files of a folder.

Nothing that a file or an archive says about itself is trusted: sizes are bounded while reading, and every way in
which a file can be unreadable becomes a :class:`ClipError`.
"""

from __future__ import annotations

import functools
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fgst.data.report import printable
from fgst.errors import InputError

# Members packed by bzip2 or LZMA cannot be read in bounded memory, and no data set is distributed so.
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_FOREIGN_FILES = ("thumbs.db", "desktop.ini")


class ClipError(Exception):
    """Why one file is not a clip."""


@dataclass(frozen=True)
class ClipFile:
    """A file of a source.

    Attributes:
        name: its name without folder and suffix.
        place: its path inside the source, fit to be printed.
        key: finds it again with :func:`read_again`, in another process too.
        stamp: changes when its content does: size, and CRC or time of change.
        read: gives its content, or raises ClipError.
    """

    name: str
    place: str
    key: str | int
    stamp: tuple[int, int]
    read: Callable[[], bytes] = field(repr=False)


@dataclass(frozen=True)
class Source:
    """The files with the suffix asked for, and the number of others."""

    files: list[ClipFile]
    strays: int


@contextmanager
def open_source(source: Path, *, suffix: str, max_bytes: int, hint: str) -> Iterator[Source]:
    """List the files of a zip or of a folder and its sub-folders; they can be read until the context ends.

    What belongs to the operating system or to the archiver (hidden files, ``__MACOSX``, ``Thumbs.db``) is passed over.

    Args:
        suffix: of the files wanted, in lower case, with its dot.
        max_bytes: a larger file raises ClipError when it is read.
        hint: what to do about a source that is none, for messages.

    Raises:
        InputError: if there is no such zip or folder, it cannot be read, or it has no file with that suffix.
    """
    where = printable(str(source))
    if source.is_dir():
        found = _folder(source, suffix, max_bytes)
        archive = None
    elif source.is_file():
        archive = _open_zip(source)
        found = _zip(archive, suffix, max_bytes)
    else:
        raise InputError(f"{where}: no such file or folder; {hint}")
    try:
        if not found.files:
            raise InputError(f"{where}: holds no {suffix} file; {hint}")
        yield found
    finally:
        if archive is not None:
            archive.close()


def _folder(source: Path, suffix: str, max_bytes: int) -> Source:
    def unreadable(error: OSError) -> None:
        raise InputError(f"{printable(str(error.filename))}: cannot be read ({error.strerror}); see its permissions")

    files, strays = [], 0
    for folder, _, names in os.walk(source, onerror=unreadable):
        for name in names:
            path = Path(folder, name)
            place = path.relative_to(source)
            if _is_foreign(place.parts):
                continue
            if path.suffix.lower() != suffix:
                strays += 1
                continue
            try:
                status = path.stat()
                stamp = status.st_size, status.st_mtime_ns
            except OSError:  # a broken link: reading it will say so
                stamp = -1, -1
            read = functools.partial(read_path, path, max_bytes)
            files.append(ClipFile(path.stem, printable(str(place)), str(place), stamp, read))
    return Source(files, strays)


def _zip(archive: zipfile.ZipFile, suffix: str, max_bytes: int) -> Source:
    files, strays = [], 0
    for key, member in enumerate(archive.infolist()):
        path = PurePosixPath(member.filename.replace("\\", "/"))  # some archivers of Windows write backslashes
        if member.is_dir() or not path.name or _is_foreign(path.parts):
            continue
        if path.suffix.lower() != suffix:
            strays += 1
            continue
        read = functools.partial(_read_member, archive, member, max_bytes)
        files.append(ClipFile(path.stem, printable(str(path)), key, (member.file_size, member.CRC), read))
    return Source(files, strays)


def read_again(source: Path, key: str | int, max_bytes: int) -> bytes:
    """The content of a file of a source by its key, as :attr:`ClipFile.read` gives it.

    Raises:
        ClipError: if it cannot be read.
    """
    if isinstance(key, str):
        return read_path(source / key, max_bytes)
    try:
        archive = _archive(str(source))
        member = archive.infolist()[key]
    except (InputError, IndexError) as error:
        raise ClipError(f"cannot be read any more ({error})") from None
    return _read_member(archive, member, max_bytes)


@functools.lru_cache(maxsize=16)
def _archive(source: str) -> zipfile.ZipFile:
    """A zip that stays open for as long as this process reads from it: listing 100,000 members takes a second."""
    return _open_zip(Path(source))


def _is_foreign(parts: Sequence[str]) -> bool:
    """Whether a path belongs to the operating system or to the archiver, and not to the data."""
    hidden = any(part.startswith(".") and part not in (".", "..") for part in parts)
    return hidden or "__MACOSX" in parts or parts[-1].lower() in _FOREIGN_FILES


def _open_zip(source: Path) -> zipfile.ZipFile:
    where = printable(str(source))
    try:
        return zipfile.ZipFile(source)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
        raise InputError(f"{where}: is no zip, or only a part of one ({error}); download it again") from None
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror}); see its permissions") from None


def read_path(path: Path, max_bytes: int) -> bytes:
    try:
        if not path.is_file():  # a pipe would never end, a broken link has nothing to read
            raise ClipError("is no regular file")
        with path.open("rb") as file:
            return _bounded(file.read(max_bytes + 1), max_bytes)
    except OSError as error:
        raise ClipError(f"cannot be read ({error.strerror})") from None


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, max_bytes: int) -> bytes:
    if member.flag_bits & 0x1:
        raise ClipError("is encrypted: unpack the zip with its password and name the folder")
    if member.compress_type not in COMPRESSIONS:
        raise ClipError(f"is compressed by method {member.compress_type}: unpack the zip and name the folder")
    try:
        with archive.open(member) as file:
            return _bounded(file.read(max_bytes + 1), max_bytes)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError, OSError) as error:
        raise ClipError(f"is damaged inside the zip ({error}): download the zip again") from None


def _bounded(content: bytes, max_bytes: int) -> bytes:
    if len(content) > max_bytes:
        raise ClipError(f"is larger than the {max_bytes >> 20} MiB that a clip may take")
    return content
