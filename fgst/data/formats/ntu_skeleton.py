"""Parser of NTU RGB+D's ``.skeleton`` text files: bytes in, tracked bodies out.

Line 1 is the number of frames. Each frame consists of the number of bodies, and for each body a line of ten fields
beginning with its id, the number of joints (25), and a line for each joint of twelve fields beginning with x, y and z
in metres.

There are two parsers with equal results. The fast one extracts the joints' lines as blocks and passes them to Arrow's
CSV parser, ten times as fast as parsing line by line. If a file is unusual or malformed, the strict one parses it line
by line, and its errors name the line. Neither relies on a count in the file before the announced lines are found.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pyarrow import csv

from fgst.data.cleaning import Body, Recording, clean
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import NTU_25
from fgst.data.sources import ClipError
from fgst.parsing import printable

JOINTS = NTU_25.num_joints
# Limits of memory: the longest recordings have 300 frames, of two bodies with 27 lines each.
MAX_FRAMES = 100_000
MAX_LINES = 1_000_000
BODY_FIELDS, JOINT_FIELDS = 10, 12
_BLOCK = 2 + JOINTS  # lines of a body: its fields, the number of joints, the joints
_COLUMNS = [f"{i}" for i in range(JOINT_FIELDS)]
_READ = csv.ReadOptions(column_names=_COLUMNS, use_threads=False)
_PARSE = csv.ParseOptions(delimiter=" ", quote_char=False, newlines_in_values=False, ignore_empty_lines=False)
_CONVERT = csv.ConvertOptions(
    include_columns=_COLUMNS[:3], column_types=dict.fromkeys(_COLUMNS[:3], pa.float64()), null_values=[]
)


def read_joints(content: bytes, skeleton: Skeleton = NTU_25) -> np.ndarray:
    """Parse and clean a ``.skeleton`` file.

    Args:
        content: the whole file.
        skeleton: not used, because all files have the same skeleton.

    Returns:
        ``(M, T, 25, 3)`` float32, one or two persons; see :class:`fgst.data.cleaning.Cleaned`.

    Raises:
        ClipError: if the file is malformed or has no usable body.
    """
    return clean(read_skeleton(content)).joints


def encode_joints(joints: np.ndarray, skeleton: Skeleton) -> bytes:
    """Write the joints of one person, ``(T, 25, 3)``, as a ``.skeleton`` file; all other fields are zero."""
    del skeleton
    lines = [str(len(joints))]
    for frame in joints:
        lines += ["1", "72057594037927936" + " 0" * (BODY_FIELDS - 1), str(len(frame))]
        lines += [" ".join(f"{value:.4f}" for value in joint) + " 0" * 8 + " 2" for joint in frame]
    return ("\n".join(lines) + "\n").encode()


def read_skeleton(content: bytes) -> Recording:
    """Parse a ``.skeleton`` file.

    Raises:
        ClipError: if it is malformed, with the line, or too long for a recording.
    """
    lines = content.count(b"\n")
    if lines > MAX_LINES:
        raise ClipError(f"has {lines:,} lines; a recording has at most {MAX_LINES:,}")
    recording = parse_fast(content)
    return parse_strict(content) if recording is None else recording


def parse_fast(content: bytes) -> Recording | None:
    """Parse a file of the usual layout; return ``None`` if it is unusual or malformed in any way."""
    values = np.frombuffer(content, np.uint8)
    controls = np.flatnonzero(values < 32)  # line ends, unless the file contains other control characters
    blank = values <= 32
    # Python merges consecutive blanks, but Arrow reads an empty field between them.
    if not content.endswith(b"\n") or (values[controls] != 10).any() or (blank[1:] & blank[:-1]).any():
        return None
    ends = controls.tolist()
    last = len(ends) - 1
    body_ids, frames, blocks = [], [], []
    try:
        num_frames = _count(content[: ends[0]])
        if num_frames > MAX_FRAMES:
            return None
        line = 0  # the last line read
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
                body_ids.append(_count(fields[0]))
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
    return _recording(num_frames, body_ids, frames, joints.reshape(-1, JOINTS, 3))


def _count(text: bytes) -> int:
    """Parse a number of frames, bodies or joints, or an id: digits only."""
    if not text.isdigit() or len(text) > 20:
        raise ValueError(text)
    return int(text)


def _recording(num_frames: int, body_ids: list[int], frames: list[int], joints: np.ndarray) -> Recording | None:
    """Group rows of joints by body; return ``None`` if a body occurs twice in a frame."""
    rows: dict[int, list[int]] = {}
    for row, body_id in enumerate(body_ids):
        rows.setdefault(body_id, []).append(row)
    frame_of = np.array(frames)
    bodies = tuple(Body(body_id, frame_of[members], joints[members]) for body_id, members in rows.items())
    return Recording(num_frames, bodies) if all((np.diff(body.frames) > 0).all() for body in bodies) else None


def parse_strict(content: bytes) -> Recording:
    """Parse a file line by line, allowing trailing blank lines, carriage returns, tabs and repeated spaces.

    Raises:
        ClipError: if it is malformed; the message names the line.
    """
    lines = split_lines(content)
    reader = Lines(lines)
    num_frames = reader.count("the number of frames")
    if num_frames > MAX_FRAMES:
        raise ClipError(f"has {num_frames:,} frames; a recording has at most {MAX_FRAMES:,} (line {reader.line})")
    body_ids: list[int] = []
    frames: list[int] = []
    joints: list[list[float]] = []
    for frame in range(num_frames):
        in_frame = f"frame {frame + 1} of {num_frames}"
        seen: set[int] = set()
        for body in range(reader.count(f"the number of bodies in {in_frame}")):
            of_body = f"body {body + 1} in {in_frame}"
            fields = reader.fields(f"the fields of {of_body}", BODY_FIELDS)
            body_id = reader.integer(fields[0], f"the id of {of_body}")
            if body_id in seen:
                raise ClipError(f"has body {body_id} twice in {in_frame} (line {reader.line})")
            seen.add(body_id)
            count = reader.count(f"the number of joints of {of_body}")
            if count != JOINTS:
                raise ClipError(f"has {count} joints instead of {JOINTS} for {of_body} (line {reader.line})")
            joints += [reader.joint(f"joint {joint + 1} of {of_body}") for joint in range(JOINTS)]
            body_ids.append(body_id)
            frames.append(frame)
    if reader.line < len(lines):
        raise ClipError(f"has more lines after its {num_frames} frames (line {reader.line + 1})")
    recording = _recording(num_frames, body_ids, frames, np.array(joints, np.float64).reshape(-1, JOINTS, 3))
    assert recording is not None  # repeated ids raised an error above
    return recording


def split_lines(content: bytes) -> list[bytes]:
    """Return the lines of a file, without blank ones at the end.

    Raises:
        ClipError: if it is empty or an archive.
    """
    if content[:2] == b"\x1f\x8b":
        raise ClipError("is compressed by gzip: unpack it")
    if content[:4] == b"PK\x03\x04":
        raise ClipError("is a zip: give the zip itself as a source")
    lines = content.split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ClipError("is empty")
    return lines


class Lines:
    """A cursor over the lines of a file; ``line`` is the number of the last line read, from 1."""

    def __init__(self, lines: list[bytes]) -> None:
        self._lines, self.line = lines, 0

    def _next(self, expected: str) -> bytes:
        if self.line == len(self._lines):
            raise ClipError(f"ends after line {self.line}, before {expected}")
        self.line += 1
        return self._lines[self.line - 1]

    def fields(self, expected: str, count: int) -> list[bytes]:
        fields = self._next(expected).split()
        if len(fields) != count:
            raise ClipError(f"has {len(fields)} fields instead of {count} on line {self.line}: {expected}")
        return fields

    def peek(self, offset: int) -> list[bytes]:
        """Return the fields of the next line, or of a later one; none at the end."""
        number = self.line + offset
        return self._lines[number].split() if number < len(self._lines) else []

    def count(self, expected: str) -> int:
        return self.integer(self.fields(expected, 1)[0], expected)

    def joint(self, expected: str, count: int = JOINT_FIELDS) -> list[float]:
        values = self.fields(expected, count)[:3]
        return [self.coordinate(v, f"{axis} of {expected}") for v, axis in zip(values, "xyz", strict=True)]

    def integer(self, text: bytes, expected: str) -> int:
        try:
            return _count(text)
        except ValueError:
            raise self._unexpected(text, expected) from None

    def coordinate(self, text: bytes, expected: str) -> float:
        try:
            value = float("nan") if b"_" in text else float(text)  # Python accepts 1_000 as a number
        except ValueError:
            raise self._unexpected(text, expected) from None
        if not abs(value) <= float(np.finfo(np.float32).max):  # comparisons with NaN are false
            raise self._unexpected(text, expected)
        return value

    def _unexpected(self, text: bytes, expected: str) -> ClipError:
        return ClipError(f"has {_excerpt(text)} on line {self.line} instead of {expected}")


def _excerpt(text: bytes) -> str:
    """The beginning of a piece of a file, escaped for printing."""
    excerpt = printable(text[:40].decode("ascii", "backslashreplace"))
    return f"{excerpt!r}" + ("..." if len(text) > 40 else "")
