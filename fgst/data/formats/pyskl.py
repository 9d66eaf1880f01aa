"""pyskl's and mmaction2's ``.pkl``: a list of annotations, and lists of the clips of each split.

An annotation has the clip's name (``frame_dir`` or ``filename``), its ``label``, ``keypoint`` of shape (M, T, N, C),
and ``keypoint_score`` (M, T, N) and ``img_shape`` (height, width) if it is two-dimensional. Older files are bare lists,
one for each split; those that mmaction2 makes from NTU RGB+D have keypoints of shape (C, T, N, M), as ST-GCN.
"""

from __future__ import annotations

import functools
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from fgst.data.clip_source import ClipSource, Membership, SourceFormat, SourceOptions
from fgst.data.formats.source_labels import PEEKED, ExportedFrom, Listed, describe, list_clips, measured, peek, text
from fgst.data.normalization import UNCHANGED, RawClip
from fgst.data.pickles import PickleError, StoredArray, open_pickle, parse_pickle, write_pickle
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import (
    AZURE_KINECT_32,
    BODY_25,
    COCO_17,
    H36M_17,
    MEDIAPIPE_33,
    NTU_25,
    NW_UCLA_20,
    OPENPOSE_18,
)
from fgst.data.sources import MAX_FILE_BYTES, ClipError
from fgst.errors import InputError
from fgst.parsing import convert_json, printable, shorten

DESCRIPTION = "fgst"  # a key of exported files; readers of the layout ignore it
EXTRA_COLUMNS = ("subject", "camera", "setup", "replication")  # keys of annotations in exported files
_LIST = "official"
# The role of a list or a file, before or after its name: xsub_train, train1, gym_val.
_ROLE = re.compile(r"(?P<before>.*?)(?P<role>train|val|test)(?P<after>.*)", re.IGNORECASE)
_SKELETONS = {
    (25, 3): NTU_25, (25, 2): BODY_25, (20, 3): NW_UCLA_20, (18, 2): OPENPOSE_18, (17, 2): COCO_17, (17, 3): H36M_17,
    (33, 3): MEDIAPIPE_33, (32, 3): AZURE_KINECT_32,
}  # fmt: skip
_PIXELS = 5  # larger coordinates than this are pixels, not metres


def recognizes(path: Path) -> bool:
    """Return whether a file looks like such a pickle."""
    return path.suffix.lower() in (".pkl", ".pickle") and path.is_file() and not re.search("_label", path.stem)


@contextmanager
def open_annotations(path: Path, options: SourceOptions) -> Iterator[ClipSource]:
    """Open a file; see :class:`~fgst.data.clip_source.SourceFormat`."""
    location = printable(str(path))
    with ExitStack() as stack:
        value = _open(path, stack)
        files = [path]
        exported = None
        notes: list[str] = []
        is_bare = isinstance(value, list)
        if is_bare:
            files, annotations, members = _bare_lists(path, value, stack)
        else:
            annotations, members, exported = _parse(value, location)
        _refuse_index(annotations, location)
        pairs = _pairs(list(members), notes) if exported is None else _exported_pairs(exported, members)
        listed = _list(annotations, members, pairs, notes, verbatim=exported is not None)
        unlisted = sum(not clip.splits for clip in listed)  # describe() replaces lists that are official splits
        layout = _Layout.of(annotations, exported.skeleton if exported else options.skeleton, location, is_bare=is_bare)
        labels = describe(listed, list(pairs), options, where=path.absolute(), exported=exported)
        reads = [
            functools.partial(_read, annotation, layout, clip.fault)
            for annotation, clip in zip(annotations, listed, strict=True)
        ]
        if exported is not None:
            normalization = UNCHANGED
        else:
            normalization, remarks = measured(peek(reads), layout.skeleton)
            notes += remarks
        if pairs and unlisted:
            notes.append(f"{unlisted:,} clips are in no list")
        preparation = "ntu" if layout.skeleton == NTU_25 and normalization.centred else "pyskl"
        yield ClipSource(
            skeleton=layout.skeleton,
            entries=(clip.entry(read) for clip, read in zip(listed, reads, strict=True)),
            num_clips=len(listed),
            classes=labels.classes,
            benchmarks=labels.benchmarks,
            normalization=normalization,
            recipe=exported.recipe if exported else "ntu",
            preparation=exported.preparation if exported else preparation,
            origin={"format": FORMAT.name, "files": {file.name: file.stat().st_size for file in files}},
            notes=[
                f"annotations of pyskl: {len(listed):,} clips of {layout.skeleton.num_joints} joints "
                f"({layout.skeleton.name}), {len(labels.classes)} classes",
                *labels.notes,
                *notes,
            ],
        )


