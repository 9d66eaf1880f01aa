"""CTR-GCN's ``.npz``: the clips of one split of NTU RGB+D in four arrays, padded to the longest clip.

``x_train`` and ``x_test`` have shape (clips, T, M·N·3); a clip ends with zeros, and an absent second person is zero, or
a copy of the first in files of NTU RGB+D 120. ``y_train`` and ``y_test`` are one-hot, or numbers of classes.
"""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from fgst.data.clip_source import ClipEntry, ClipSource, Membership, SourceFormat, SourceOptions
from fgst.data.formats.npy_rows import Archive, Rows
from fgst.data.formats.source_labels import (
    ExportedFrom,
    Listed,
    describe,
    list_clips,
    measured,
    official_in,
    peek,
)
from fgst.data.normalization import UNCHANGED, Normalization, RawClip
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import NTU_25, NW_UCLA_20
from fgst.data.sources import ClipError
from fgst.errors import InputError
from fgst.parsing import MAX_BYTES, Name, Number, decode_json, printable

DESCRIPTION = "fgst.json"  # a member of exported files; readers of the layout ignore it
_SPLITS: tuple[Membership, ...] = ("train", "test")


class ExportedClip(msgspec.Struct, array_like=True):
    """What the layout does not say about a clip."""

    name: Name
    persons: Annotated[int, msgspec.Meta(ge=1)]
    frames: Annotated[int, msgspec.Meta(ge=1)]
    subject: Number
    camera: Number
    setup: Number
    replication: Number


class ExportedClips(msgspec.Struct):
    """The content of :data:`DESCRIPTION`.

    Attributes:
        dataset: the data set of the clips.
        benchmark: the benchmark that divides them.
        train: its training clips, in the order of ``x_train``.
        test: its test clips.
    """

    dataset: ExportedFrom
    benchmark: Name
    train: list[ExportedClip]
    test: list[ExportedClip]


def recognizes(path: Path) -> bool:
    """Return whether a file is a zip of such arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {"x_train.npy", "y_train.npy"} <= set(archive.namelist())
    except Exception:  # a damaged zip raises exceptions of many types
        return False


@contextmanager
def open_npz(path: Path, options: SourceOptions) -> Iterator[ClipSource]:
    """Open a file; see :class:`~fgst.data.clip_source.SourceFormat`."""
    with closing(Archive(path)) as archive:
        exported = _read_description(archive)
        arrays = {split: archive.rows(f"x_{split}") for split in _SPLITS}
        skeleton = options.skeleton or (exported.dataset.skeleton if exported else None)
        skeleton, persons = _layout(arrays["train"], skeleton)
        if arrays["test"].shape[2] != arrays["train"].shape[2]:
            raise InputError(f"{arrays['test'].location}: has rows of another length than x_train")
        benchmark = exported.benchmark if exported else official_in(path.stem) or "official"
        clips: dict[Membership, list[Listed]] = {}
        num_classes = 0
        for split in _SPLITS:
            numbers, count = _read_labels(archive.rows(f"y_{split}"), len(arrays[split]))
            num_classes = max(num_classes, count)
            clips[split] = _list(numbers, split, benchmark, getattr(exported, split) if exported else None, path)
        listed = [clip for split in _SPLITS for clip in clips[split]]
        is_ntu = skeleton == NTU_25
        labels = describe(
            listed, [benchmark], options, where=path, num_classes=num_classes, assume_ntu=is_ntu,
            exported=exported.dataset if exported else None,
        )  # fmt: skip
        shape = (persons, skeleton.num_joints)
        if exported is not None:
            normalization, notes = UNCHANGED, list[str]()
        else:
            rows = arrays["train"]
            peeked = peek(functools.partial(_read, rows, index, shape, None, None) for index in range(len(rows)))
            normalization, notes = _normalization(peeked, skeleton)
        counts = " and ".join(f"{len(clips[split]):,} {split}" for split in _SPLITS)
        yield ClipSource(
            skeleton=skeleton,
            entries=_entries(arrays, clips, exported, shape),
            num_clips=len(listed),
            classes=labels.classes,
            benchmarks=labels.benchmarks,
            normalization=normalization,
            recipe=exported.dataset.recipe if exported else "ntu",
            preparation=exported.dataset.preparation if exported else "ntu" if is_ntu else "array",
            origin={"format": FORMAT.name, "files": {path.name: path.stat().st_size}},
            notes=[
                f"CTR-GCN's .npz: {counts} clips of {persons} × {skeleton.num_joints} joints, "
                f"{len(labels.classes)} classes{' of NTU RGB+D' if is_ntu and not exported else ''}",
                *labels.notes,
                *notes,
            ],
        )


def _read_description(archive: Archive) -> ExportedClips | None:
    if DESCRIPTION not in archive.names:
        return None
    try:
        return decode_json(archive.read(DESCRIPTION, MAX_BYTES), ExportedClips)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{archive.location}: {DESCRIPTION}: {error}; export the data set again") from None


def _layout(rows: Rows, skeleton: Skeleton | None) -> tuple[Skeleton, int]:
    """Return the skeleton and the number of persons of an array ``(clips, T, M·N·3)``."""
    if len(rows.shape) != 3:
        raise InputError(
            f"{rows.location}: has shape {rows.shape}, not (clips, frames, persons · joints · 3); reshape it"
        )
    width = rows.shape[2]
    if skeleton is None:
        known = {75: NTU_25, 150: NTU_25, 60: NW_UCLA_20, 120: NW_UCLA_20}
        if width not in known:
            raise InputError(
                f"{rows.location}: has {width} numbers per frame, which is no known skeleton; name it with --skeleton"
            )
        skeleton = known[width]
    persons, rest = divmod(width, 3 * skeleton.num_joints)
    if rest or not 1 <= persons <= 10:
        raise InputError(
            f"{rows.location}: has {width} numbers per frame, which is not a number of persons of skeleton "
            f"{skeleton.name} ({skeleton.num_joints} joints × 3); name another with --skeleton"
        )
    return skeleton, persons


def _read_labels(rows: Rows, count: int) -> tuple[list[int | str], int]:
    """Return the labels of all clips, and the number of classes if they are one-hot, else 0."""
    if len(rows) != count or len(rows.shape) > 2:
        raise InputError(f"{rows.location}: has shape {rows.shape}, but there are {count:,} clips")
    try:
        labels = [_label(rows.row(index)) for index in range(count)]
    except ClipError:
        labels = []
    rows.check_end()
    return labels, rows.shape[1] if len(rows.shape) == 2 and rows.shape[1] > 1 else 0


def _label(row: np.ndarray) -> int | str:
    """Return the number of a clip's class, or a text if it has none."""
    if row.size == 1:
        value = float(row.reshape(()))
        return int(value) if value.is_integer() else f"{value:g}"
    classes = np.flatnonzero(row > 0)
    return int(classes[0]) if len(classes) == 1 else f"{len(classes)} classes at once"


