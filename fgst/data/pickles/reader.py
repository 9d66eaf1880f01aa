"""A reader of pickles that runs no code from them.

Pickle is a program for a stack machine that may call any function. This reader interprets the instructions itself: it
builds None, numbers, texts, bytes, lists, tuples, dictionaries, sets and NumPy arrays of numbers or texts. Names of
functions are compared with those that NumPy's own pickles use, and none is ever imported; every other name or
instruction is refused. Python's own unpickler is not used, nor is it anywhere else in this project.

Pickles of data sets take gigabytes, nearly all of it arrays. Their numbers are left in the file until
:meth:`StoredArray.read` is called, so that opening a file takes memory only for the rest.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path
from typing import Any, BinaryIO

from fgst.data.pickles.stored import ElementType, OldText, Payload, PickleError, StoredArray, as_bytes, decode
from fgst.parsing import shorten

MAX_PROTOCOL = 5
MAX_MEMORY = 2**30  # bytes that the objects of one pickle may take, without the arrays that are left in the file
MAX_STEPS = 100_000_000  # instructions
MAX_MARKS = 100  # containers that are open at the same time
_INLINE = 1024  # longer texts and bytes are left in the file
_LINE = 4096  # bytes of a line of numbers or names
# Approximate sizes of Python objects in bytes.
_SLOT, _NUMBER, _TEXT, _TUPLE, _LIST, _DICT, _SET, _ARRAY, _MEMO = 8, 32, 60, 56, 80, 240, 240, 200, 110


class _Name(Enum):
    """The functions and types that are recognized. They are never called; :meth:`_Reader._reduce` does their work."""

    ARRAY = auto()
    ARRAY_TYPE = auto()
    BUFFER = auto()
    BYTES = auto()
    BYTEARRAY = auto()
    ELEMENT_TYPE = auto()
    ENCODE = auto()
    FROZENSET = auto()
    SCALAR = auto()
    SET = auto()


_NAMES = {
    ("numpy", "ndarray"): _Name.ARRAY_TYPE,
    ("numpy", "dtype"): _Name.ELEMENT_TYPE,
    ("_codecs", "encode"): _Name.ENCODE,
    **{
        (f"numpy.{core}.{module}", name): value
        for core in ("core", "_core")
        for module, name, value in (
            ("multiarray", "_reconstruct", _Name.ARRAY),
            ("multiarray", "scalar", _Name.SCALAR),
            ("numeric", "_frombuffer", _Name.BUFFER),
        )
    },
    **{
        (module, name): value
        for module in ("builtins", "__builtin__")
        for name, value in (
            ("bytes", _Name.BYTES),
            ("bytearray", _Name.BYTEARRAY),
            ("set", _Name.SET),
            ("frozenset", _Name.FROZENSET),
        )
    },
}
# Instructions that call functions or refer to objects elsewhere, and which data do not need.
_REFUSED = {
    **dict.fromkeys(b"PQ", "refers to an object outside of the file"),
    **dict.fromkeys(b"io\x81\x92", "creates an object of a class"),
    **dict.fromkeys(b"\x82\x83\x84", "refers to a registered class"),
    **dict.fromkeys(b"\x97\x98", "refers to a buffer outside of the file"),
}


@contextmanager
def open_pickle(path: Path) -> Iterator[Any]:
    """Read a pickle; its arrays, :class:`StoredArray`, can be read until the context ends.

    Raises:
        PickleError: if it is not a pickle of data.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise PickleError("is not a regular file")
        file = open(path, "rb")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise PickleError(f"cannot be read ({error.strerror})") from None
    with file:
        yield parse_pickle(file)


def parse_pickle(file: BinaryIO) -> Any:
    """Read a pickle from a file that can be sought, which its arrays need as long as they are used.

    Raises:
        PickleError: if it is not a pickle of data.
    """
    return _Reader(file).read()