def read_joints(content: bytes, skeleton: Skeleton) -> RawClip:
    """Parse a pickle of a single annotation.

    Args:
        content: the whole file.
        skeleton: the expected skeleton.

    Raises:
        ClipError: if it is not one.
    """
    try:
        value = parse_pickle(io.BytesIO(content))
    except PickleError as error:
        raise ClipError(str(error)) from None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict) or "keypoint" not in value:
        raise ClipError("is not an annotation of one clip, with a keypoint")
    return _read(value, _Layout.of([value], skeleton, "it", is_bare=False), None)


def encode_joints(joints: np.ndarray, skeleton: Skeleton) -> bytes:
    """Write the joints of one person, ``(T, N, 3)``, as an annotation, with two coordinates if z is zero."""
    del skeleton
    file = io.BytesIO()
    keypoint = joints[None].astype(np.float32)
    write_pickle(
        file,
        {
            "frame_dir": "example",
            "total_frames": len(joints),
            "keypoint": keypoint if joints[..., 2].any() else keypoint[..., :2],
            "keypoint_score": np.asarray(joints.any(axis=-1), np.float32)[None],
        },
    )
    return file.getvalue()


class _Layout:
    """How the keypoints of a file are arranged."""

    def __init__(self, skeleton: Skeleton, *, is_transposed: bool, has_scores: bool) -> None:
        self.skeleton = skeleton
        self.is_transposed = is_transposed  # (C, T, N, M)
        self.has_scores = has_scores  # the third coordinate is the confidence

    @classmethod
    def of(cls, annotations: Sequence[Any], skeleton: Skeleton | None, location: str, *, is_bare: bool) -> _Layout:
        """Find out by the first annotations.

        Raises:
            InputError: if none is usable, or the skeleton is not known.
        """
        keypoints = []
        for annotation in annotations:
            with suppress(ClipError):
                keypoints.append(_array(annotation, "keypoint"))
            if len(keypoints) == PEEKED:
                break
        if not keypoints:
            raise InputError(f"{location}: has no annotation with an array keypoint")
        usual = Counter((keypoint.ndim, *keypoint.shape[-2:]) for keypoint in keypoints).most_common(1)[0][0]
        keypoint = next(k for k in keypoints if (k.ndim, *k.shape[-2:]) == usual)
        shape, is_transposed = keypoint.shape, False
        if is_bare and len(shape) == 4 and shape[0] == 3 and shape[2] in (18, 25) and shape[3] <= 2:
            is_transposed = shape[3] == 1 or float(abs(keypoint).max()) < 4 * _PIXELS  # metres
        channels, joints = (shape[0] if is_transposed else shape[-1]), shape[-2]
        scores = channels == 3 and skeleton in (None, COCO_17) and joints == 17 and _ends_with_scores(keypoint)
        skeleton = skeleton or _SKELETONS.get((joints, 2 if scores else channels))
        if skeleton is None or skeleton.num_joints != joints:
            hint = f"skeleton {skeleton.name} has {skeleton.num_joints}" if skeleton else "pass --skeleton"
            raise InputError(f"{location}: has keypoints of shape {shape}, i.e. {joints} joints; {hint}")
        return cls(skeleton, is_transposed=is_transposed, has_scores=scores)


def _ends_with_scores(keypoint: np.ndarray) -> bool:
    """Return whether the third coordinates are confidences next to pixels."""
    third, largest = keypoint[..., 2], float(keypoint.max())
    return largest > _PIXELS and float(third.min()) >= 0 and float(third.max()) <= 1.5


def _open(path: Path, stack: ExitStack) -> Any:
    try:
        return stack.enter_context(open_pickle(path))
    except PickleError as error:
        raise InputError(f"{printable(str(path))}: {error}") from None


