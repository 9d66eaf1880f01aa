"""Hand gestures: SHREC'17 (``skeletons_world.txt``) and DHG-14/28 (``skeleton_world.txt``).

A clip is the file in ``gesture_G/finger_F/subject_S/essai_E``, a line per frame with x, y and z in metres of 22 joints
of a hand. F is 1 for gestures by one finger and 2 for those by the whole hand; the 28 classes are pairs of G and F.
SHREC'17 has lists of the training and the test clips; DHG-14/28 is evaluated on each subject in turn, and has a list of
the first and the last frame of the gesture in each clip.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from fgst.data.clip_source import ClipEntry, ClipSource, Membership, SourceFormat, SourceOptions
from fgst.data.normalization import Normalization, RawClip
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import SHREC_22
from fgst.data.sources import MAX_FILE_BYTES, ClipError, ClipFile, open_source, some_names
from fgst.data.splits import Benchmark
from fgst.errors import InputError
from fgst.parsing import printable, shorten

GESTURES = (
    "grab", "tap", "expand", "pinch", "rotation clockwise", "rotation counter-clockwise", "swipe right", "swipe left",
    "swipe up", "swipe down", "swipe x", "swipe +", "swipe v", "shake",
)  # fmt: skip
FINGERS = ("one finger", "whole hand")
OFFICIAL = "official"
MAX_FRAMES = 20_000
NORMALIZATION = Normalization(persons=False)  # metres; a single hand

_PATH = re.compile(
    r"(?:.*/)?gesture_(\d{1,4})/finger_(\d{1,4})/subject_(\d{1,4})/essai_(\d{1,4})/skeletons?_world\.txt", re.IGNORECASE
)
_NAME = re.compile(r"skeletons?_world\.txt", re.IGNORECASE)
_LISTS: dict[str, Membership] = {"train_gestures.txt": "train", "test_gestures.txt": "test"}
_FRAMES = "informations_troncage_sequences.txt"
_HINT = "give the folder that contains gesture_1 … gesture_14, or a zip of it"
_NUMBER = re.compile(rb"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True, order=True)
class _Key:
    """What identifies a clip: numbers from 1."""

    gesture: int
    finger: int
    subject: int
    trial: int

    @property
    def name(self) -> str:
        return f"gesture_{self.gesture:02d}_finger_{self.finger}_subject_{self.subject:02d}_trial_{self.trial}"


def read_joints(content: bytes, skeleton: Skeleton = SHREC_22) -> RawClip:
    """Parse a clip: three numbers for each joint in each line.

    Returns:
        ``(1, T, N, 3)``.

    Raises:
        ClipError: if it is not such a table; the message names the line.
    """
    width = 3 * skeleton.num_joints
    rows: list[list[float]] = []
    for number, line in enumerate(content.split(b"\n"), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != width:
            raise ClipError(
                f"has {len(fields)} numbers on line {number}, not {width}: x, y, z of {skeleton.num_joints} joints"
            )
        if len(rows) == MAX_FRAMES:
            raise ClipError(f"has more than {MAX_FRAMES:,} frames")
        if not all(map(_NUMBER.fullmatch, fields)):
            raise ClipError(f"has text that is not a number on line {number}")
        rows.append([float(field) for field in fields])
    if not rows:
        raise ClipError("is empty")
    return RawClip(np.array(rows).reshape(1, -1, skeleton.num_joints, 3))


def encode_joints(joints: np.ndarray, skeleton: Skeleton) -> bytes:
    """Write the joints of a hand, ``(T, N, 3)``."""
    del skeleton
    file = io.BytesIO()
    np.savetxt(file, joints.reshape(len(joints), -1), fmt="%.7g")
    return file.getvalue()


def clips_of(files: Sequence[ClipFile]) -> list[ClipFile]:
    """Return the clips among files: those with the names of these data sets, or all if there is none."""
    named = [file for file in files if _NAME.fullmatch(PurePosixPath(file.path).name)]
    return named or list(files)


def recognizes(path: Path) -> bool:
    """Return whether a folder or zip has the folders of these data sets."""
    return any(_PATH.fullmatch(name) for name in some_names(path))


@contextmanager
def open_folder(path: Path, options: SourceOptions, *, fine: bool = False) -> Iterator[ClipSource]:
    """Open a folder or zip, for :class:`~fgst.data.clip_source.SourceFormat`.

    Args:
        path: the folder or zip.
        options: none is used.
        fine: 28 classes instead of 14.
    """
    location = printable(str(path))
    if options.labels or options.benchmarks or options.classes:
        raise InputError("--labels, --benchmark, --classes: files of this format contain labels and splits")
    with open_source(path, suffix=".txt", max_bytes=MAX_FILE_BYTES, hint=_HINT) as listing:
        files: dict[_Key, ClipFile] = {}
        tables: dict[str, ClipFile] = {}
        for file in listing.files:
            name = PurePosixPath(file.path).name.lower()
            if name in _LISTS or name == _FRAMES:
                tables[name] = file
            elif match := _PATH.fullmatch(PurePosixPath(file.path).as_posix()):
                key = _Key(*map(int, match.groups()))
                if key in files:
                    raise InputError(f"{location}: has {key.name} twice: {files[key].path} and {file.path}")
                files[key] = file
        if not files:
            raise InputError(f"{location}: contains no gesture_…/skeletons_world.txt; {_HINT}")
        lists = {name: _read_table(file, location, 4) for name, file in tables.items() if name in _LISTS}
        frames = _read_table(tables[_FRAMES], location, 6) if _FRAMES in tables else {}
        split_of: dict[_Key, Membership] = {key: _LISTS[name] for name, keys in lists.items() for key in keys}
        if sum(map(len, lists.values())) != len(split_of):
            raise InputError(f"{location}: {' and '.join(_LISTS)} have a clip in common; download them again")
        keys = sorted(files.keys() | split_of.keys() | frames.keys())
        for key in keys:
            if not (1 <= key.gesture <= len(GESTURES) and 1 <= key.finger <= len(FINGERS)):
                raise InputError(
                    f"{location}: {key.name}: gestures are 1 to {len(GESTURES)}, fingers 1 to {len(FINGERS)}"
                )
        has_lists = set(split_of.values()) == {"train", "test"}
        subjects = sorted({key.subject for key in keys})
        entries = [
            ClipEntry(
                key.name,
                _label(key, fine=fine),
                functools.partial(_read_clip, files.get(key), frames.get(key)),
                subject=key.subject,
                setup=key.finger,
                replication=key.trial,
                splits={OFFICIAL: split_of[key]} if has_lists and key in split_of else {},
            )
            for key in keys
        ]
        what = (
            "SHREC'17" if any("skeletons_" in PurePosixPath(file.path).name for file in files.values()) else "DHG-14/28"
        )
        notes = [f"{what}, {len(_classes(fine=fine))} classes: {len(files):,} clips of {len(subjects)} subjects"]
        if frames:
            notes.append(f"clips are cut to the gesture by {_FRAMES}")
        elif what == "DHG-14/28":
            notes.append(f"{_FRAMES} is missing, so clips are not cut to the gesture")
        yield ClipSource(
            skeleton=SHREC_22,
            entries=entries,
            num_clips=len(entries),
            classes=_classes(fine=fine),
            benchmarks=[] if has_lists else leave_one_out(subjects, location),
            split_lists=[OFFICIAL] if has_lists else [],
            normalization=NORMALIZATION,
            preparation="shrec",
            origin={"format": (FORMAT_28 if fine else FORMAT).name, "path": path.name, "files": len(files)},
            notes=notes,
        )


def leave_one_out(subjects: Sequence[int], location: str) -> list[Benchmark]:
    """Return a benchmark per subject, who is tested by networks trained on all others.

    Raises:
        InputError: if there is only one.
    """
    if len(subjects) < 2:
        raise InputError(f"{location}: has no list of test clips, and one subject only, so none can be tested; {_HINT}")
    return [
        Benchmark(f"subject-{one}", "subject", train=tuple(s for s in subjects if s != one), test=(one,))
        for one in subjects
    ]


def _classes(*, fine: bool) -> list[str]:
    return [f"{gesture} ({finger})" for gesture in GESTURES for finger in FINGERS] if fine else list(GESTURES)


def _label(key: _Key, *, fine: bool) -> int:
    return (key.gesture - 1) * len(FINGERS) + key.finger - 1 if fine else key.gesture - 1


def _read_clip(file: ClipFile | None, span: tuple[int, ...] | None) -> RawClip:
    """Read a clip, from the first to the last frame of the gesture if they are known (counted from 0)."""
    if file is None:
        raise ClipError("is in the lists, but there is no such file")
    raw = read_joints(file.read())
    if span is None:
        return raw
    first, last = span[:2]
    joints = raw.joints[:, first : last + 1]
    if not joints.shape[1]:
        raise ClipError(f"has {raw.joints.shape[1]} frames, but its gesture is from frame {first} to {last}")
    return RawClip(joints)


def _read_table(file: ClipFile, location: str, columns: int) -> Mapping[_Key, tuple[int, ...]]:
    """Read a list of clips: gesture, finger, subject and trial, and further numbers, in each line.

    Args:
        file: the list.
        location: the source, for messages.
        columns: the smallest number of columns.

    Raises:
        InputError: if a line is not of this form, or a clip occurs twice.
    """
    try:
        lines = file.read().split(b"\n")
    except ClipError as fault:
        raise InputError(f"{location}: {file.path}: {fault}") from None
    table: dict[_Key, tuple[int, ...]] = {}
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) < columns or not all(re.fullmatch(rb"[0-9]{1,9}", field) for field in fields):
            text = shorten(line.decode("ascii", "replace"), 60)
            raise InputError(f"{location}: {file.path}: line {number} is {text!r}, not {columns} or more whole numbers")
        key = _Key(*map(int, fields[:4]))
        if key in table:
            raise InputError(f"{location}: {file.path}: line {number}: {key.name} occurs twice")
        table[key] = tuple(map(int, fields[4:]))
    return table


FORMAT = SourceFormat("shrec", "SHREC'17 or DHG-14/28, 14 classes of hand gestures", recognizes, open_folder)
FORMAT_28 = SourceFormat(
    "shrec-28",
    "the same with 28 classes: with one finger and with the whole hand",
    lambda path: False,
    functools.partial(open_folder, fine=True),
)