def _list(
    labels: Sequence[int | str], split: Membership, benchmark: str, exported: Sequence[ExportedClip] | None, path: Path
) -> list[Listed]:
    """Return the clips of a split, with the names that the layout's own reader gives them."""
    clips = list_clips([f"{split}_{number}" for number in range(len(labels))], labels)
    if exported is not None:
        if len(exported) != len(labels):
            raise InputError(f"{printable(str(path))}: {DESCRIPTION} lists other clips; export the data set again")
        for clip, known in zip(clips, exported, strict=True):
            clip.name = known.name
            clip.numbers = {name: getattr(known, name) for name in ("subject", "camera", "setup", "replication")}
    for clip in clips:
        clip.splits[benchmark] = split
    return clips


def _normalization(clips: Sequence[RawClip], skeleton: Skeleton) -> tuple[Normalization, list[str]]:
    """Return the normalization; clips of this layout are centred, and their persons ordered."""
    centred = measured(clips, skeleton)[0].centred
    note = "not centred yet: the first person's centre is moved to the origin" if centred else "already centred"
    return Normalization(centred=centred, persons=False), [note]


def _read(rows: Rows, index: int, shape: tuple[int, int], known: ExportedClip | None, fault: str | None) -> RawClip:
    """Return a clip without a second person who is a copy of the first.

    Args:
        rows: the array of the clip's split.
        index: its row.
        shape: numbers of persons and joints.
        known: what an exported file says about the clip.
        fault: why it is not usable.

    Raises:
        ClipError: if it is not usable, or cannot be read.
    """
    if fault is not None:
        raise ClipError(fault)
    frames = rows.row(index)
    joints = frames.reshape(len(frames), *shape, 3).transpose(1, 0, 2, 3)
    if known is not None:
        if known.persons > len(joints) or known.frames > joints.shape[1]:
            raise ClipError(f"is said to have {known.persons} persons and {known.frames} frames, but has fewer")
        return RawClip(joints[: known.persons, : known.frames])
    return RawClip(joints[:1] if len(joints) == 2 and np.array_equal(joints[0], joints[1]) else joints)


def _entries(
    arrays: dict[Membership, Rows],
    clips: dict[Membership, list[Listed]],
    exported: ExportedClips | None,
    shape: tuple[int, int],
) -> Iterator[ClipEntry]:
    for split, rows in arrays.items():
        for index, clip in enumerate(clips[split]):
            known = getattr(exported, split)[index] if exported else None
            read = functools.partial(_read, rows, index, shape, known, clip.fault)
            yield clip.entry(read)
        rows.check_end()


FORMAT = SourceFormat("ctr-gcn", "CTR-GCN's .npz of NTU RGB+D", recognizes, open_npz)