def _parse(value: Any, location: str) -> tuple[list[Any], dict[str, list[Any]], ExportedFrom | None]:
    """Return the annotations, the lists of clips, and what an exported file says."""
    if not isinstance(value, dict) or not isinstance(value.get("annotations"), list):
        if isinstance(value, dict) and "keypoint" in value:
            raise InputError(
                f"{location}: is a single clip, not a data set; python -m fgst.predict classifies such files"
            )
        kind = type(value).__name__ if not isinstance(value, dict) else f"a dictionary of {_keys(value)}"
        raise InputError(f"{location}: is {kind}, not the annotations of a data set")
    lists = value.get("split") or {}
    if isinstance(lists, dict):
        lists = {
            key: names.read().tolist() if isinstance(names, StoredArray) else names for key, names in lists.items()
        }
    if not isinstance(lists, dict) or not all(isinstance(names, (list, tuple, set)) for names in lists.values()):
        raise InputError(f"{location}: split is not a dictionary of lists of clips")
    exported = None
    if DESCRIPTION in value:
        try:
            exported = convert_json(value[DESCRIPTION], ExportedFrom)
        except ValueError as error:
            raise InputError(f"{location}: {DESCRIPTION}: {error}; export the data set again") from None
    return value["annotations"], {str(name): list(names) for name, names in lists.items()}, exported


def _keys(value: Mapping[Any, Any]) -> str:
    return shorten(", ".join(str(key) for key in list(value)[:5]), 80)


def _bare_lists(path: Path, value: list[Any], stack: ExitStack) -> tuple[list[Path], list[Any], dict[str, list[Any]]]:
    """Return the files, annotations and lists of a file without lists, and of the one for the other split."""
    role = _ROLE.fullmatch(path.stem)
    others = ("val", "test") if role and role["role"].lower() == "train" else ("train",)
    names = [f"{role['before']}{other}{role['after']}{path.suffix}" for other in others] if role else []
    other = next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)
    if other is None or role is None:
        return [path], value, {}
    second = _open(other, stack)
    if not isinstance(second, list):
        raise InputError(f"{printable(str(other))}: is not a list of annotations, as {path.name} next to it")
    pairs = [(path, value), (other, second)]
    if role["role"].lower() != "train":
        pairs.reverse()
    lists = {split: [_name(item) for item in items] for split, (_, items) in zip(("train", "test"), pairs, strict=True)}
    return [file for file, _ in pairs], [item for _, items in pairs for item in items], lists


def _refuse_index(annotations: Sequence[Any], location: str) -> None:
    """Raise InputError for an index of skeletons that are in other files."""
    if not annotations:
        raise InputError(f"{location}: has no annotation")
    first = annotations[0]
    if isinstance(first, dict) and "keypoint" not in first and {"raw_file", "frame_inds", "box_score"} & set(first):
        raise InputError(
            f"{location}: is an index: its annotations name files of skeletons (raw_file), as pyskl's of Kinetics-400, "
            "and have no keypoint; convert a file whose annotations contain them"
        )


def _name(annotation: Any) -> str:
    """Return a clip's name as lists refer to it."""
    if not isinstance(annotation, dict):
        return ""
    return text(annotation.get("filename")) or text(annotation.get("frame_dir"))


def _list(
    annotations: Sequence[Any],
    members: Mapping[str, Sequence[Any]],
    pairs: Mapping[str, Mapping[Membership, str]],
    notes: list[str],
    *,
    verbatim: bool,
) -> list[Listed]:
    """Return the clips and the splits that they are in, given pairs of lists; see :func:`list_clips`."""
    names = [_name(annotation) for annotation in annotations]
    given = [annotation.get("label") if isinstance(annotation, dict) else None for annotation in annotations]
    clips = list_clips(names, given, verbatim=verbatim)
    by_name: dict[str, Listed] = {}
    for name, annotation, clip in zip(names, annotations, clips, strict=True):
        by_name.setdefault(name, clip)
        if not isinstance(annotation, dict):
            clip.fault = "its annotation is not a dictionary"
        if isinstance(annotation, dict) and (numbers := {c: annotation[c] for c in EXTRA_COLUMNS if c in annotation}):
            clip.numbers = numbers if all(type(n) is int and n >= 0 for n in numbers.values()) else {}
    missing = 0
    for name, sides in pairs.items():
        for side, key in sides.items():
            for member in members[key]:
                if (listed := by_name.get(text(member))) is None:
                    missing += 1
                elif listed.splits.setdefault(name, side) != side:
                    listed.fault = f"it is in both lists of {name}"
    if missing:
        notes.append(f"the lists name {missing:,} clips that have no annotation")
    return clips


