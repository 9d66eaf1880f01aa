"""Kinetics-skeleton: ``kinetics_train/NAME.json`` and ``kinetics_val/NAME.json``, with a file of labels next to each
folder.

A clip's file has frames of up to five people with 18 joints of OpenPose, ``data[].skeleton[].pose/score``, and its
class, ``label`` and ``label_index``. Coordinates are relative to the image, with y down. Many videos show no person;
``has_skeleton`` in the files of labels should say so but is often wrong, and is only compared with the clips.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import msgspec
import numpy as np

from fgst.data.clip_source import ClipEntry, ClipSource, Membership, SourceFormat, SourceOptions
from fgst.data.detections import Frame, most_confident
from fgst.data.normalization import Normalization, RawClip
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import OPENPOSE_18
from fgst.data.sources import (
    MAX_FILE_BYTES,
    ClipError,
    ClipFile,
    EmptyClip,
    decode_clip,
    first_contents,
    open_source,
    parse_clip,
    some_names,
)
from fgst.errors import InputError
from fgst.parsing import MAX_BYTES, Name, decode_json, printable

MAX_FRAMES = 20_000
OFFICIAL = "official"  # the benchmark of kinetics_train and kinetics_val
# Half the height of the image is 1, as for pixels of a known image. Persons are matched by the reader.
NORMALIZATION = Normalization(scale=2.0, up="-y", persons=False)

_HINT = "give the folder that contains kinetics_train and kinetics_val, or a zip of it"
_LABELS = re.compile(r"(?:.*_)?(train|val|test)_label\.json", re.IGNORECASE)
_FOLDER = re.compile(r"(?:.*_)?(train|val|test)", re.IGNORECASE)
_MEMBERSHIP: dict[str, Membership] = {"train": "train", "val": "test", "test": "test"}
_Numbers = Annotated[list[float], msgspec.Meta(max_length=1000)]
_Index = Annotated[int, msgspec.Meta(ge=-1, le=10_000)]


class _Skeleton(msgspec.Struct):
    pose: _Numbers
    score: _Numbers


class _Frame(msgspec.Struct):
    frame_index: int
    skeleton: Annotated[list[_Skeleton], msgspec.Meta(max_length=10_000)] = []


class _Clip(msgspec.Struct):
    data: Annotated[list[_Frame], msgspec.Meta(max_length=MAX_FRAMES)]


class _Label(msgspec.Struct):
    """The class of a clip, in its own file or in a file of labels."""

    label: Name
    label_index: _Index = -1
    has_skeleton: bool | None = None


_CLIP, _LABEL = msgspec.json.Decoder(_Clip), msgspec.json.Decoder(_Label)
_WHAT = "a clip of Kinetics-skeleton"


def read_joints(content: bytes, skeleton: Skeleton = OPENPOSE_18) -> RawClip:
    """Parse a clip's file.

    Args:
        content: the whole file.
        skeleton: the skeleton that the poses must have.

    Returns:
        The two most confident persons, ``(M, T, N, 2)``, with scores; frames are in the order of ``frame_index``.

    Raises:
        EmptyClip: if there is no person in any frame.
        ClipError: if it is not such a file.
    """
    N = skeleton.num_joints
    frames = []
    for frame in sorted(decode_clip(content, _CLIP, _WHAT).data, key=lambda frame: frame.frame_index):
        poses = [one for one in frame.skeleton if one.pose or one.score]
        for one in poses:
            if len(one.pose) != 2 * N or len(one.score) != N:
                raise ClipError(
                    f"has {len(one.pose)} coordinates and {len(one.score)} scores in frame {frame.frame_index}, not "
                    f"{2 * N} and {N}"
                )
        joints = np.array([one.pose for one in poses], np.float64).reshape(-1, N, 2)
        frames.append(Frame(joints, np.array([one.score for one in poses], np.float64).reshape(-1, N)))
    joints, scores = most_confident(frames)
    if not len(joints):
        raise EmptyClip("no skeleton in any frame")
    return RawClip(joints, scores)


def encode_joints(joints: np.ndarray, skeleton: Skeleton) -> bytes:
    """Write one person's joints ``(T, N, 3)``; y is turned downwards, and z is omitted. Zero joints are not seen."""
    del skeleton
    frames = []
    for number, frame in enumerate(joints, 1):
        pose = (frame[:, :2] * (0.5, -0.5)).reshape(-1).round(6).tolist()
        score = frame.any(axis=-1).astype(float).tolist()
        frames.append({"frame_index": number, "skeleton": [{"pose": pose, "score": score}]})
    return json.dumps({"data": frames}).encode()


def clips_of(files: Sequence[ClipFile]) -> list[ClipFile]:
    """Return the clips among files, which may include files of labels."""
    return [file for file in files if not _LABELS.fullmatch(PurePosixPath(file.path).name)]


def recognizes(path: Path) -> bool:
    """Return whether a folder or zip has files of labels, or clips, of this format."""
    names = [name for name in some_names(path) if name.lower().endswith(".json")]
    if any(_LABELS.fullmatch(PurePosixPath(name).name) for name in names):
        return True
    if not names or any(name.lower().endswith("_keypoints.json") for name in names):
        return False
    contents = first_contents(path, names[:1])
    return any(b'"label_index"' in content and b'"data"' in content for content in contents)


