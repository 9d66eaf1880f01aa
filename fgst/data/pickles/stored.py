"""What a pickle contains besides Python's own types: arrays, and their parts while they are described."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from fgst.parsing import shorten

MAX_ARRAY = 256 * 2**20  # bytes of one array that are read; clips and lists of names take far fewer


class PickleError(ValueError):
    """A file is not a pickle of data, or is damaged; the message says why, and does not contain a path."""


class StoredArray:
    """An array in a pickle, whose elements are read from the file on demand.

    Attributes:
        shape: lengths of its axes.
        dtype: type of its elements: numbers, booleans, texts or bytes.
    """

    __slots__ = ("_data", "_is_built", "_is_fortran", "_load", "dtype", "shape")

    def __init__(self, load: Callable[[bytes | Payload], bytes]) -> None:
        self._load = load
        self.shape: tuple[int, ...] = (0,)
        self.dtype = np.dtype(np.int8)
        self._data: bytes | Payload = b""
        self._is_fortran = self._is_built = False

    def build(self, shape: Any, dtype: np.dtype, data: bytes | Payload, *, is_fortran: bool) -> None:
        if self._is_built or not isinstance(shape, tuple) or len(shape) > 8:
            raise PickleError("has an array that is not described as NumPy does it")
        if not all(type(length) is int and 0 <= length < 2**40 for length in shape):
            raise PickleError("has an array with an impossible shape")
        size = math.prod(shape) * dtype.itemsize
        given = data.size if isinstance(data, Payload) else len(data)
        # Text takes one or two bytes for each byte of the array; the exact size is known when it is read.
        is_text = isinstance(data, Payload) and data.is_text
        if not (size <= given <= 2 * size if is_text else size == given):
            raise PickleError(
                f"has {given:,} bytes for an array of shape {shape} and type {dtype}, which takes {size:,}"
            )
        self.shape, self.dtype, self._data = shape, dtype, data
        self._is_fortran, self._is_built = is_fortran, True

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Return the array.

        Raises:
            PickleError: if it takes more than :data:`MAX_ARRAY`, can no longer be read, or is damaged.
        """
        if self.size > MAX_ARRAY:
            raise PickleError(f"has an array of {self.size:,} bytes; the limit is {MAX_ARRAY >> 20} MiB")
        data = self._load(self._data)
        if len(data) != self.size:
            raise PickleError("has an array with too few or too many bytes")
        return np.frombuffer(data, self.dtype).reshape(self.shape, order="F" if self._is_fortran else "C")


class Payload:
    """Bytes or a text in the file that were not read, because only arrays are so long."""

    __slots__ = ("is_text", "offset", "size")

    def __init__(self, offset: int, size: int, *, is_text: bool) -> None:
        self.offset, self.size, self.is_text = offset, size, is_text


class OldText(str):
    """A byte string of Python 2, which may be a text or the content of an array."""

    __slots__ = ("raw",)
    raw: bytes


class ElementType:
    """A NumPy dtype while it is described."""

    __slots__ = ("code", "dtype")

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[fiub][0-9]{1,2}|[SU][0-9]{1,6}|\?", code):
            what = "objects" if isinstance(code, str) and code.startswith("O") else shorten(str(code), 20)
            raise PickleError(f"has an array of {what}, not of numbers or texts")
        self.code = code
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or not 7 <= len(state) <= 8 or state[2:5] != (None, None, None):
            raise PickleError("has an array of structures, not of numbers or texts")
        order, size = state[1], state[5]
        if order not in ("<", ">", "|", "="):
            raise PickleError("has an array of an unknown byte order")
        if self.code[0] in "SU" and type(size) is int and 0 <= size <= 4_000_000:
            self.dtype = np.dtype(f"{self.code[0]}{size // 4 if self.code[0] == 'U' else size}")
        self.dtype = self.dtype.newbyteorder(order)


def decode(content: bytes) -> str:
    """Decode a text of Python 2, which does not tell its encoding."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1")


def as_bytes(value: Any) -> bytes | Payload:
    """Return the bytes that a value stands for, in the pickles of all versions of Python."""
    if isinstance(value, (bytes, Payload)):
        return value
    if isinstance(value, OldText):
        return value.raw
    if isinstance(value, str):
        return value.encode("latin-1")
    raise PickleError("has an array of objects, not of numbers or texts")
