"""CSV files of joints, as written for MediaPipe, Kinect and other trackers: a file per clip.

:mod:`fgst.data.formats.joint_columns` says which headers are recognized, and how other columns are described. Files
without a header have a line per joint: its name or number, x, y, z and, if known, its state (0 = not tracked). Without
a column for frames, a new frame begins at a blank line, at a line with a single cell, or where a joint repeats. Cells
are separated by commas, semicolons or tabs.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fgst.data.clip_source import ClipEntry, ClipSource, SourceFormat, SourceOptions
from fgst.data.detections import MAX_PERSONS, Frame, most_confident
from fgst.data.formats.joint_columns import (
    JOINT,
    MAX_CELL,
    Columns,
    Point,
    canonical,
    find_columns,
    find_skeleton,
    parse_description,
    resolve,
)
from fgst.data.formats.labelled import NamedClip, label_clips
from fgst.data.normalization import Normalization, RawClip, measure, to_space, up_axis
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import SKELETONS
from fgst.data.sources import MAX_FILE_BYTES, ClipError, ClipFile, first_contents, open_source, parse_clip, some_names
from fgst.errors import InputError
from fgst.parsing import printable, shorten

MAX_POSES = 50_000  # frames of all persons
MAX_JOINTS = 20_000_000  # joints in all frames
MAX_NAMES = 10_000
MEASURED_CLIPS = 32
_DEFAULT = f"frame=frame,x={JOINT}_x,y={JOINT}_y,z={JOINT}_z"  # the layout of example requests
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_MISSING = {"", "nan", "none", "null", "na", "n/a", "-"}
_STATES = {
    "nottracked": 0, "inferred": 1, "tracked": 2, "none": 0, "low": 1, "medium": 2, "high": 3, "false": 0, "true": 1,
}  # fmt: skip
_Y_DOWN = ("mediapipe-33", "azure-kinect-32")  # skeletons of trackers whose y axis points down
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_HEAD = 65_536  # bytes by which a table of joints is recognized
_HINT = "give a folder or a zip of .csv files, one per clip"


@dataclass
class _Table:
    """The lines of a file, as cells; and for each line, after how many separators it is.

    Attributes:
        columns: which column is what.
        lines: line number, block, and cells.
    """

    columns: Columns
    lines: list[tuple[int, int, list[str]]] = field(default_factory=list)


def read_joints(content: bytes, skeleton: Skeleton, columns: str = "") -> RawClip:
    """Parse a clip.

    Args:
        content: the whole file.
        skeleton: the skeleton whose joints are read.
        columns: a description of the columns; "" recognizes them.

    Returns:
        ``(M, T, N, 3)``, or ``(M, T, N, 2)`` without z, with scores; a joint without coordinates has score 0. Of more
        than two persons, it is the two that are seen most.

    Raises:
        ClipError: if it is not such a table; the message names the line.
    """
    table = _read_table(content, parse_description(columns))
    keys = _joint_texts(table)
    index = resolve(keys, skeleton)
    missing = sorted(set(range(skeleton.num_joints)) - set(index.values()))
    if missing and (table.columns.joint is None or len(missing) > skeleton.num_joints // 2):
        absent = ", ".join(skeleton.joints[i] for i in missing[:5]) + (" …" if len(missing) > 5 else "")
        raise ClipError(
            f"has joints {shorten(', '.join(keys), 80)}, but not {len(missing)} of skeleton {skeleton.name} ({absent})"
        )
    poses = _Poses(skeleton.num_joints, 3 if table.columns.has_depth else 2)
    if table.columns.joint is None:
        _read_wide(table, index, poses)
    else:
        _read_long(table, index, poses)
    return poses.clip()


def _decode(content: bytes) -> str:
    encoding = "utf-16" if content.startswith(_UTF_16) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ClipError(f"is not UTF-8 text (byte {error.start})") from None


def _read_table(content: bytes, description: Mapping[str, str]) -> _Table:
    """Split a file into cells, and find its columns."""
    text = _decode(content)
    sample = next((line for line in text.splitlines() if len(re.split(r"[,;\t]", line)) > 2), "")
    delimiter = max(";\t,", key=sample.count)
    if not sample:
        raise ClipError("is not a table: no line has three cells that are separated by commas, semicolons or tabs")
    table: _Table | None = None
    header: list[str] = []
    block = 0
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            while cells and not cells[-1]:
                cells.pop()
            if len(cells) < 2 or cells == header:  # a blank line, the number of a frame, a repeated header
                block += 1
            elif cells[0].startswith("#"):
                continue
            elif table is None:
                is_header = not any(_NUMBER.fullmatch(_point(cell, delimiter)) for cell in cells[1:])
                header = cells if is_header else []
                table = _Table(find_columns(header, description) if header else _without_header(cells, description))
                if not header:
                    table.lines.append((reader.line_num, block, cells))
            else:
                table.lines.append((reader.line_num, block, cells))
    except csv.Error as error:
        raise ClipError(f"line {reader.line_num}: {error}") from None
    except ValueError as error:
        raise ClipError(str(error)) from None
    if table is None or not table.lines:
        raise ClipError("has no line of joints")
    if delimiter != ",":
        table.lines = [(line, block, [_point(cell, delimiter) for cell in cells]) for line, block, cells in table.lines]
    return table


def _point(cell: str, delimiter: str) -> str:
    """Return a number with a decimal point, if it has a comma."""
    return cell.replace(",", ".", 1) if delimiter != "," and re.fullmatch(r"[+-]?[0-9]*,[0-9eE+-]+", cell) else cell


def _without_header(cells: Sequence[str], description: Mapping[str, str]) -> Columns:
    """Return the columns of a file without a header: joint, x, y, z and state."""
    if description:
        raise ValueError("has no header, so columns cannot be found by name")
    if not 4 <= len(cells) <= 5:
        raise ValueError(f"has no header, and {len(cells)} cells in its first line instead of joint, x, y, z and state")
    return Columns(joint=0, points={"": Point(1, 2, 3, 4)})


def _joint_texts(table: _Table) -> list[str]:
    """Return the distinct names or numbers of joints."""
    column = table.columns.joint
    if column is None:
        return list(table.columns.points)
    texts = list(dict.fromkeys(_cell(cells, column)[:MAX_CELL] for _, _, cells in table.lines))
    if len(texts) > MAX_NAMES:
        raise ClipError(f"has {len(texts):,} different joints in column {column + 1}")
    return texts


def _cell(cells: Sequence[str], column: int | None) -> str:
    return cells[column] if column is not None and column < len(cells) else ""


class _Poses:
    """The poses that are read, by frame and person."""

    def __init__(self, N: int, C: int) -> None:
        self._shape = N, C
        self._frames: dict[object, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
        self._count = 0

    def add(self, frame: object, person: str, joints: np.ndarray, scores: np.ndarray) -> None:
        """Add a pose, which may still be changed.

        Raises:
            ClipError: if there are too many.
        """
        self._count += 1
        if self._count > MAX_POSES or self._count * self._shape[0] > MAX_JOINTS:
            raise ClipError(f"has more than {min(MAX_POSES, MAX_JOINTS // self._shape[0]):,} frames")
        self._frames.setdefault(frame, {})[person] = (joints, scores)

    def get(self, frame: object, person: str) -> tuple[np.ndarray, np.ndarray]:
        """Return a pose; a new one has no joint."""
        N, C = self._shape
        pose = self._frames.get(frame, {}).get(person)
        if pose is None:
            pose = np.zeros((N, C)), np.zeros(N)
            self.add(frame, person, *pose)
        return pose

    def clip(self) -> RawClip:
        """Return the clip; frames are in the order of their numbers, if all have one."""
        keys = list(self._frames)
        numbers = [float(str(key)) if _NUMBER.fullmatch(str(key)) else None for key in keys]
        if None not in numbers:
            keys = [key for _, key in sorted(zip(numbers, keys, strict=True), key=lambda pair: pair[0] or 0)]
        frames = [self._frames[key] for key in keys]
        persons = list(dict.fromkeys(itertools.chain.from_iterable(frames)))
        N, C = self._shape
        if len(persons) > MAX_PERSONS:
            detections = [
                Frame(*(np.stack([pose[part] for pose in frame.values()]) for part in (0, 1))) for frame in frames
            ]
            return RawClip(*most_confident(detections))
        joints, scores = np.zeros((len(persons), len(frames), N, C)), np.zeros((len(persons), len(frames), N))
        for t, frame in enumerate(frames):
            for person, (pose, score) in frame.items():
                joints[persons.index(person), t], scores[persons.index(person), t] = pose, score
        return RawClip(joints, scores)


def _read_wide(table: _Table, index: Mapping[str, int], poses: _Poses) -> None:
    columns = table.columns
    N = max(index.values()) + 1
    points = [(index[joint], point) for joint, point in columns.points.items() if joint in index]
    for number, (line, _, cells) in enumerate(table.lines):
        joints, scores = np.zeros((N, 3 if columns.has_depth else 2)), np.zeros(N)
        for i, point in points:
            joints[i], scores[i] = _read_point(cells, point, line, has_depth=columns.has_depth)
        # Times may be rounded, so equal ones are different frames unless a column identifies persons.
        frame = number if columns.frame is None or columns.person is None else _cell(cells, columns.frame)
        poses.add(frame, _cell(cells, columns.person), joints, scores)


def _read_long(table: _Table, index: Mapping[str, int], poses: _Poses) -> None:
    columns, point = table.columns, table.columns.points[""]
    seen: set[tuple[object, str, int]] = set()
    block, current = 0, -1
    for line, separators, cells in table.lines:
        joint, person = index.get(_cell(cells, columns.joint)), _cell(cells, columns.person)
        if joint is None:
            continue  # a joint that the skeleton does not have
        frame: object = _cell(cells, columns.frame)
        if columns.frame is None:
            if separators != current or (block, person, joint) in seen:
                block, current = block + 1, separators
            frame = block
        if (frame, person, joint) in seen:
            raise ClipError(
                f"has joint {shorten(_cell(cells, columns.joint), 40)} twice in frame {shorten(str(frame), 40)} (line "
                f"{line}); name the column of the person"
            )
        seen.add((frame, person, joint))
        joints, scores = poses.get(frame, person)
        joints[joint], scores[joint] = _read_point(cells, point, line, has_depth=columns.has_depth)


def _read_point(cells: Sequence[str], point: Point, line: int, *, has_depth: bool) -> tuple[list[float], float]:
    """Return a joint's coordinates and score; zeros if it was not seen."""
    columns = (point.x, point.y, point.z) if has_depth else (point.x, point.y)
    texts = [_cell(cells, column) for column in columns]
    if any(text.lower() in _MISSING for text in texts):
        if all(text.lower() in _MISSING for text in texts):
            return [0.0] * len(columns), 0.0
        raise ClipError(f"lacks some coordinates of a joint on line {line}")
    score = _cell(cells, point.score).lower()
    return [_number(text, line) for text in texts], _score(score, line) if score else 1.0


