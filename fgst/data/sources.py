"""The files of a download: members of a zip, read without unpacking it, or files in a folder.

Sizes that a file or an archive declares are not trusted: reading is bounded, and every failure to read or to parse a
file is reported as a :class:`ClipError`, so that one bad file never ends a batch.
"""

from __future__ import annotations

import functools
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

import msgspec
import numpy as np

from fgst.errors import InputError
from fgst.parsing import printable, read_regular_file, shorten

S = TypeVar("S")
T = TypeVar("T")

# The longest clips of the supported data sets take 4 MB. The limit bounds memory use when a file is not a clip.
MAX_FILE_BYTES = 16 * 1024 * 1024
# Members compressed by bzip2 or LZMA cannot be read in bounded memory, and no known data set uses them.
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_SYSTEM_FILES = ("thumbs.db", "desktop.ini")


class ClipError(Exception):
    """A raw file is not a usable clip; the message says why."""


class EmptyClip(ClipError):
    """A raw file is intact, but its format expects files without any person, and this is one.

    Conversion leaves such a clip out and counts it by the message, rather than reporting a fault.
    """


@dataclass(frozen=True)
class ClipFile:
    """A file of a source.

    Attributes:
        name: its name without folder and suffix.
        path: its path inside the source, escaped for printing.
        key: identifies it for :func:`read_file`, in other processes too.
        fingerprint: changes when its content does: size, and CRC or modification time.
        read: returns its content, or raises ClipError.
    """

    name: str
    path: str
    key: str | int
    fingerprint: tuple[int, int]
    read: Callable[[], bytes] = field(repr=False)


@dataclass(frozen=True)
class Source:
    """The files with the requested suffix, and the number of files with another one."""

    files: list[ClipFile]
    other_files: int


def parse_clip(parse: Callable[[S], T], content: S) -> T:
    """Parse the content of a file; data preparation, prediction and serving call every parser here.

    Raises:
        ClipError: if it is not a clip, whatever exception the parser raises: those of damaged content cannot be listed
            (a tokenizer's errors, RecursionError, MemoryError, OverflowError …).
    """
    try:
        with np.errstate(all="ignore"):  # no warning about coordinates that are too large, which are refused
            return parse(content)
    except ClipError:
        raise
    except Exception as error:
        raise ClipError(f"cannot be parsed ({type(error).__name__}: {shorten(str(error))})") from error


def decode_clip(content: bytes, decoder: msgspec.json.Decoder[T], what: str) -> T:
    """Decode the JSON of a clip.

    Args:
        content: the whole file.
        decoder: for its type, which also checks it.
        what: what the file should be, for the message, e.g. "a frame of OpenPose".

    Raises:
        ClipError: if it is not such a value.
    """
    try:
        return decoder.decode(content)
    except msgspec.ValidationError as error:
        raise ClipError(f"is not {what} ({error})") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ClipError(f"is not valid JSON ({error})") from None


@contextmanager
def open_source(source: Path, *, suffix: str, max_bytes: int, hint: str) -> Iterator[Source]:
    """List the files of a zip, or of a folder and its sub-folders; they can be read until the context ends.

    Files of the operating system or the archiver (hidden files, ``__MACOSX``, ``Thumbs.db``) are skipped.

    Args:
        source: a zip or a folder.
        suffix: suffix of the files to list, in lower case, with its dot.
        max_bytes: reading a larger file raises ClipError.
        hint: the remedy that error messages suggest.

    Raises:
        InputError: if there is no such zip or folder, it cannot be read, or it has no file with that suffix.
    """
    location = printable(str(source))
    archive = None
    if os.path.isdir(source):  # unlike Path.is_dir, False also for impossible names
        listing = _list_folder(source, suffix, max_bytes)
    elif os.path.isfile(source):
        archive = open_zip(source, hint)
        listing = _list_zip(archive, suffix, max_bytes)
    else:
        raise InputError(f"{location}: no such file or folder; {hint}")
    try:
        if not listing.files:
            raise InputError(f"{location}: contains no {suffix} file; {hint}")
        yield listing
    finally:
        if archive is not None:
            archive.close()


