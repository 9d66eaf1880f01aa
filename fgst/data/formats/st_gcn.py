"""ST-GCN's arrays, also used by 2s-AGCN and MS-G3D: ``train_data.npy`` with ``train_label.pkl``, and ``val_…``.

Arrays have shape (clips, C, T, N, M). Clips of NTU RGB+D are in metres from the camera and end with zeros (ST-GCN), or
are centred in each frame, rotated, and repeated to fill the window (2s-AGCN, MS-G3D). Clips of Kinetics have C = x, y
as fractions of the image, around its middle, and the confidence. ``val`` is the official test split.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fgst.data.clip_source import ClipSource, Membership, SourceFormat, SourceOptions
from fgst.data.formats import kinetics
from fgst.data.formats.npy_rows import Rows, open_npy
from fgst.data.formats.source_labels import Listed, describe, list_clips, measured, peek
from fgst.data.normalization import RawClip, to_space, up_axis
from fgst.data.pickles import PickleError, StoredArray, open_pickle
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import NTU_25, NW_UCLA_20, OPENPOSE_18
from fgst.data.sources import ClipError, EmptyClip
from fgst.errors import InputError
from fgst.parsing import printable

_DATA = re.compile(r"(?P<split>train|val|test)_data(?P<kind>(_\w+)?)\.npy")
_LABELS = re.compile(r"(?P<split>train|val|test)_label\.pkl")
_LIST = "official"
_SKELETONS = {25: NTU_25, 20: NW_UCLA_20, 18: OPENPOSE_18}


def recognizes(path: Path) -> bool:
    """Return whether a folder contains such arrays, or a file is one of them or their labels."""
    try:
        if path.is_dir():
            return any(_DATA.fullmatch(name) for name in os.listdir(path))
        if _DATA.fullmatch(path.name):
            return True
        return bool(_LABELS.fullmatch(path.name)) and recognizes(path.parent)
    except OSError:
        return False


@contextmanager
def open_arrays(path: Path, options: SourceOptions) -> Iterator[ClipSource]:
    """Open a folder, or one of its files; see :class:`~fgst.data.clip_source.SourceFormat`."""
    files = _find(path)
    with ExitStack() as stack:
        arrays = {side: stack.enter_context(open_npy(data)) for side, (data, _) in files.items()}
        shapes = {rows.shape[1:] for rows in arrays.values()}
        if any(len(shape) != 4 for shape in shapes):
            raise InputError(
                f"{printable(str(path))}: has arrays of shape {arrays['train'].shape}, not (clips, coordinates, "
                "frames, joints, persons)"
            )
        skeleton, has_scores = _layout(arrays, options.skeleton)
        listed = {side: _read_labels(labels, len(arrays[side]), side) for side, (_, labels) in files.items()}
        clips = [clip for side in listed.values() for clip in side]
        labels = describe(clips, [_LIST], options, where=files["train"][0].absolute())
        reads: list[Callable[[], RawClip]] = [
            functools.partial(_read, arrays[side], index, has_scores, clip.fault)
            for side, members in listed.items()
            for index, clip in enumerate(members)
        ]
        peeked = peek(reads)
        if has_scores:
            is_up = up_axis([to_space(clip) for clip in peeked], skeleton) == "y"
            reads = [functools.partial(_upside_down, read) for read in reads] if is_up else reads
            normalization, preparation = kinetics.NORMALIZATION, "kinetics"
            notes = [f"x, y and confidence as fractions of the image; y points {'up' if is_up else 'down'}"]
        else:
            normalization, notes = measured(peeked, skeleton)
            preparation = "ntu" if skeleton == NTU_25 and normalization.centred else "array"
        counts = " and ".join(f"{len(listed[side]):,} clips of {files[side][0].name}" for side in listed)
        yield ClipSource(
            skeleton=skeleton,
            entries=(clip.entry(read) for clip, read in zip(clips, reads, strict=True)),
            num_clips=len(clips),
            classes=labels.classes,
            benchmarks=labels.benchmarks,
            normalization=normalization,
            preparation=preparation,
            origin={
                "format": FORMAT.name,
                "files": {file.name: file.stat().st_size for pair in files.values() for file in pair},
            },
            notes=[f"ST-GCN's arrays: {counts}, {len(labels.classes)} classes", *labels.notes, *notes],
        )


def _find(path: Path) -> dict[Membership, tuple[Path, Path]]:
    """Return the array and the labels of the training and the test clips.

    Raises:
        InputError: if one of them is missing, or an array is derived from joints.
    """
    location = printable(str(path))
    folder = path if path.is_dir() else path.parent
    try:
        found = [match for name in sorted(os.listdir(folder)) if (match := _DATA.fullmatch(name))]
    except OSError as error:
        raise InputError(f"{location}: cannot be read ({error.strerror})") from None
    given = _DATA.fullmatch(path.name)
    kinds = [given["kind"]] if given else sorted({match["kind"] for match in found}, key=lambda kind: kind != "_joint")
    usable = [kind for kind in kinds if not re.search("bone|motion", kind)]
    if not usable:
        what = f"{kinds[0].strip('_')} " if kinds else ""
        raise InputError(
            f"{location}: has no joints: {what}data are computed from them, and so they are here (--set "
            "data.modality=…); give train_data_joint.npy or train_data.npy"
        )
    if len(usable) > 1 and "_joint" not in usable and "" not in usable:
        raise InputError(f"{location}: has several arrays per split; give one file, e.g. train_data{usable[0]}.npy")
    kind = usable[0] if "_joint" in usable or "" not in usable else ""
    splits = {match["split"]: folder / match[0] for match in found if match["kind"] == kind}
    tests = [split for split in ("val", "test") if split in splits]
    if "train" not in splits or not tests:
        missing = "train" if "train" not in splits else "val"
        raise InputError(f"{location}: has no {missing}_data{kind}.npy next to it; both splits are needed")
    if len(tests) > 1:
        raise InputError(f"{location}: has both val_data{kind}.npy and test_data{kind}.npy; move one of them away")
    pairs: dict[Membership, tuple[Path, Path]] = {}
    sides: tuple[tuple[Membership, str], ...] = (("train", "train"), ("test", tests[0]))
    for side, split in sides:
        labels = folder / f"{split}_label.pkl"
        if not labels.is_file():
            raise InputError(f"{location}: has no {labels.name}, which names the clips of {splits[split].name}")
        pairs[side] = splits[split], labels
    return pairs


def _layout(arrays: dict[Membership, Rows], skeleton: Skeleton | None) -> tuple[Skeleton, bool]:
    """Return the skeleton, and whether the third coordinate is the confidence.

    Raises:
        InputError: if the arrays have another layout.
    """
    rows = arrays["train"]
    channels, _, joints, _ = rows.shape[1:]
    for other in arrays.values():
        if other.shape[1] != channels or other.shape[3] != joints:
            raise InputError(f"{other.location}: has shape {other.shape}, other than the training clips: {rows.shape}")
    skeleton = skeleton or _SKELETONS.get(joints)
    if skeleton is None or skeleton.num_joints != joints or channels not in (2, 3):
        hint = "" if skeleton is None or skeleton.num_joints == joints else f" of skeleton {skeleton.name}"
        raise InputError(
            f"{rows.location}: has shape {rows.shape}, not (clips, 3, frames, joints, persons){hint}; name the "
            "skeleton with --skeleton"
        )
    return skeleton, channels == 3 and skeleton == OPENPOSE_18


def _read_labels(path: Path, count: int, side: Membership) -> list[Listed]:
    """Read the names and labels of the clips of a split.

    Raises:
        InputError: if it is not a pickle of as many names and labels.
    """
    location = printable(str(path))
    try:
        with open_pickle(path) as value:
            if not isinstance(value, (tuple, list)) or len(value) < 2:
                raise PickleError("is not a pair of names and labels")
            names, labels = _sequence(value[0]), _sequence(value[1])
    except PickleError as error:
        raise InputError(f"{location}: {error}") from None
    if len(names) != count or len(labels) != count:
        raise InputError(
            f"{location}: has {len(names):,} names and {len(labels):,} labels, but the array has {count:,} clips"
        )
    clips = list_clips(names, labels)
    for clip in clips:
        clip.splits[_LIST] = side
    return clips


def _sequence(value: Any) -> list[Any]:
    if isinstance(value, StoredArray) and len(value.shape) == 1:
        return list(value.read().tolist())
    if isinstance(value, (list, tuple)):
        return list(value)
    raise PickleError("is not a pair of names and labels")


def _read(rows: Rows, index: int, has_scores: bool, fault: str | None) -> RawClip:
    if fault is not None:
        raise ClipError(fault)
    joints = rows.row(index).transpose(3, 1, 2, 0)
    if not has_scores:
        return RawClip(joints)
    if not joints[..., 2].any():
        raise EmptyClip("no person")
    return RawClip(joints[..., :2], joints[..., 2])


def _upside_down(read: Callable[[], RawClip]) -> RawClip:
    """Return a clip of Kinetics whose y points up with y down, as in its original files."""
    clip = read()
    return dataclasses.replace(clip, joints=clip.joints * np.array([1, -1], clip.joints.dtype))


FORMAT = SourceFormat(
    "st-gcn", "train_data.npy and train_label.pkl of ST-GCN, 2s-AGCN, MS-G3D", recognizes, open_arrays
)
