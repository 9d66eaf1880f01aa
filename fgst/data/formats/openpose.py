"""OpenPose: a folder of ``NAME_000000000000_keypoints.json`` files per clip, one file per frame.

Each file lists the people that were detected in a frame, in no particular order: ``pose_keypoints_2d`` has x, y and the
confidence of each of 18 (COCO) or 25 (BODY_25) joints; hands and faces are not used. As a single file, a clip has the
content of one frame's file in each line, and an empty line for a missing frame.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import msgspec
import numpy as np

from fgst.data.clip_source import ClipSource, SourceFormat, SourceOptions
from fgst.data.detections import Frame, most_confident
from fgst.data.formats.labelled import NamedClip, label_clips
from fgst.data.normalization import Normalization, RawClip
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import BODY_25, OPENPOSE_18
from fgst.data.sources import (
    MAX_FILE_BYTES,
    ClipError,
    ClipFile,
    decode_clip,
    open_source,
    parse_clip,
    read_path,
    some_names,
    walk_files,
)
from fgst.errors import InputError
from fgst.parsing import printable

FRAME_SUFFIX = "_keypoints.json"
MAX_FRAMES = 20_000
SKELETONS = {18: OPENPOSE_18, 25: BODY_25}
_NUMBERED = re.compile(r"(.*?)[_-]?([0-9]{1,18})" + re.escape(FRAME_SUFFIX), re.IGNORECASE)
_HINT = f"give a folder or a zip of OpenPose's *{FRAME_SUFFIX} files"

# Coordinates are pixels, or relative to an image of unknown size (--keypoint_scale); y points down. The reader matches
# persons.
NORMALIZATION = Normalization(scaling="torso", up="-y", persons=False)

_Numbers = Annotated[list[float], msgspec.Meta(max_length=1000)]


class _Person(msgspec.Struct):
    pose_keypoints_2d: _Numbers | None = None
    pose_keypoints: _Numbers | None = None  # files of versions before 1.2

    @property
    def values(self) -> list[float]:
        return self.pose_keypoints_2d or self.pose_keypoints or []


class _Content(msgspec.Struct):
    people: Annotated[list[_Person], msgspec.Meta(max_length=10_000)]


_DECODER = msgspec.json.Decoder(_Content)


def read_joints(content: bytes, skeleton: Skeleton) -> RawClip:
    """Parse a clip.

    Args:
        content: a frame's file in each line.
        skeleton: OpenPose's, with 18 or 25 joints.

    Returns:
        The two most confident persons, ``(M, T, N, 2)``, with scores.

    Raises:
        ClipError: if a line is not such a file, or no person is detected in any.
    """
    lines = content.split(b"\n")
    if len(lines) > MAX_FRAMES:
        raise ClipError(f"has {len(lines):,} frames; a clip has at most {MAX_FRAMES:,}")
    frames = []
    for number, line in enumerate(lines, 1):
        try:
            frames.append(_read_frame(line, skeleton.num_joints))
        except ClipError as fault:
            raise ClipError(f"line {number}: {fault}") from None
    joints, scores = most_confident(frames)
    if not len(joints):
        raise ClipError("no person is detected in any frame")
    return RawClip(joints, scores)


def _read_frame(content: bytes, N: int) -> Frame:
    people = _decode(content).people if content.strip() else []
    values = [person.values for person in people if person.values]
    for one in values:
        if len(one) != 3 * N:
            other = f" ({len(one) // 3} joints)" if len(one) % 3 == 0 else ""
            raise ClipError(f"has {len(one)} numbers for a person{other}, not {3 * N}: x, y, confidence of {N} joints")
    people_values = np.array(values, np.float64).reshape(-1, N, 3)
    if not np.isfinite(people_values).all():
        raise ClipError("a number is not finite")
    return Frame(people_values[..., :2], people_values[..., 2])


def _decode(content: bytes) -> _Content:
    return decode_clip(content, _DECODER, "a frame of OpenPose")


def encode_joints(joints: np.ndarray, skeleton: Skeleton) -> bytes:
    """Write one person's joints ``(T, N, 3)``; y is turned downwards, and z is omitted. Zero joints are not seen."""
    del skeleton
    lines = []
    for frame in joints:
        seen = frame.any(axis=-1, keepdims=True)
        values = np.concatenate([frame[:, :2] * (1, -1), seen], axis=1)
        person = {"person_id": [-1], "pose_keypoints_2d": values.reshape(-1).round(6).tolist()}
        lines.append(json.dumps({"version": 1.3, "people": [person]}))
    return "\n".join(lines).encode()