def _score(text: str, line: int) -> float:
    name = re.sub(r"[^a-z]", "", text)
    return float(_STATES[name]) if name in _STATES else 0.0 if text in _MISSING else _number(text, line)


def _number(text: str, line: int) -> float:
    if not _NUMBER.fullmatch(text) or not abs(value := float(text)) <= float(np.finfo(np.float32).max):
        raise ClipError(f"has {shorten(text, 40)!r} on line {line} instead of a number")
    return value


def encode_joints(joints: np.ndarray, skeleton: Skeleton, columns: str = _DEFAULT) -> bytes:
    """Write one person's joints, ``(T, N, 3)``, in the layout of a description."""
    names = parse_description(columns)
    roles = [role for role in ("x", "y", "z", "score") if role in names]
    leading = [names.get("frame", "frame"), *([names["person"]] if "person" in names else [])]
    values = np.concatenate([joints, joints.any(axis=-1, keepdims=True)], axis=-1)  # seen joints have score 1
    values = values[..., [("x", "y", "z", "score").index(role) for role in roles]]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    if "joint" in names:
        writer.writerow([*leading, names["joint"], *(names[role] for role in roles)])
    else:
        writer.writerow([*leading, *(names[role].replace(JOINT, joint) for joint in skeleton.joints for role in roles)])
    for t, frame in enumerate(values):
        first = [str(t), *["1"] * (len(leading) - 1)]
        cells = [[f"{value:.7g}" for value in joint] for joint in frame]
        if "joint" in names:
            writer.writerows([*first, name, *joint] for name, joint in zip(skeleton.joints, cells, strict=True))
        else:
            writer.writerow([*first, *itertools.chain.from_iterable(cells)])
    return file.getvalue().encode()


