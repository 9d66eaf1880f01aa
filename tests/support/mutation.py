"""Damaged versions of files, and a runner that reads many of them in a child process with limits.

Each damage depends only on (content, seed, number), so that a failing one can be made again:
``mutate(content, seed, number)``.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import random
import re
import resource
import signal
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fgst.errors import InputError

# Texts that replace a number or a value of a text file, and a value of a JSON file.
NUMBERS = (
    "1e400", "-1e400", "3.4e38", "1e39", "NaN", "Infinity", "-Infinity", "inf", "-1", "-0.0", "0", "1.5", "1e9",
    "999999999", "2147483648", "9223372036854775807", "-9223372036854775809", "18446744073709551616", "9" * 5000,
    "0x10", "1_000", "٣", "1e-400", "00012",
)  # fmt: skip
VALUES = (
    *NUMBERS, "null", "true", "false", '""', '"text"', '"../../x"', '"\\ud800"', '"\\u0000"', "[]", "{}", "[[]]",
    "[null]", '{"a": 1}', '{"": {}}', '"' + "x" * 2**20 + '"', "[" * 100_000, "[" * 100_000 + "]" * 100_000,
    '{"a":' * 100_000 + "1" + "}" * 100_000, "[" + "0," * 100_000 + "0]", '"' + "a\\n" * 100 + '"',
)  # fmt: skip
INSERTIONS = ("\0", "\ufeff", "\n", "\n\n\n", '"', "{", "]", ",", ",,", "\u2028", "\x1b[31m", "x" * 2**20, "\t", "\\")
_HOLE = "\ue000hole"
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")


def mutations(data: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield ``count`` damaged versions of a file, each with a description."""
    for number in range(count):
        yield mutate(data, seed, number)


def mutate(data: bytes, seed: int, number: int) -> tuple[str, bytes]:
    """Return one damaged version of a file and its description."""
    rng = random.Random(f"{seed}/{number}")
    damages = list(BINARY_DAMAGES)
    if is_text(data):
        damages += TEXT_DAMAGES * 2
    if _parsed(data) is not None:
        damages += JSON_DAMAGES * 4
    damage = rng.choice(damages)
    damaged = damage(data, rng)
    for _ in range(rng.choice((0, 0, 0, 1, 3))):  # several damages at once
        damaged = damage(damaged, rng)
    return damage.__name__, damaged


@lru_cache(maxsize=8)
def is_text(data: bytes) -> bool:
    """Return whether a file is UTF-8 text without NUL."""
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


@lru_cache(maxsize=8)
def _parsed(data: bytes) -> Any:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict | list) else None


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    """Return the ends of a random block, mostly a short one."""
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 2, 4, 8, 64, 1024, len(data))))


def flipped_bit(data: bytes, rng: random.Random) -> bytes:
    return _flip(data, rng, 0, len(data))


def header_bit(data: bytes, rng: random.Random) -> bytes:
    return _flip(data, rng, 0, 160)


def footer_bit(data: bytes, rng: random.Random) -> bytes:
    return _flip(data, rng, len(data) - 160, len(data))


def _flip(data: bytes, rng: random.Random, start: int, end: int) -> bytes:
    if not data:
        return data
    content = bytearray(data)
    content[rng.randrange(max(0, start), min(len(data), end))] ^= 1 << rng.randrange(8)
    return bytes(content)


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice((rng.randrange(len(data) + 1), max(0, len(data) - rng.randrange(1, 17))))]


def without_beginning(data: bytes, rng: random.Random) -> bytes:
    return data[rng.randrange(len(data) + 1) :]