@contextmanager
def open_folder(path: Path, options: SourceOptions) -> Iterator[ClipSource]:
    """Open a folder or zip, for :class:`~fgst.data.clip_source.SourceFormat`."""
    location = printable(str(path))
    if options.labels or options.benchmarks or options.classes:
        raise InputError("--labels, --benchmark, --classes: files of this format contain labels and splits")
    if options.skeleton is not None and options.skeleton.num_joints != OPENPOSE_18.num_joints:
        raise InputError(f"--skeleton {options.skeleton.name}: Kinetics-skeleton has the 18 joints of openpose-18")
    # A file of labels may be larger than a clip's; `_read_joints` limits that of a clip.
    with open_source(path, suffix=".json", max_bytes=MAX_BYTES, hint=_HINT) as listing:
        tables = {PurePosixPath(f.path): f for f in listing.files if _LABELS.fullmatch(PurePosixPath(f.path).name)}
        labels = {_labelled_folder(table): _read_labels(file, location) for table, file in tables.items()}
        clips = sorted(clips_of(listing.files), key=lambda file: file.path)
        if not clips:
            raise InputError(f"{location}: contains no clip; {_HINT}")
        names = Counter(file.name for file in clips)
        split_of = {file.path: _split(file.path, path) for file in clips}
        found: list[tuple[ClipFile, _Label | None]] = [
            (file, labels.get(_key(PurePosixPath(file.path).parent), {}).get(file.name)) for file in clips
        ]
        inside = sum(label is None for _, label in found)
        known = [(file, label or _label_inside(file)) for file, label in found]
        usable = [label for _, label in known if label is not None]
        if not usable:
            raise InputError(f"{location}: no clip has a label; {_HINT}")
        classes = _class_names(usable)
        splits = set(split_of.values())
        has_lists = {"train", "test"} <= splits
        if not has_lists:
            raise InputError(f"{location}: has clips of {'one split' if splits - {None} else 'no split'} only; {_HINT}")
        entries = [
            ClipEntry(
                file.name if names[file.name] == 1 else str(PurePosixPath(file.path).with_suffix("")),
                _class(label or usable[0], classes),  # a clip without a label is reported when it is read
                functools.partial(_read_clip, file, label),
                splits={OFFICIAL: split} if (split := split_of[file.path]) else {},
            )
            for file, label in known
        ]
        notes = [
            f"Kinetics-skeleton, {len(entries):,} clips; the two most confident persons; half the image's height is 1",
            f"{OFFICIAL}: train and test from the folders of train and val",
        ]
        if inside:
            notes.append(
                f"the classes of {inside:,} clips are from the clips' files, because no file of labels has them"
            )
        unknown = sum(len(table.keys() - {f.name for f in clips}) for table in labels.values())
        if unknown:
            notes.append(f"{unknown:,} clips in the files of labels have no file")
        origin: dict[str, Any] = {"format": FORMAT.name, "path": path.name, "files": len(clips)}
        yield ClipSource(
            skeleton=OPENPOSE_18,
            entries=entries,
            num_clips=len(entries),
            classes=classes,
            split_lists=[OFFICIAL],
            normalization=NORMALIZATION,
            preparation="kinetics",
            origin=origin,
            notes=notes,
        )


def _read_clip(file: ClipFile, label: _Label | None) -> RawClip:
    """Read a clip, and compare it with what the file of labels says."""
    if label is None:
        raise ClipError("has no label")
    said = label.has_skeleton
    content = file.read()
    if len(content) > MAX_FILE_BYTES:
        raise ClipError(f"is larger than {MAX_FILE_BYTES >> 20} MiB, the limit for such a file")
    try:
        raw = read_joints(content)
    except EmptyClip as reason:
        raise EmptyClip(f"{reason}" + (", although the file of labels says there is one" if said else "")) from None
    if said is False:
        raw = RawClip(raw.joints, raw.scores, remark="has a skeleton, although the file of labels says there is none")
    return raw


def _labelled_folder(table: PurePosixPath) -> str:
    """Return the key of the folder that a file of labels is for: ``kinetics_train`` for kinetics_train_label.json."""
    return _key(table.with_name(table.name[: -len("_label.json")]))


def _key(folder: PurePosixPath) -> str:
    return str(folder).lower()


def _read_labels(file: ClipFile, location: str) -> dict[str, _Label]:
    try:
        return decode_json(file.read(), dict[str, _Label])
    except (ClipError, ValueError) as error:
        raise InputError(f"{location}: {file.path}: is not a file of labels ({error})") from None


def _label_inside(file: ClipFile) -> _Label | None:
    """Return the class in a clip's file; ``None`` if it cannot be read, which is reported with the clip."""
    try:
        return parse_clip(lambda content: decode_clip(content, _LABEL, _WHAT), file.read())
    except ClipError:
        return None


def _split(path: str, source: Path) -> Membership | None:
    """Return the split of a clip by its folder; the source itself may be that folder."""
    folder = PurePosixPath(path).parent.name or source.name
    match = _FOLDER.fullmatch(folder)
    return _MEMBERSHIP[match[1].lower()] if match else None


def _class_names(labels: Sequence[_Label]) -> list[str] | None:
    """Return the class names by index, if the indices are 0 to C - 1 and each has one name."""
    names: dict[int, str] = {}
    for label in labels:
        if names.setdefault(label.label_index, label.label) != label.label:
            return None
    complete = sorted(names) == list(range(len(names))) and len(set(names.values())) == len(names)
    return [names[index] for index in range(len(names))] if complete and names else None


def _class(label: _Label, classes: Sequence[str] | None) -> str | int:
    return label.label if classes is None else label.label_index


FORMAT = SourceFormat("kinetics", "Kinetics-skeleton: JSON files of clips", recognizes, open_folder)
