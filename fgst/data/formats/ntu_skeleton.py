"""The ``.skeleton`` text of NTU RGB+D: bytes in, bodies as they were recorded out.

Line 1 is the number of frames. Each frame: the number of bodies; each body: ten fields, its id first; the number of
joints, 25; a line for each joint, twelve fields, x y z in metres first.

Two readers give the same. One cuts the joints' lines out as a block and hands them to Arrow's CSV parser: ten times
as fast as a line at a time. What that one cannot take, the other reads line by line, and it says what is wrong, and
where. Nothing that a file claims about itself is believed before the lines are there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import csv

from fgst.data.report import printable
from fgst.data.sources import ClipError

JOINTS = 25
BODY_FIELDS, JOINT_FIELDS = 10, 12
_BLOCK = 2 + JOINTS  # lines of a body: its fields, the number of joints, the joints
_COLUMNS = [f"{i}" for i in range(JOINT_FIELDS)]
_READ = csv.ReadOptions(column_names=_COLUMNS, use_threads=False)
_PARSE = csv.ParseOptions(delimiter=" ", quote_char=False, newlines_in_values=False, ignore_empty_lines=False)
_CONVERT = csv.ConvertOptions(
    include_columns=_COLUMNS[:3], column_types=dict.fromkeys(_COLUMNS[:3], pa.float64()), null_values=[]
)


@dataclass(frozen=True)
class Body:
    """A tracked body.

    Attributes:
        number: the id that the sensor gave it.
        frames: in which frames it was seen, ``(F,)`` increasing integers from 0.
        joints: ``(F, 25, 3)`` float64, metres.
    """

    number: int
    frames: np.ndarray
    joints: np.ndarray


@dataclass(frozen=True)
class Recording:
    """``num_frames`` frames, and the bodies in the order in which they first appear."""

    num_frames: int
    bodies: tuple[Body, ...]


def read_skeleton(content: bytes) -> Recording:
    """Parse a ``.skeleton`` file.

    Raises:
        ClipError: saying which line is not as it must be.
    """
    found = _read_fast(content)
    return _read_slow(content) if found is None else found


def _read_fast(content: bytes) -> Recording | None:
    """The file as nearly all are; ``None`` if anything about it is unusual or wrong."""
    values = np.frombuffer(content, np.uint8)
    places = np.flatnonzero(values < 32)  # line ends, unless there are tabs, carriage returns or worse
    blank = values <= 32
    # Two blanks in a row are one to Python, and an empty field to Arrow.
    if not content.endswith(b"\n") or (values[places] != 10).any() or (blank[1:] & blank[:-1]).any():
        return None
    ends = places.tolist()
    last = len(ends) - 1
    numbers, frames, blocks = [], [], []
    try:
        num_frames = _count(content[: ends[0]])
        line = 0  # the last line that was read
        for frame in range(num_frames):
            if line >= last:
                return None
            bodies = _count(content[ends[line] + 1 : ends[line + 1]])
            line += 1
            if bodies > (last - line) // _BLOCK:
                return None
            for _ in range(bodies):
                fields = content[ends[line] + 1 : ends[line + 1]].split(b" ")
                if len(fields) != BODY_FIELDS or content[ends[line + 1] + 1 : ends[line + 2]] != b"%d" % JOINTS:
                    return None
                numbers.append(_count(fields[0]))
                frames.append(frame)
                blocks.append(content[ends[line + 2] + 1 : ends[line + _BLOCK] + 1])
                line += _BLOCK
        if line != last:
            return None
        if not blocks:
            return Recording(num_frames, ())
        table = csv.read_csv(pa.py_buffer(b"".join(blocks)), _READ, _PARSE, _CONVERT)
    except (ValueError, pa.ArrowException):
        return None
    joints = np.stack([column.to_numpy() for column in table.columns], axis=-1)
    if len(joints) != JOINTS * len(blocks) or not (np.abs(joints) <= np.finfo(np.float32).max).all():
        return None
    return _recording(num_frames, numbers, frames, joints.reshape(-1, JOINTS, 3))


def _count(text: bytes) -> int:
    """A number of frames, bodies or joints, or an id: digits and nothing else."""
    if not text.isdigit() or len(text) > 20:
        raise ValueError(text)
    return int(text)


def _recording(num_frames: int, numbers: list[int], frames: list[int], joints: np.ndarray) -> Recording | None:
    """Bodies by id; ``None`` if an id is there twice in a frame."""
    rows: dict[int, list[int]] = {}
    for row, number in enumerate(numbers):
        rows.setdefault(number, []).append(row)
    where = np.array(frames)
    bodies = tuple(Body(number, where[chosen], joints[chosen]) for number, chosen in rows.items())
    return Recording(num_frames, bodies) if all((np.diff(body.frames) > 0).all() for body in bodies) else None


def _read_slow(content: bytes) -> Recording:
    """The file line by line: blank lines at the end, carriage returns, tabs and runs of spaces are taken."""
    if content[:2] == b"\x1f\x8b":
        raise ClipError("is compressed by gzip: unpack it")
    if content[:4] == b"PK\x03\x04":
        raise ClipError("is a zip: name the zip itself as a source")
    lines = content.split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ClipError("is empty")
    reader = _Lines(lines)
    num_frames = reader.count("the number of frames")
    numbers: list[int] = []
    frames: list[int] = []
    joints: list[list[float]] = []
    for frame in range(num_frames):
        at = f"frame {frame + 1} of {num_frames}"
        seen: set[int] = set()
        for body in range(reader.count(f"the number of bodies in {at}")):
            of = f"body {body + 1} in {at}"
            fields = reader.fields(f"the fields of {of}", BODY_FIELDS)
            number = reader.integer(fields[0], f"the id of {of}")
            if number in seen:
                raise ClipError(f"has body {number} twice in {at} (line {reader.line})")
            seen.add(number)
            count = reader.count(f"the number of joints of {of}")
            if count != JOINTS:
                raise ClipError(f"has {count} joints instead of {JOINTS} for {of} (line {reader.line})")
            for joint in range(JOINTS):
                what = f"joint {joint + 1} of {of}"
                values = reader.fields(what, JOINT_FIELDS)[:3]
                joints.append(
                    [reader.coordinate(v, f"{axis} of {what}") for v, axis in zip(values, "xyz", strict=True)]
                )
            numbers.append(number)
            frames.append(frame)
    if reader.line < len(lines):
        raise ClipError(f"goes on after its {num_frames} frames (line {reader.line + 1})")
    found = _recording(num_frames, numbers, frames, np.array(joints, np.float64).reshape(-1, JOINTS, 3))
    assert found is not None  # an id twice in a frame was refused above
    return found


class _Lines:
    """The lines of a file one after another; ``line`` is the number of the one read last, from 1."""

    def __init__(self, lines: list[bytes]) -> None:
        self._lines, self.line = lines, 0

    def _next(self, what: str) -> bytes:
        if self.line == len(self._lines):
            raise ClipError(f"ends after line {self.line}, before {what}")
        self.line += 1
        return self._lines[self.line - 1]

    def fields(self, what: str, count: int) -> list[bytes]:
        fields = self._next(what).split()
        if len(fields) != count:
            raise ClipError(f"has {len(fields)} fields instead of {count} on line {self.line}: {what}")
        return fields

    def count(self, what: str) -> int:
        return self.integer(self.fields(what, 1)[0], what)

    def integer(self, text: bytes, what: str) -> int:
        try:
            return _count(text)
        except ValueError:
            raise ClipError(f"has {_shown(text)} on line {self.line}, where {what} must be") from None

    def coordinate(self, text: bytes, what: str) -> float:
        try:
            # Python takes 1_000 for a number
            value = float("nan") if b"_" in text else float(text)
        except ValueError:
            raise ClipError(f"has {_shown(text)} on line {self.line}, where {what} must be") from None
        if not abs(value) <= float(np.finfo(np.float32).max):  # NaN compares false
            raise ClipError(f"has {_shown(text)} on line {self.line}, where {what} must be")
        return value


def _shown(text: bytes) -> str:
    """A piece of a file, cut short and fit to be printed."""
    shown = printable(text[:40].decode("ascii", "backslashreplace"))
    return f"{shown!r}" + ("..." if len(text) > 40 else "")