def list_keys(name: str) -> dict[Membership, str]:
    """Return the names of the two lists of a benchmark in exported files: ``xsub_train`` and ``xsub_val``."""
    name = name.replace("x-", "x") if name in ("x-sub", "x-view", "x-set") else name
    return {"train": f"{name}_train", "test": f"{name}_val"}


def _exported_pairs(exported: ExportedFrom, keys: Collection[str]) -> dict[str, dict[Membership, str]]:
    pairs = {rule.name: list_keys(rule.name) for rule in exported.benchmarks}
    return {name: sides for name, sides in pairs.items() if set(sides.values()) <= set(keys)}


def _pairs(keys: Sequence[str], notes: list[str]) -> dict[str, dict[Membership, str]]:
    """Return the pairs of lists for training and testing by their common name.

    The list for testing is ``test``, or ``val`` if there is none.
    """
    roles: dict[str, dict[str, str]] = {}
    alone = []
    for key in keys:
        if match := _ROLE.fullmatch(key):
            name = re.sub(r"[_\W]+", "_", match["before"] + match["after"]).strip("_")
            roles.setdefault(name, {})[match["role"].lower()] = key
        else:
            alone.append(key)
    pairs: dict[str, dict[Membership, str]] = {}
    for name, lists in roles.items():
        test = "test" if "test" in lists else "val"
        if {"train", test} <= set(lists):
            pairs[f"{_LIST}{name}" if name.isdigit() else name or _LIST] = {
                "train": lists["train"],
                "test": lists[test],
            }
            alone += [key for role, key in lists.items() if role not in ("train", test)]
        else:
            alone += lists.values()
    if alone:
        notes.append(f"not used: {', '.join(alone)}")
    return pairs


def _array(annotation: Any, key: str) -> np.ndarray:
    """Return an array of an annotation.

    Raises:
        ClipError: if there is none, it is too large, or it cannot be read.
    """
    if not isinstance(annotation, dict):
        raise ClipError("its annotation is not a dictionary")
    value = annotation.get(key)
    if not isinstance(value, StoredArray) or value.dtype.kind not in "fiu":
        raise ClipError(f"it has no array {key} of numbers")
    if not 3 <= len(value.shape) <= 4 or min(value.shape) < 1:
        raise ClipError(f"{key} has shape {value.shape}, not (persons, frames, joints, coordinates)")
    if value.size > MAX_FILE_BYTES:
        raise ClipError(f"{key} has {value.size:,} bytes; a clip has at most {MAX_FILE_BYTES:,}")
    try:
        return value.read()
    except PickleError as error:
        raise ClipError(f"{key} {error}") from None


def _read(annotation: Any, layout: _Layout, fault: str | None) -> RawClip:
    """Return the clip of an annotation.

    Raises:
        ClipError: if it is not usable.
    """
    if fault is not None:
        raise ClipError(fault)
    keypoint = _array(annotation, "keypoint")
    if layout.is_transposed and keypoint.ndim == 4:
        keypoint = keypoint.transpose(3, 1, 2, 0)
        frames = annotation.get("total_frames")
        return RawClip(keypoint[:, :frames] if type(frames) is int and frames > 0 else keypoint)
    if keypoint.ndim == 3:
        keypoint = keypoint[None]
    if layout.has_scores and keypoint.shape[-1] == 3:
        return RawClip(keypoint[..., :2], keypoint[..., 2], _image(annotation))
    scores = None
    if annotation.get("keypoint_score") is not None:
        scores = _array(annotation, "keypoint_score")
        if scores.shape not in (keypoint.shape[:3], keypoint.shape[1:3], (*keypoint.shape[:3], 1)):
            raise ClipError(f"keypoint_score has shape {scores.shape}, but keypoint {keypoint.shape}")
        scores = scores.reshape(keypoint.shape[:3])
    return RawClip(keypoint, scores, _image(annotation) if keypoint.shape[-1] == 2 else None)


def _image(annotation: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return width and height of the image; annotations have them as (height, width)."""
    for key in ("img_shape", "original_shape"):
        shape = annotation.get(key)
        if isinstance(shape, (tuple, list)) and len(shape) >= 2 and all(type(n) is int and n > 0 for n in shape[:2]):
            return shape[1], shape[0]
    return None


FORMAT = SourceFormat("pyskl", "annotations of pyskl and mmaction2 (.pkl)", recognizes, open_annotations)