class _Reader:
    """The stack machine."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self._memory = MAX_MEMORY
        self._stack: list[Any] = []
        self._marks: list[int] = []  # heights of the stack
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        """Execute the instructions and return the result."""
        handlers, read = self._handlers(), self._file.read
        if self._file.read(4) == b"PK\x03\x04":
            raise PickleError("is a zip, not a pickle")
        self._file.seek(0)
        try:
            for _ in range(MAX_STEPS):
                code = read(1)
                if code == b".":
                    if len(self._stack) != 1 or self._marks or isinstance(self._stack[0], (_Name, ElementType)):
                        raise PickleError("is damaged: it does not end with one object")
                    self._memo.clear()
                    return self._stack.pop()
                if not code:
                    raise PickleError("ends early: it is incomplete")
                if code[0] in _REFUSED:
                    raise PickleError(f"{_REFUSED[code[0]]}; only data are read from a pickle, so that it runs no code")
                handlers[code[0]]()
        except PickleError:
            raise
        except Exception as error:  # damaged content raises exceptions of many types
            what = f"{type(error).__name__} at byte {self._file.tell():,}"
            raise PickleError(f"is not a pickle, or is damaged ({what})") from None
        raise PickleError(f"has more than {MAX_STEPS:,} instructions")

    def load(self, data: bytes | Payload) -> bytes:
        """Return bytes, from the file if they were left there."""
        if not isinstance(data, Payload):
            return data
        try:
            self._file.seek(data.offset)
            content = self._file.read(data.size)
        except (OSError, ValueError) as error:
            raise PickleError(f"can no longer be read ({error})") from None
        if len(content) != data.size:
            raise PickleError("can no longer be read: it became shorter")
        try:
            return content.decode("utf-8").encode("latin-1") if data.is_text else content
        except UnicodeError:
            raise PickleError("has an array whose bytes are not encoded as Python does it") from None

    # Reading from the file

    def _take(self, size: int) -> bytes:
        if size > self._size - self._file.tell():
            raise PickleError("ends early: it is incomplete")
        return self._file.read(size)

    def _number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self._take(size), "little", signed=signed)

    def _line(self, limit: int = _LINE) -> bytes:
        line = self._file.readline(limit)
        if not line.endswith(b"\n"):
            raise PickleError("ends early, or has too long a line")
        self._spend(len(line))
        return line[:-1]

    def _block(self, width: int, *, is_text: bool = False) -> bytes | Payload:
        """Return a block that begins with its size in ``width`` bytes; a long one stays in the file."""
        size = self._number(width)
        if size <= _INLINE:
            self._spend(_TEXT + size)
            return self._take(size)
        offset = self._file.tell()
        if size > self._size - offset:
            raise PickleError("ends early: it is incomplete")
        self._file.seek(size, os.SEEK_CUR)
        self._spend(_TEXT)
        return Payload(offset, size, is_text=is_text)

    def _spend(self, memory: int) -> None:
        self._memory -= memory
        if self._memory < 0:
            raise PickleError(f"takes more than {MAX_MEMORY >> 30} GiB of memory without its arrays")

    # The stack

    def _push(self, value: Any, memory: int = _NUMBER) -> None:
        self._spend(_SLOT + memory)
        self._stack.append(value)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise PickleError("is damaged: an object is missing")
        return self._stack.pop()

    def _pop_marked(self) -> list[Any]:
        height = self._marks.pop()
        items = self._stack[height:]
        del self._stack[height:]
        return items

    def _mark(self) -> None:
        if len(self._marks) == MAX_MARKS:
            raise PickleError("is nested too deeply")
        self._marks.append(len(self._stack))

    # Memo

    def _put(self, index: int) -> None:
        self._spend(_MEMO)
        self._memo[index] = self._stack[-1]

    # Texts

    def _push_text(self, block: bytes | Payload) -> None:
        self._push(block.decode("utf-8", "surrogatepass") if isinstance(block, bytes) else block, 0)

    def _push_old_text(self, block: bytes | Payload) -> None:
        """Push a byte string of Python 2, which also has texts and the content of arrays in such strings."""
        if isinstance(block, bytes) and not block.isascii():
            text = OldText(decode(block))
            text.raw = block
            self._push(text)
        else:
            self._push(block.decode() if isinstance(block, bytes) else block, 0)

    def _quoted(self) -> None:
        line = self._line(MAX_MEMORY).strip()
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
            raise PickleError("is damaged: a text has no quotes")
        self._push_old_text(codecs.escape_decode(line[1:-1])[0])

    # Numbers

    def _text_integer(self) -> None:
        line = self._line()
        self._push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else _integer(line))

    def _long(self, width: int) -> None:
        size = self._number(width)
        if size > 16:
            raise PickleError("has a number of too many digits")
        self._push(self._number(size, signed=True))

    # Containers

    def _tuple(self, items: list[Any]) -> None:
        self._push(tuple(items), _TUPLE + _SLOT * len(items))

    def _pop_tuple(self, length: int) -> None:
        self._tuple([self._pop() for _ in range(length)][::-1])

    def _dict(self, items: list[Any]) -> None:
        self._push({}, _DICT)
        self._set_items(items)

    def _set_items(self, items: list[Any]) -> None:
        if len(items) % 2 or type(self._stack[-1]) is not dict:
            raise PickleError("is damaged: a key has no value, or there is no dictionary")
        self._spend(2 * _SLOT * len(items))
        self._stack[-1].update(zip(map(_key, items[::2]), items[1::2], strict=True))

    def _extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise PickleError("is damaged: there is no list to append to")
        self._spend(_SLOT * len(items))
        self._stack[-1].extend(items)

    def _add(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not set:
            raise PickleError("is damaged: there is no set to add to")
        self._spend(_MEMO * len(items))
        self._stack[-1].update(map(_key, items))

    def _set(self, items: list[Any]) -> None:
        self._push(set(), _SET)
        self._add(items)

    # Functions

    def _global(self, module: Any, name: Any) -> None:
        value = _NAMES.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if value is None:
            what = shorten(f"{module}.{name}", 80)
            raise PickleError(f"refers to {what}; only data are read from a pickle, so that it runs no code")
        self._push(value)

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._global(module, name)

    def _reduce(self) -> None:
        """Do what a recognized function does."""
        arguments, name = self._pop(), self._pop()
        if not isinstance(name, _Name) or type(arguments) is not tuple:
            raise PickleError("calls an object that is no function; only data are read from a pickle")
        match name, arguments:
            case _Name.ARRAY, (_Name.ARRAY_TYPE, (0,), "b" | b"b"):
                self._push(StoredArray(self.load), _ARRAY)
            case _Name.BUFFER, (data, ElementType(dtype=dtype), shape, "C" | "F" as order):
                array = StoredArray(self.load)
                array.build(shape, dtype, as_bytes(data), is_fortran=order == "F")
                self._push(array, _ARRAY)
            case _Name.ELEMENT_TYPE, (code, 0 | 1, 0 | 1):
                self._push(ElementType(code), _ARRAY)
            case _Name.SCALAR, (ElementType(dtype=dtype), data):
                value = StoredArray(self.load)
                value.build((), dtype, as_bytes(data), is_fortran=False)
                self._push(value.read().item(), _TEXT)
            case _Name.ENCODE, (text, "latin1" | "latin-1"):
                self._push(as_bytes(text), _TEXT)
            case ((_Name.BYTES | _Name.BYTEARRAY), ()):
                self._push(b"")
            case _Name.BYTEARRAY, (bytes() | Payload() as data,) | (str() | Payload() as data, "latin-1"):
                self._push(as_bytes(data), _TEXT)
            case ((_Name.SET | _Name.FROZENSET), (list() | tuple() as items,)):
                self._set(list(items))
            case _:
                raise PickleError(f"calls {name.name.lower()} with unexpected values")

    def _build(self) -> None:
        """Complete an array or the type of its elements."""
        state, value = self._pop(), self._stack[-1]
        if isinstance(value, ElementType):
            value.build(state)
        elif isinstance(value, StoredArray):
            match state:
                case (int(), tuple() as shape, ElementType(dtype=dtype), 0 | 1 as is_fortran, data):
                    value.build(shape, dtype, as_bytes(data), is_fortran=bool(is_fortran))
                case _:
                    raise PickleError("has an array of objects, or one that is not described as NumPy does it")
        else:
            raise PickleError("sets the state of an object; only data are read from a pickle")

    def _handlers(self) -> dict[int, Callable[[], None]]:
        """Return what to do for each instruction."""
        push, take, number = self._push, self._take, self._number
        marked, pop = self._pop_marked, self._pop
        handlers: dict[bytes, Callable[[], Any]] = {
            b"\x80": self._protocol,
            b"\x95": lambda: take(8),  # the length of a frame
            b"N": lambda: push(None, 0),
            b"\x88": lambda: push(True, 0),
            b"\x89": lambda: push(False, 0),
            b"I": self._text_integer,
            b"L": lambda: push(_integer(self._line().removesuffix(b"L"))),
            b"F": lambda: push(float(self._line())),
            b"J": lambda: push(number(4, signed=True)),
            b"K": lambda: push(number(1), 0),
            b"M": lambda: push(number(2)),
            b"G": lambda: push(struct.unpack(">d", take(8))[0]),
            b"\x8a": lambda: self._long(1),
            b"\x8b": lambda: self._long(4),
            b"S": self._quoted,
            b"T": lambda: self._push_old_text(self._block(4)),
            b"U": lambda: self._push_old_text(self._block(1)),
            b"V": lambda: push(self._line(MAX_MEMORY).decode("raw-unicode-escape")),
            b"X": lambda: self._push_text(self._block(4, is_text=True)),
            b"\x8c": lambda: self._push_text(self._block(1, is_text=True)),
            b"\x8d": lambda: self._push_text(self._block(8, is_text=True)),
            b"B": lambda: push(self._block(4), 0),
            b"C": lambda: push(self._block(1), 0),
            b"\x8e": lambda: push(self._block(8), 0),
            b"\x96": lambda: push(self._block(8), 0),
            b"(": self._mark,
            b"0": lambda: marked() if self._marks and self._marks[-1] == len(self._stack) else pop(),
            b"1": marked,
            b"2": lambda: push(self._stack[-1], 0),
            b")": lambda: push((), 0),
            b"t": lambda: self._tuple(marked()),
            b"\x85": lambda: self._pop_tuple(1),
            b"\x86": lambda: self._pop_tuple(2),
            b"\x87": lambda: self._pop_tuple(3),
            b"]": lambda: push([], _LIST),
            b"l": lambda: push(items := marked(), _LIST + _SLOT * len(items)),
            b"a": lambda: self._extend([pop()]),
            b"e": lambda: self._extend(marked()),
            b"}": lambda: push({}, _DICT),
            b"d": lambda: self._dict(marked()),
            b"s": lambda: self._set_items([pop(), pop()][::-1]),
            b"u": lambda: self._set_items(marked()),
            b"\x8f": lambda: push(set(), _SET),
            b"\x90": lambda: self._add(marked()),
            b"\x91": lambda: self._set(marked()),
            b"p": lambda: self._put(_integer(self._line())),
            b"q": lambda: self._put(number(1)),
            b"r": lambda: self._put(number(4)),
            b"\x94": lambda: self._put(len(self._memo)),
            b"g": lambda: push(self._memo[_integer(self._line())], 0),
            b"h": lambda: push(self._memo[number(1)], 0),
            b"j": lambda: push(self._memo[number(4)], 0),
            b"c": lambda: self._global(self._line().decode(), self._line().decode()),
            b"\x93": self._stack_global,
            b"R": self._reduce,
            b"b": self._build,
        }
        return {code[0]: handler for code, handler in handlers.items()}

    def _protocol(self) -> None:
        if (protocol := self._number(1)) > MAX_PROTOCOL:
            raise PickleError(f"has protocol {protocol}; the newest known is {MAX_PROTOCOL}")


def _integer(text: bytes) -> int:
    if not re.fullmatch(rb"-?[0-9]{1,40}", text):
        raise PickleError("is damaged: a number is not one")
    return int(text)


def _key(value: Any) -> Any:
    """Return a key of a dictionary or an element of a set; bytes, as in data of Python 2, become texts."""
    if isinstance(value, bytes):
        return decode(value)
    if value is not None and not isinstance(value, (str, int, float)):
        raise PickleError("has a key that is not a text or a number")
    return value