def walk_files(source: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folders of a tree, relative to it, with the names of their files, without system files.

    Raises:
        InputError: if a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise InputError(f"{printable(str(error.filename))}: cannot be read ({error.strerror}); check its permissions")

    for folder, _, names in os.walk(source, onerror=fail):
        relative = Path(folder).relative_to(source)
        yield relative, [name for name in names if not _is_system_file((*relative.parts, name))]


def _list_folder(source: Path, suffix: str, max_bytes: int) -> Source:
    files, other_files = [], 0
    for folder, names in walk_files(source):
        for name in names:
            relative = folder / name
            path = source / relative
            if path.suffix.lower() != suffix:
                other_files += 1
                continue
            try:
                status = path.stat()
                fingerprint = status.st_size, status.st_mtime_ns
            except OSError:  # a broken link: reading it will report the error
                fingerprint = -1, -1
            read = functools.partial(read_path, path, max_bytes)
            files.append(ClipFile(path.stem, printable(str(relative)), str(relative), fingerprint, read))
    return Source(files, other_files)


def _list_zip(archive: zipfile.ZipFile, suffix: str, max_bytes: int) -> Source:
    files, other_files = [], 0
    for index, member in enumerate(archive.infolist()):
        path = PurePosixPath(member.filename.replace("\\", "/"))  # some Windows archivers write backslashes
        # Not member.is_dir(), which fails for an empty name.
        if member.filename.endswith("/") or not path.name or _is_system_file(path.parts):
            continue
        if path.suffix.lower() != suffix:
            other_files += 1
            continue
        read = functools.partial(_read_member, archive, member, max_bytes)
        files.append(ClipFile(path.stem, printable(str(path)), index, (member.file_size, member.CRC), read))
    return Source(files, other_files)


def some_names(source: Path, limit: int = 20_000) -> list[str]:
    """Return the paths of files inside a folder or zip, for recognition of formats; none if it cannot be read.

    Args:
        source: a folder, a zip or any other file.
        limit: number of files to list. In a folder with a larger tree, files of the top levels come first.
    """
    names: list[str] = []
    try:
        if os.path.isdir(source):
            for folder, _, files in os.walk(source):
                relative = Path(folder).relative_to(source)
                names += [(relative / name).as_posix() for name in files]
                if len(names) >= limit:
                    break
        elif zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                names = [member.filename.replace("\\", "/") for member in archive.infolist()]
    except Exception:  # a damaged directory of a zip raises exceptions of many types
        return []
    return [name for name in names if name and not name.endswith("/") and not _is_system_file(name.split("/"))][:limit]


def first_contents(source: Path, names: Sequence[str], max_bytes: int = MAX_FILE_BYTES) -> list[bytes]:
    """Return the content of files of :func:`some_names`, without those that cannot be read."""
    contents = []
    try:
        archive = None if os.path.isdir(source) else zipfile.ZipFile(source)
        for name in names:
            with suppress(ClipError, KeyError):
                contents.append(
                    read_path(source / name, max_bytes)
                    if archive is None
                    else _read_member(archive, archive.getinfo(name), max_bytes)
                )
        if archive is not None:
            archive.close()
    except Exception:  # a damaged directory of a zip raises exceptions of many types
        return contents
    return contents


def read_file(source: Path, key: str | int, max_bytes: int) -> bytes:
    """Read a file of a source by its key, like :attr:`ClipFile.read`.

    Raises:
        ClipError: if it cannot be read.
    """
    if isinstance(key, str):
        return read_path(source / key, max_bytes)
    try:
        archive = _cached_zip(str(source))
        member = archive.infolist()[key]
    except (InputError, IndexError) as error:
        raise ClipError(f"can no longer be read ({error})") from None
    return _read_member(archive, member, max_bytes)


@functools.lru_cache(maxsize=16)
def _cached_zip(source: str) -> zipfile.ZipFile:
    """Open a zip and keep it open in this process: listing 100,000 members takes a second."""
    return open_zip(Path(source), "")


def _is_system_file(parts: Sequence[str]) -> bool:
    """Return whether a path belongs to the operating system or the archiver rather than to the data."""
    hidden = any(part.startswith(".") and part not in (".", "..") for part in parts)
    return hidden or "__MACOSX" in parts or parts[-1].lower() in _SYSTEM_FILES


def open_zip(source: Path, hint: str) -> zipfile.ZipFile:
    """Open a zip.

    Args:
        source: the file.
        hint: the remedy that error messages suggest besides another download.

    Raises:
        InputError: if it cannot be read, or is not a zip.
    """
    location = printable(str(source))
    try:
        return zipfile.ZipFile(source)
    except OSError as error:
        raise InputError(f"{location}: cannot be read ({error.strerror}); check its permissions") from None
    except Exception as error:  # a damaged directory raises exceptions of many types
        remedy = f"download it again, or {hint}" if hint else "download it again"
        raise InputError(f"{location}: is not a zip, or is incomplete ({shorten(str(error))}); {remedy}") from None


def read_path(path: Path, max_bytes: int) -> bytes:
    """Read a regular file of at most ``max_bytes``.

    Raises:
        ClipError: if it is larger, not a regular file, or cannot be read.
    """
    try:
        return read_regular_file(path, max_bytes)
    except ValueError as error:
        raise ClipError(str(error)) from None


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, max_bytes: int) -> bytes:
    if member.flag_bits & 0x1:
        raise ClipError("is encrypted: unpack the zip with its password and give the folder instead")
    if member.compress_type not in COMPRESSIONS:
        raise ClipError(f"is compressed by method {member.compress_type}: unpack the zip and give the folder instead")
    try:
        with archive.open(member) as file:
            content = file.read(max_bytes + 1)
    except Exception as error:  # damaged content raises exceptions of many types
        raise ClipError(f"is damaged inside the zip ({shorten(str(error))}): download the zip again") from None
    if len(content) > max_bytes:
        raise ClipError(f"is larger than {max_bytes >> 20} MiB, the limit for such a file")
    return content