def recognizes(path: Path) -> bool:
    """Return whether a folder or zip has .csv files of joints."""
    names = [name for name in some_names(path) if name.lower().endswith(".csv")]
    return any(_is_table_of_joints(content) for content in first_contents(path, names[:5]))


def _is_table_of_joints(content: bytes) -> bool:
    head = content[:_HEAD]
    if len(head) < len(content) and not head.startswith(_UTF_16):
        head = head.rpartition(b"\n")[0]
    try:
        table = parse_clip(lambda content: _read_table(content, {}), head)
        texts = _joint_texts(table)
    except ClipError:
        return False
    known = {canonical(joint) for skeleton in SKELETONS.values() for joint in skeleton.joints}
    return table.columns.joint is None or any(text.isdigit() or canonical(text) in known for text in texts)


@contextmanager
def open_folder(path: Path, options: SourceOptions) -> Iterator[ClipSource]:
    """Open a folder or zip of clips, for :class:`~fgst.data.clip_source.SourceFormat`."""
    location = printable(str(path))
    try:
        description = parse_description(options.columns)
    except ValueError as error:
        raise InputError(f"--columns {options.columns}: {error}") from None
    with open_source(path, suffix=".csv", max_bytes=MAX_FILE_BYTES, hint=_HINT) as listing:
        labels = None if options.labels is None else options.labels.resolve()
        files = [file for file in listing.files if labels is None or (path / file.path).resolve() != labels]
        if not files:
            raise InputError(f"{location}: contains no clip; {_HINT}")
        files.sort(key=lambda file: file.path)
        skeleton = options.skeleton
        if skeleton is None:
            skeleton = _skeleton_of([file.read for file in files[:MEASURED_CLIPS]], description, location)
        clips = [
            NamedClip(file.path[: -len(".csv")], functools.partial(_read_clip, file, skeleton, options.columns))
            for file in files
        ]
        labelled = label_clips(clips, options, location, ".csv")
        normalization, notes = _normalization(labelled.entries, skeleton)
        yield ClipSource(
            skeleton=skeleton,
            entries=labelled.entries,
            num_clips=len(labelled.entries),
            classes=labelled.classes,
            benchmarks=labelled.benchmarks,
            split_lists=labelled.split_lists,
            normalization=normalization,
            preparation=f"joint-csv:{options.columns}" if options.columns else "joint-csv",
            origin={"format": FORMAT.name, "path": path.name, "files": len(files)},
            notes=[f"tables of joints of skeleton {skeleton.name}, {len(files):,} files", *labelled.notes, *notes],
        )