def combine(files: Sequence[ClipFile]) -> list[ClipFile]:
    """Combine the files of frames into clips, in the form that :func:`read_joints` takes.

    A folder is a clip. If a folder has frames of several names, each name in each folder is a clip. Frames are in the
    order of their numbers, which may have gaps; other files are left out.
    """
    frames: dict[str, dict[str, list[tuple[int, str, ClipFile]]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        path = PurePosixPath(file.path)
        if (frame := _frame_of(path.name)) is not None:
            frames[str(path.parent)][frame[0]].append((frame[1], path.name, file))
    return _clip_files(frames, lambda folder, name: functools.partial(_read_files, frames[folder][name]))


def _clips_in_folder(source: Path) -> tuple[list[ClipFile], int]:
    """Return the clips of a folder, like :func:`combine`, and the number of frames.

    Millions of frames are not kept in memory: each folder is listed again when its clip is read.
    """
    counts: dict[str, dict[str, int]] = {}
    for folder, names in walk_files(source):
        found = Counter(frame[0] for name in names if (frame := _frame_of(name)) is not None)
        if found:
            counts[folder.as_posix()] = found
    clips = _clip_files(counts, lambda folder, name: functools.partial(_read_folder, source / folder, name))
    return clips, sum(count for names in counts.values() for count in names.values())


def _frame_of(name: str) -> tuple[str, int] | None:
    """Return the name of the clip and the number of the frame in a file's name; ``None`` if it is not a frame's."""
    if not name.lower().endswith(FRAME_SUFFIX):
        return None
    match = _NUMBERED.fullmatch(name)
    return (match[1], int(match[2])) if match else ("", 0)


def _clip_files(
    names_of: Mapping[str, Iterable[str]], reader: Callable[[str, str], Callable[[], bytes]]
) -> list[ClipFile]:
    """Name the clips.

    Args:
        names_of: the names in the files of frames, by folder ("." for the source itself).
        reader: returns the reader of a clip, by both.
    """
    several = any(len(list(names)) > 1 for names in names_of.values())
    clips = []
    for folder, names in names_of.items():
        for name in names:
            path = folder if folder != "." and not several else str(PurePosixPath(folder, name or "clip"))
            path = printable(path)
            clips.append(ClipFile(PurePosixPath(path).name, path, path, (-1, -1), reader(folder, name)))
    return clips


def _read_files(frames: Sequence[tuple[int, str, ClipFile]]) -> bytes:
    return _join((name, file.read) for _, name, file in sorted(frames, key=lambda frame: frame[:2]))


def _read_folder(folder: Path, name: str) -> bytes:
    """Read the frames of a clip."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise ClipError(f"cannot be read ({error.strerror})") from None
    frames = sorted((frame[1], file) for file in names if (frame := _frame_of(file)) is not None and frame[0] == name)
    return _join((file, functools.partial(read_path, folder / file, MAX_FILE_BYTES)) for _, file in frames)


def _join(frames: Iterable[tuple[str, Callable[[], bytes]]]) -> bytes:
    """Return the poses of frames, each in one line; hands and faces would take most of the memory."""
    lines: list[bytes] = []
    size = 0
    for name, read in frames:
        try:
            people = [{"pose_keypoints_2d": person.values} for person in parse_clip(_decode, read()).people]
        except ClipError as fault:
            raise ClipError(f"{printable(name)}: {fault}") from None
        lines.append(msgspec.json.encode({"people": people}))
        size += len(lines[-1])
        if size > MAX_FILE_BYTES or len(lines) > MAX_FRAMES:
            raise ClipError(f"has more than {MAX_FRAMES:,} frames, or poses of more than {MAX_FILE_BYTES >> 20} MiB")
    return b"\n".join(lines)


def recognizes(path: Path) -> bool:
    """Return whether a folder or zip has files of OpenPose's frames."""
    return any(name.lower().endswith(FRAME_SUFFIX) for name in some_names(path))


@contextmanager
def open_folder(path: Path, options: SourceOptions) -> Iterator[ClipSource]:
    """Open a folder or zip of clips, for :class:`~fgst.data.clip_source.SourceFormat`."""
    location = printable(str(path))
    with ExitStack() as stack:
        if os.path.isdir(path):
            clips, frames = _clips_in_folder(path)
        else:
            source = open_source(path, suffix=".json", max_bytes=MAX_FILE_BYTES, hint=_HINT)
            files = stack.enter_context(source).files
            clips, frames = combine(files), sum(_frame_of(PurePosixPath(f.path).name) is not None for f in files)
        if not clips:
            raise InputError(f"{location}: contains no *{FRAME_SUFFIX} file; {_HINT}")
        skeleton = options.skeleton or _find_skeleton(clips, location)
        if skeleton.num_joints not in SKELETONS:
            raise InputError(f"--skeleton {skeleton.name}: OpenPose has 18 or 25 joints, not {skeleton.num_joints}")
        labelled = label_clips(
            [NamedClip(clip.path, functools.partial(_read_clip, clip, skeleton)) for clip in clips], options, location
        )
        origin: dict[str, Any] = {"format": FORMAT.name, "path": path.name, "frames": frames}
        yield ClipSource(
            skeleton=skeleton,
            entries=labelled.entries,
            num_clips=len(labelled.entries),
            classes=labelled.classes,
            benchmarks=labelled.benchmarks,
            split_lists=labelled.split_lists,
            normalization=NORMALIZATION,
            preparation="openpose",
            origin=origin,
            notes=[
                f"OpenPose, {skeleton.num_joints} joints: {len(clips):,} clips of {frames:,} frames; the two most "
                "confident persons, scaled to a torso of 0.5",
                *labelled.notes,
            ],
        )


def _read_clip(file: ClipFile, skeleton: Skeleton) -> RawClip:
    return read_joints(file.read(), skeleton)


def _find_skeleton(clips: Sequence[ClipFile], location: str) -> Skeleton:
    """Return the skeleton of the first frame that shows a person."""
    for clip in clips:
        try:
            lines = parse_clip(lambda clip: clip.read(), clip).split(b"\n")
            for line in lines:
                for person in parse_clip(_decode, line).people if line.strip() else []:
                    if len(person.values) // 3 in SKELETONS:
                        return SKELETONS[len(person.values) // 3]
        except ClipError:
            continue  # reported when the clip is read
    raise InputError(f"{location}: no frame has a person with 18 or 25 joints")


FORMAT = SourceFormat("openpose", "folders of OpenPose's *_keypoints.json", recognizes, open_folder)
