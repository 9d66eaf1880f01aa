"""Arrays in ``.npy`` files, and in zips of them (``.npz``), read row by row along the first axis."""

from __future__ import annotations

import functools
import math
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from fgst.data.formats.array import HEADERS
from fgst.data.sources import COMPRESSIONS, MAX_FILE_BYTES, ClipError, open_zip
from fgst.errors import InputError
from fgst.parsing import printable, shorten


class Rows:
    """An array, of which one row is in memory at a time.

    Rows of a compressed file are read in order; going back starts again at its beginning.

    Attributes:
        shape: lengths of its axes.
        dtype: type of its numbers.
    """

    def __init__(self, location: str, open_file: Callable[[], IO[bytes]], size: int) -> None:
        """Read the header.

        Args:
            location: the name of the file for messages.
            open_file: opens the file, which can be sought.
            size: its size in bytes.

        Raises:
            InputError: if it is not an array of numbers, or is incomplete.
        """
        self.location = location
        self._damage: str | None = None
        try:
            self._file = open_file()
            self.shape, is_fortran, self.dtype = HEADERS[npy.read_magic(self._file)](self._file)
        except Exception as error:  # damaged content raises exceptions of many types
            raise InputError(f"{location}: is not an array in NumPy's format ({shorten(str(error))})") from None
        self._start = self._file.tell()
        if self.dtype.kind not in "fiub" or not self.shape or min(self.shape) < 1:
            raise InputError(f"{location}: has {self.dtype} values of shape {self.shape}, not rows of numbers")
        if is_fortran and len(self.shape) > 1:
            raise InputError(f"{location}: is stored in Fortran order; save numpy.ascontiguousarray of it")
        self._stride = math.prod(self.shape[1:]) * self.dtype.itemsize
        expected = self._start + self.shape[0] * self._stride
        if size != expected:
            what = "is incomplete" if size < expected else "is longer than its header says"
            raise InputError(
                f"{location}: {what} ({size:,} bytes instead of the {expected:,} of shape {self.shape}); copy it again"
            )
        if self._stride > MAX_FILE_BYTES:
            raise InputError(f"{location}: has {self._stride:,} bytes per row; a clip has at most {MAX_FILE_BYTES:,}")

    def __len__(self) -> int:
        return self.shape[0]

    def row(self, index: int) -> np.ndarray:
        """Return a row.

        Raises:
            ClipError: if it cannot be read.
        """
        try:
            offset = self._start + index * self._stride
            if self._file.tell() != offset:
                self._file.seek(offset)
            content = self._file.read(self._stride)
        except Exception as error:  # damaged compressed content raises exceptions of many types
            self._damage = shorten(str(error))
            raise ClipError(f"is damaged in {self.location} ({self._damage})") from None
        if len(content) != self._stride:
            self._damage = "it became shorter"
            raise ClipError(f"is missing in {self.location}: it became shorter")
        return np.frombuffer(content, self.dtype).reshape(self.shape[1:])

    def check_end(self) -> None:
        """Check, once the last row has been read, that none was damaged.

        Raises:
            InputError: if one was: a checksum does not say which.
        """
        if self._damage is not None:
            raise InputError(f"{self.location}: is damaged ({self._damage}); copy or download it again")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def open_npy(path: Path) -> Iterator[Rows]:
    """Open an ``.npy`` file.

    Raises:
        InputError: if it is not an array of numbers, or is incomplete.
    """
    location = printable(str(path))
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise InputError(f"{location}: cannot be read ({error.strerror})") from None
    if not path.is_file():
        raise InputError(f"{location}: is not a regular file")
    rows = Rows(location, lambda: path.open("rb"), size)
    try:
        yield rows
    finally:
        rows.close()


class Archive:
    """An open ``.npz``."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            InputError: if it is not a zip.
        """
        self.location = printable(str(path))
        self._zip = open_zip(path, "")
        self._members = {member.filename: member for member in self._zip.infolist()}
        self._rows: list[Rows] = []

    @property
    def names(self) -> list[str]:
        """The names of its members, e.g. ``x_train.npy``."""
        return list(self._members)

    def rows(self, name: str) -> Rows:
        """Open an array by its name without suffix, until the archive is closed.

        Raises:
            InputError: if there is no such array, or it is incomplete.
        """
        location, member = f"{self.location}: {name}", self._member(f"{name}.npy")
        if member.compress_type not in COMPRESSIONS or member.flag_bits & 0x1:
            raise InputError(f"{location}: is encrypted, or compressed by an unusual method; save it with numpy.savez")
        rows = Rows(location, functools.partial(self._zip.open, member), member.file_size)
        self._rows.append(rows)
        return rows

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return a whole member.

        Raises:
            InputError: if there is no such member, it is damaged, or is larger than ``max_bytes``.
        """
        member = self._member(name)
        try:
            if member.file_size > max_bytes:
                raise ValueError(f"it has {member.file_size:,} bytes")
            with self._zip.open(member) as file:
                return file.read(max_bytes)
        except Exception as error:  # damaged content raises exceptions of many types
            raise InputError(f"{self.location}: {name}: is damaged ({shorten(str(error))})") from None

    def _member(self, name: str) -> zipfile.ZipInfo:
        if name not in self._members:
            raise InputError(f"{self.location}: has no {name}; it has {shorten(', '.join(self.names)) or 'nothing'}")
        return self._members[name]

    def close(self) -> None:
        """Close the archive and its arrays."""
        for rows in self._rows:
            rows.close()
        self._zip.close()