def _read_clip(file: ClipFile, skeleton: Skeleton, columns: str) -> RawClip:
    return read_joints(file.read(), skeleton, columns)


def _skeleton_of(readers: Sequence[Callable[[], bytes]], description: Mapping[str, str], location: str) -> Skeleton:
    """Return the skeleton of the first file that can be read."""
    fault = ""
    for read in readers:
        try:
            table = parse_clip(lambda content: _read_table(content, description), read())
            texts = _joint_texts(table)
        except ClipError as error:
            fault = fault or str(error)
            continue
        found = find_skeleton(texts, has_depth=table.columns.has_depth)
        if found is not None:
            return found
        fault = f"joints {shorten(', '.join(texts), 120)} are of no known skeleton, or of several: pass --skeleton"
        break
    raise InputError(f"{location}: the skeleton is unknown ({fault})")


def _normalization(entries: Sequence[ClipEntry], skeleton: Skeleton) -> tuple[Normalization | None, list[str]]:
    """Choose the normalization of trackers whose y axis points down; ``None`` lets the conversion measure it."""
    if skeleton.name not in _Y_DOWN:
        return None, []
    clips = []
    for entry in entries[:MEASURED_CLIPS]:
        try:
            clips.append(parse_clip(lambda read: read(), entry.read))
        except ClipError:
            continue  # reported when the clip is converted
    spaces = [parse_clip(to_space, clip) for clip in clips]
    up = up_axis(spaces, skeleton) or "-y"
    if skeleton.name != "mediapipe-33":
        measured, notes = measure(clips, skeleton)
        return dataclasses.replace(measured, up=up), [note for note in notes if "--up" not in note]
    hips = [skeleton.joints.index(name) for name in ("left_hip", "right_hip")]
    centres = [joints[:, :, hips].mean(axis=2)[seen[:, :, hips].all(axis=2)] for joints, seen in spaces]
    largest = max((float(np.abs(centre).max()) for centre in centres if len(centre)), default=1.0)
    if largest < 0.05 and all(clip.joints.shape[-1] == 3 for clip in clips):
        return Normalization(up=up), ["MediaPipe's world landmarks, in metres from the hips"]
    return Normalization(scaling="torso", up=up), ["MediaPipe's image landmarks: clips are scaled to a torso of 0.5"]


FORMAT = SourceFormat("joint-csv", "CSV files of joints: MediaPipe, Kinect or others", recognizes, open_folder)
