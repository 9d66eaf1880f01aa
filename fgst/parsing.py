"""Bounded reading of JSON and CSV files, which may be damaged or written by others.

JSON is converted to annotated types by msgspec, which also checks it: types, missing keys, lengths and ranges that the
annotations state, and what the ``__post_init__`` of a dataclass requires. Numbers are finite, keys of an object are
unique, and the depth of nesting is limited. Errors name the field.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from fgst.errors import InputError
from fgst.integrity import check_digest

T = TypeVar("T")

MAX_BYTES = 64 * 1024 * 1024  # of a JSON or CSV file; the longest, those of large sweeps, take some megabytes
MAX_ROWS = 1_000_000  # of a CSV file
MAX_MESSAGE = 300  # characters of an error that quotes a file
_SEPARATORS = (",", ";", "\t")  # of cells; the first where none occurs
_BOM = b"\xef\xbb\xbf"  # at the beginning of text files written by some Windows programs

Text = Annotated[str, msgspec.Meta(max_length=10_000)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
# The range of the integers in Arrow data sets.
Number = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


def printable(text: str) -> str:
    """Escape control characters and line breaks, e.g. in the names of an archive's members."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def shorten(text: str, limit: int = MAX_MESSAGE) -> str:
    """Return the beginning of a text, escaped for printing in one line."""
    text = printable(text[:limit])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def read_regular_file(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a file that is not a pipe, a device or a folder, and not larger than ``max_bytes``.

    Raises:
        ValueError: if it is one, is larger, or cannot be read; the message does not contain the path.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would block
            raise ValueError("is not a regular file")
        if status.st_size <= max_bytes:
            with open(path, "rb") as file:
                content = file.read(status.st_size + 1)  # it may have grown; allocates the size requested
            if len(content) == status.st_size:
                return content
            raise ValueError("changed while it was read")
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    except UnicodeEncodeError:
        raise ValueError("cannot be read (its name is not text)") from None
    raise ValueError(f"is larger than {max_bytes >> 20} MiB, the limit for such a file")


def decode_json(content: bytes, kind: type[T]) -> T:
    """Parse JSON as a value of an annotated type.

    Args:
        content: UTF-8 text.
        kind: a dataclass, or any other type that msgspec supports.

    Raises:
        ValueError: if it is not such a value; the message names the field and does not contain a path.
    """
    content = content.removeprefix(_BOM)
    try:
        value = msgspec.json.decode(content, type=kind)
        json.loads(content, object_pairs_hook=_require_unique_keys)  # msgspec would take the last of equal keys
    except (RecursionError, MemoryError):
        raise ValueError("is nested too deeply, or takes too much memory") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start})") from None
    except _DuplicateKey as error:
        raise ValueError(f"has the key {error.args[0]!r} twice in an object") from None
    except msgspec.ValidationError as error:
        raise ValueError(_describe(error)) from None
    except (msgspec.DecodeError, ValueError) as error:
        raise ValueError(f"is not valid JSON ({shorten(str(error).removeprefix('JSON is malformed: '))})") from None
    return value


def convert_json(value: Any, kind: type[T]) -> T:
    """Convert parsed JSON to an annotated type; the counterpart of :func:`decode_json` for a part of a file.

    Raises:
        ValueError: if it is not such a value; the message names the field.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(_describe(error)) from None


def read_json(path: Path, kind: type[T], *, what: str, hint: str = "") -> T:
    """Read a JSON file as a value of an annotated type. If it has a digest of its content, the digest is checked.

    Args:
        path: the file.
        kind: see :func:`decode_json`.
        what: what the file should be, for the error message, e.g. "a skeleton description".
        hint: the remedy that the error message suggests.

    Raises:
        InputError: if it cannot be read or is not such a value; the message names the file and the field.
    """
    location, remedy = printable(str(path)), f"; {hint}" if hint else ""
    try:
        content = read_regular_file(path)
    except ValueError as error:
        raise InputError(f"{location}: {error}{remedy}") from None
    try:
        value = decode_json(content, kind)
        check_digest(json.loads(content.removeprefix(_BOM)))
    except ValueError as error:
        raise InputError(f"{location}: is not {what} ({error}){remedy}") from None
    return value


class _DuplicateKey(Exception):
    pass


def _require_unique_keys(pairs: list[tuple[str, Any]]) -> None:
    """Raise _DuplicateKey if two pairs of an object have the same key; the values are not needed."""
    if (key := _first_repeated([key for key, _ in pairs])) is not None:
        raise _DuplicateKey(key)


def _first_repeated(names: list[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return shorten(name, 80)
        seen.add(name)
    return None


def _describe(error: msgspec.ValidationError) -> str:
    """Rewrite ``Expected `int`, got `str` - at `$.files[3].bytes` `` as ``files[3].bytes: expected int, got str``."""
    message, _, place = str(error).partition(" - at `$")
    message = message.replace("`", "")
    place = place.rstrip("`").lstrip(".")
    if message.startswith(("Expected", "Object", "Invalid", "Number", "Integer")):
        message = message[0].lower() + message[1:]
    return shorten(f"{place}: {message}" if place else message)


def read_table(content: bytes) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """Parse CSV with a header, line by line.

    Args:
        content: the whole file, in UTF-8 or, with a byte order mark, in UTF-16; cells are separated by whichever of
            comma, semicolon and tab is the most frequent in the header.

    Returns:
        The names of the columns; and the number of each line that is not empty, with its cells by column. Names and
        cells have no surrounding blanks.

    Raises:
        ValueError: if it is not such a table, also while the lines are read; the message names the line.
    """
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16") if is_utf16 else content.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        remedy = "" if is_utf16 else "; save the file as UTF-8"
        raise ValueError(f"is not {'UTF-16' if is_utf16 else 'UTF-8'} text (byte {error.start}){remedy}") from None
    rows = _read_rows(text, max(_SEPARATORS, key=text.partition("\n")[0].count))
    _, columns = next(rows, (0, []))
    if (repeated := _first_repeated(columns)) is not None:
        raise ValueError(f"has two columns {repeated!r}")
    return columns, _by_column(columns, rows)


def _read_rows(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each line that is not empty, without empty cells at its end."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            while cells and not cells[-1]:  # spreadsheets write empty columns after the last one
                cells.pop()
            if reader.line_num > MAX_ROWS:
                raise ValueError(f"has more than {MAX_ROWS:,} lines")
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None


def _by_column(columns: list[str], rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, dict[str, str]]]:
    for number, cells in rows:
        if len(cells) > len(columns):
            raise ValueError(f"line {number}: has more cells than the header has columns")
        yield number, dict(itertools.zip_longest(columns, cells, fillvalue=""))
