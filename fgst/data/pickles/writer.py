"""A writer of pickles that needs no more memory than its largest array.

Python's pickler keeps a copy of every array that it has written, and names functions of NumPy 2, which older versions
cannot read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np

PROTOCOL = 4
_BATCH = 1000  # elements between marks, as in pickles of Python


def write_pickle(file: BinaryIO, value: Any) -> None:
    """Write a pickle of None, numbers, texts, bytes, tuples, mappings, arrays of numbers, and iterables as lists.

    An iterable is consumed while it is written.

    Raises:
        TypeError: if the value contains anything else.
    """
    file.write(b"\x80" + bytes([PROTOCOL]))
    _write(file, value)
    file.write(b".")


def _write(file: BinaryIO, value: Any) -> None:
    match value:
        case None:
            file.write(b"N")
        case bool():
            file.write(b"\x88" if value else b"\x89")
        case int():
            content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            file.write(b"\x8a" + bytes([len(content)]) + content)
        case float():
            file.write(b"G" + struct.pack(">d", value))
        case str():
            _write_block(file, b"X", value.encode("utf-8", "surrogatepass"))
        case bytes():
            _write_block(file, b"B", value)
        case tuple():
            file.write(b"(")
            for item in value:
                _write(file, item)
            file.write(b"t")
        case np.ndarray():
            _write_array(file, value)
        case Mapping():
            file.write(b"}(")
            for key, item in value.items():
                _write(file, key)
                _write(file, item)
            file.write(b"u")
        case Iterable():
            file.write(b"](")
            for number, item in enumerate(value):
                if number and number % _BATCH == 0:
                    file.write(b"e(")
                _write(file, item)
            file.write(b"e")
        case _:
            raise TypeError(f"{type(value).__name__} cannot be written to a pickle of data")


def _write_block(file: BinaryIO, code: bytes, content: bytes) -> None:
    file.write(code + struct.pack("<I", len(content)) + content)


def _write_array(file: BinaryIO, array: np.ndarray) -> None:
    """Write an array as NumPy 1 does, which NumPy 2 reads as well."""
    if array.dtype.kind not in "fiub":
        raise TypeError(f"an array of {array.dtype} cannot be written to a pickle of data")
    array = np.ascontiguousarray(array).reshape(array.shape)
    file.write(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01")
    _write(file, array.shape)
    file.write(b"cnumpy\ndtype\n")
    _write(file, (array.dtype.str[1:], False, True))
    file.write(b"R")
    _write(file, (3, array.dtype.str[0], None, None, None, -1, -1, 0))
    file.write(b"b\x89")
    _write_block(file, b"B", array.tobytes())
    file.write(b"tb")