def removed_block(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def repeated_block(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:end] + data[start:end] * rng.choice((1, 1, 2, 50)) + data[end:]


def swapped_blocks(data: bytes, rng: random.Random) -> bytes:
    a, b, c = sorted(rng.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def zeroed_block(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + rng.choice((b"\0", b"\xff")) * (end - start) + data[end:]


def inserted_bytes(data: bytes, rng: random.Random) -> bytes:
    start, _ = _span(data, rng)
    return data[:start] + rng.randbytes(rng.choice((1, 3, 16, 4096))) + data[start:]


def extreme_integer(data: bytes, rng: random.Random) -> bytes:
    size = rng.choice((1, 2, 4, 8))
    largest = 256**size - 1
    value = rng.choice((0, 1, largest, largest // 2, largest // 2 + 1, 256 ** (size - 1), largest // 16))
    return _overwritten(data, rng, value.to_bytes(size, rng.choice(("little", "big"))))


def extreme_float(data: bytes, rng: random.Random) -> bytes:
    value = rng.choice((float("nan"), float("inf"), -float("inf"), 3.4e38, -3.4e38, 1e-45, -0.0))
    return _overwritten(data, rng, struct.pack(rng.choice(("<f", "<d")), value))


def _overwritten(data: bytes, rng: random.Random, block: bytes) -> bytes:
    """Write a block at a random place, mostly an aligned one in the first or last 512 bytes."""
    first = max(0, rng.choice((0, 0, len(data) - 512, rng.randrange(len(data) + 1))))
    start = first + rng.randrange(512)
    start -= rng.choice((0, start % len(block)))
    return data[:start] + block + data[start + len(block) :]


def replaced_number(data: bytes, rng: random.Random) -> bytes:
    matches = list(_NUMBER.finditer(data.decode(errors="surrogateescape")))
    if not matches:
        return data
    match = rng.choice(matches[: rng.choice((3, 40, len(matches)))])
    text = match.string[: match.start()] + rng.choice(NUMBERS) + match.string[match.end() :]
    return text.encode(errors="surrogateescape")


def inserted_text(data: bytes, rng: random.Random) -> bytes:
    start, _ = _span(data, rng)
    return data[:start] + rng.choice(INSERTIONS).encode() + data[start:]


def edited_lines(data: bytes, rng: random.Random) -> bytes:
    """Remove, repeat, exchange, empty or lengthen lines."""
    lines = data.split(b"\n")
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    match kind := rng.randrange(6):
        case 4:
            lines[a] += lines[b]
        case 5:
            lines[a] += b"," + lines[a]
        case _:
            _edit(lines, kind, a, b)
    return b"\n".join(lines)


def edited_fields(data: bytes, rng: random.Random) -> bytes:
    """Remove, repeat, exchange or replace the fields of a line, which are separated by commas or blanks."""
    lines = data.split(b"\n")
    row = rng.randrange(min(len(lines), rng.choice((1, 3, len(lines)))))
    separator = b"," if b"," in lines[row] else b" "
    fields = lines[row].split(separator)
    a, b = rng.randrange(len(fields)), rng.randrange(len(fields))
    kind = rng.randrange(5)
    if kind == 4:
        fields[a] = rng.choice(VALUES).encode()
    else:
        _edit(fields, kind, a, b)
    lines[row] = separator.join(fields)
    return b"\n".join(lines)


def _edit(items: list[bytes], kind: int, a: int, b: int) -> None:
    """Remove (``kind`` 0), repeat (1), exchange (2) or empty (3) the items at ``a`` and ``b``."""
    match kind:
        case 0:
            del items[a]
        case 1:
            items.insert(b, items[a])
        case 2:
            items[a], items[b] = items[b], items[a]
        case _:
            items[a] = b""


def replaced_value(data: bytes, rng: random.Random) -> bytes:
    return _edited_json(data, rng, lambda parent, key: parent.__setitem__(key, _HOLE), rng.choice(VALUES))


def removed_value(data: bytes, rng: random.Random) -> bytes:
    return _edited_json(data, rng, lambda parent, key: parent.__delitem__(key))


def added_value(data: bytes, rng: random.Random) -> bytes:
    def add(parent: Any, key: Any) -> None:
        if isinstance(parent, list):
            parent.insert(key, rng.choice((_HOLE, copy.deepcopy(parent[key]))))
        else:
            parent["added"] = _HOLE

    return _edited_json(data, rng, add, rng.choice(VALUES))


def exchanged_values(data: bytes, rng: random.Random) -> bytes:
    def exchange(parent: Any, key: Any) -> None:
        other = rng.choice(list(range(len(parent))) if isinstance(parent, list) else list(parent))
        parent[key], parent[other] = parent[other], parent[key]

    return _edited_json(data, rng, exchange)


def repeated_key(data: bytes, rng: random.Random) -> bytes:
    renamed: list[str] = []

    def repeat(parent: Any, key: Any) -> None:
        if isinstance(parent, dict):
            renamed.append(json.dumps(key))
            parent[_HOLE] = rng.choice((parent[key], None, 0))

    damaged = _edited_json(data, rng, repeat, "")
    hole = json.dumps(_HOLE).encode()
    return damaged.replace(hole, renamed[0].encode()) if renamed else damaged


def _edited_json(data: bytes, rng: random.Random, edit: Callable[[Any, Any], None], value: str = "") -> bytes:
    """Edit a random place of a JSON text; a hole that ``edit`` leaves is filled with the text ``value``."""
    parsed = _parsed(data)
    if parsed is None:  # damaged before
        return flipped_bit(data, rng)
    content = copy.deepcopy(parsed)
    parent, key = content, None
    for _ in range(rng.randrange(1, 6)):  # descend some levels
        inner = parent if key is None else parent[key]
        if not isinstance(inner, dict | list) or not inner:
            break
        parent, key = inner, rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
    if key is None:
        return data
    edit(parent, key)
    text = json.dumps(content)
    return (text.replace(json.dumps(_HOLE), value) if value else text).encode()


BINARY_DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flipped_bit, header_bit, footer_bit, truncated, without_beginning, removed_block, repeated_block, swapped_blocks,
    zeroed_block, inserted_bytes, extreme_integer, extreme_integer, extreme_float,
)  # fmt: skip
TEXT_DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    replaced_number, inserted_text, edited_lines, edited_fields,
)  # fmt: skip
JSON_DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    replaced_value, replaced_value, removed_value, added_value, exchanged_values, repeated_key,
)  # fmt: skip


@dataclass
class Outcomes:
    """What became of the damaged files.

    Attributes:
        right: how many were read, and passed the reader's own assertions.
        refused: how many raised one of the expected exceptions, with a printable message of one line.
        faults: everything else, with the call of :func:`mutate` that makes it again.
        messages: the different messages of those refused, without digits, for a look at them.
    """

    right: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)
    messages: set[str] = field(default_factory=set)

    def check(self, count: int) -> None:
        """Assert that all ``count`` files were either read or refused."""
        listed = "\n".join(self.faults[:20])
        assert not self.faults, f"{len(self.faults)} of {count} damaged files:\n{listed}"
        assert self.right + self.refused == count
        assert self.refused, "no damage was noticed"


def read_mutations(
    reader: Callable[..., object],
    samples: Mapping[str, bytes],
    count: int,
    seed: int = 0,
    *,
    named: bool = False,
    refusals: tuple[type[Exception], ...] = (InputError,),
    memory: int = 2**29,
    seconds: float = 60,
) -> Outcomes:
    """Read ``count`` damaged versions of the samples in a child process.

    The child is replaced after a crash (a segmentation fault, a hang), which counts as a fault of that file alone.

    Args:
        reader: a function of a module (the child imports it); it may assert what is true of a right result.
        samples: the undamaged files by name; the child first reads each, which must succeed.
        refusals: the exceptions that report an unusable file.
        memory: bytes of address space that the child may take beyond what it has after its imports.
        seconds: time for one file; far more than it takes, because the machine may be busy.
        named: call the reader with the sample's name and the content; by default only with the content.
    """
    outcomes = Outcomes()
    context = multiprocessing.get_context("spawn")
    first = 0
    while first < count:
        receiver, sender = context.Pipe(duplex=False)
        arguments = (sender, reader, dict(samples), first, count, seed, refusals, memory, seconds, named)
        child = context.Process(target=_read_all, args=arguments, daemon=True)
        child.start()
        sender.close()
        done = first
        try:
            while True:
                kind, message = receiver.recv()
                if kind == "sample":
                    raise AssertionError(f"the undamaged sample is not read: {message}")
                done += 1
                if kind == "right":
                    outcomes.right += 1
                elif kind == "refused":
                    outcomes.refused += 1
                    outcomes.messages.add(re.sub(r"\d+", "0", message))
                else:
                    outcomes.faults.append(message)
        except EOFError:
            pass
        child.join()
        if done < count:
            code = child.exitcode or 0
            end = "took too long" if code == -signal.SIGALRM else signal.Signals(-code).name if code < 0 else str(code)
            outcomes.faults.append(f"{_place(samples, seed, done)}: the process ended: {end}")
            done += 1
        first = done
    return outcomes


def _place(samples: Mapping[str, bytes], seed: int, number: int) -> str:
    name = list(samples)[number % len(samples)]
    return f"mutate({name}, {seed}, {number}), {mutate(samples[name], seed, number)[0]}"


def _read_all(
    sender: Connection,
    reader: Callable[..., object],
    samples: dict[str, bytes],
    first: int,
    count: int,
    seed: int,
    refusals: tuple[type[Exception], ...],
    memory: int,
    seconds: float,
    named: bool,
) -> None:
    """Read the damaged files from number ``first`` and send an outcome for each."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, data in samples.items():
        try:
            reader(*([name, data] if named else [data]))  # also makes all lazy imports, before memory is limited
        except Exception as error:
            sender.send(("sample", f"{name}: {error!r}"))
            return
    if (statm := Path("/proc/self/statm")).exists():  # on Linux; macOS has no such limit
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, also within C code
    names = list(samples)
    for number in range(first, count):
        name = names[number % len(names)]
        damaged = mutate(samples[name], seed, number)[1]
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            reader(*([name, damaged] if named else [damaged]))
            outcome = "right", ""
        except refusals as error:
            message = str(error)
            bad = not message.isprintable() or len(message) > 1000
            outcome = (
                ("fault", f"message of {len(message)} characters: {message[:300]!r}") if bad else ("refused", message)
            )
        except BaseException as error:  # whatever it is, the test reports it
            outcome = "fault", f"{type(error).__name__}: {str(error)[:300]}"
        signal.setitimer(signal.ITIMER_REAL, 0)
        if outcome[0] == "fault":
            outcome = "fault", f"{_place(samples, seed, number)}: {outcome[1]}"
        sender.send(outcome)
