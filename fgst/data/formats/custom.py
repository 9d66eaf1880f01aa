"""Own data: preparation of an Arrow data set from NumPy arrays, a table of labels and a skeleton.

``python -m data_prep.custom --help`` documents the files.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from fgst.data.dataset import ArrowDataset, Clip
from fgst.data.formats.array import read_joints
from fgst.data.progress import tracked
from fgst.data.skeleton import MAX_JOINTS, Skeleton
from fgst.data.skeletons import SKELETONS, find_skeleton
from fgst.data.sources import MAX_FILE_BYTES, ClipError, open_source, parse_clip
from fgst.data.splits import Benchmark
from fgst.data.writer import check_joints, check_output, write_dataset
from fgst.errors import InputError
from fgst.parsing import Name, printable, read_json, read_regular_file, read_table, shorten

OPTIONAL_COLUMNS = ("subject", "camera", "setup", "replication")
MAX_NAME = 200  # characters of a clip's or a class's name
_HINT = "give a folder of .npy files or an .npz"


class _Description(msgspec.Struct):
    """The content of a skeleton description."""

    name: Name
    joints: Annotated[list[Name], msgspec.Meta(min_length=1, max_length=MAX_JOINTS)]
    bones: dict[str, str]
    centre: str
    partitions: list[list[list[str]]] = []

    def __post_init__(self) -> None:
        in_parts = (joint for partition in self.partitions for part in partition for joint in part)
        unknown = sorted({*self.bones, *self.bones.values(), self.centre, *in_parts} - set(self.joints))
        if unknown:
            raise ValueError(f"bones, centre or partitions name {unknown[0]!r}, which is not one of the joints")


def read_skeleton(source: Path | str) -> Skeleton:
    """Return a skeleton that ships by its name, or read a skeleton description in JSON.

    Raises:
        InputError: if it is neither, or the file cannot be read or is not valid.
    """
    skeleton, path = find_skeleton(str(source)), Path(source)
    if skeleton is not None:
        return skeleton
    if not path.exists():
        known = ", ".join(f"{name} ({skeleton.num_joints})" for name, skeleton in SKELETONS.items())
        raise InputError(
            f"--skeleton {printable(str(source))}: there is no such file or skeleton; skeletons (joints) are {known}"
        )
    fields = read_json(path, _Description, what="a skeleton description", hint="see --help")
    index = {joint: i for i, joint in enumerate(fields.joints)}
    try:
        return Skeleton(
            name=fields.name,
            joints=tuple(fields.joints),
            parents=tuple(index[fields.bones.get(joint, joint)] for joint in fields.joints),
            centre=index[fields.centre],
            partitions=tuple(tuple(tuple(index[j] for j in part) for part in parts) for parts in fields.partitions),
        )
    except ValueError as error:
        raise InputError(f"{printable(str(path))}: is not a skeleton description ({error}); see --help") from None


def read_labels(path: Path) -> list[dict[str, str]]:
    """Read the table of labels in CSV; returns one mapping from column to value per clip.

    Raises:
        InputError: if it cannot be read or a line is not valid; the message names the line.
    """
    try:
        return _parse_labels(read_regular_file(path))
    except ValueError as error:
        raise InputError(f"{printable(str(path))}: {error}") from None


def _parse_labels(content: bytes) -> list[dict[str, str]]:
    columns, lines = read_table(content)
    for column in ("clip_id", "label"):
        if column not in columns:
            raise ValueError(f"has no column {column}; its header is {shorten(', '.join(columns)) or 'empty'}")
    labels: dict[str, dict[str, str]] = {}
    for number, values in lines:
        clip = values["clip_id"]
        if not clip or not values["label"]:
            raise ValueError(f"line {number}: has no clip_id or no label")
        if clip in labels:
            raise ValueError(f"line {number}: clip {shorten(clip, 80)} occurs twice")
        for column in ("clip_id", "label"):
            if len(values[column]) > MAX_NAME or not values[column].isprintable():
                raise ValueError(
                    f"line {number}: {column} {shorten(values[column], 80)} must be at most {MAX_NAME} printable "
                    "characters"
                )
        for column in OPTIONAL_COLUMNS:
            if not re.fullmatch(r"[0-9]{0,9}", values.get(column, "")):
                raise ValueError(f"line {number}: {column} is {shorten(values[column], 80)!r}, not a whole number")
        labels[clip] = values
    if not labels:
        raise ValueError("lists no clip")
    return list(labels.values())


def read_benchmark(text: str) -> Benchmark:
    """Parse a benchmark such as ``x-sub:subject=1,2,3``.

    Raises:
        InputError: if it is not of this form.
    """
    match = re.fullmatch(r"([\w-]+):(\w+)=([0-9]+(?:,[0-9]+)*)", text)
    if match is None or match[2] not in OPTIONAL_COLUMNS:
        raise InputError(f"--benchmark {text}: write NAME:COLUMN=VALUES, e.g. x-sub:subject=1,2,3")
    return Benchmark(match[1], match[2], train=tuple(map(int, match[3].split(","))))


def prepare(
    clips: Path,
    out: Path,
    *,
    labels: Path,
    skeleton: Path | str,
    benchmarks: Sequence[Benchmark],
    recipe: str = "ntu",
    name: str | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> tuple[ArrowDataset, list[tuple[str, str]]]:
    """Prepare a data set from arrays. Classes are numbered in alphabetical order.

    Args:
        clips: a folder of ``.npy`` files, or an ``.npz``.
        out: the new directory.
        labels: the table of labels, in CSV.
        skeleton: the skeleton description, in JSON, or the name of a skeleton that ships.
        benchmarks: one or more; the first is the default.
        recipe: the default sampling and augmentation, one of :data:`~fgst.config.RECIPES`.
        name: name of the data set; ``None`` means the name of ``out``.
        skip_bad: leave out bad clips, instead of stopping at the first.
        overwrite: replace an existing data set at ``out``.

    Returns:
        The data set, and the name and the fault of each clip that was left out.

    Raises:
        InputError: if a file is not valid, or no clip is usable; nothing is written then.
    """
    check_output(out, overwrite=overwrite)
    if clips.is_dir() and out.resolve().is_relative_to(clips.resolve()):
        raise InputError(f"{out}: is inside CLIPS; choose a directory outside of it")
    parsed_skeleton, rows = read_skeleton(skeleton), read_labels(labels)
    _check_benchmarks(benchmarks, rows, labels)
    classes = sorted({row["label"] for row in rows})
    source: dict[str, Any] = {"made_by": "data_prep.custom"}  # _read_clips completes it before it is written
    rejected: list[tuple[str, str]] = []
    reading = _read_clips(clips, rows, parsed_skeleton, classes, source, rejected if skip_bad else None)
    with closing(tracked(reading, total=len(rows), description="clips")) as counted:
        first = next(counted, None)
        if first is None:
            clip_id, fault = rejected[0]
            raise InputError(
                f"{printable(str(clips))}: none of the {len(rows)} clips is usable (the first, {clip_id}: {fault})"
            )
        dataset = write_dataset(
            out,
            itertools.chain([first], counted),
            name=name or out.name,
            skeleton=parsed_skeleton,
            classes=classes,
            benchmarks=benchmarks,
            recipe=recipe,
            source=source,
            overwrite=overwrite,
        )
    return dataset, rejected


def _check_benchmarks(benchmarks: Sequence[Benchmark], rows: Sequence[Mapping[str, str]], labels: Path) -> None:
    """Raise InputError if a benchmark has no column or an empty split, or if two have the same name."""
    for benchmark in benchmarks:
        if not any(row.get(benchmark.column) for row in rows):
            raise InputError(f"{labels}: has no {benchmark.column}, which benchmark {benchmark.name} splits by")
    for number, benchmark in enumerate(benchmarks):
        if benchmark.name in [other.name for other in benchmarks[:number]]:
            raise InputError(f"--benchmark {benchmark.name}: occurs twice; use different names")
        values = [int(row.get(benchmark.column) or 0) for row in rows]
        count = sum(value in benchmark.train for value in values)
        if count in (0, len(rows)):
            split = "train" if count == 0 else "test"
            raise InputError(
                f"--benchmark {benchmark.name}: its {split} split is empty; {benchmark.column} is one of "
                f"{', '.join(map(str, sorted(set(values))[:20]))}"
            )


def _read_clips(
    source: Path,
    rows: Sequence[Mapping[str, str]],
    skeleton: Skeleton,
    classes: Sequence[str],
    origin: dict[str, Any],
    rejected: list[tuple[str, str]] | None,
) -> Generator[Clip, None, None]:
    """Read the clips in the order of their names; add the digest of all content to ``origin`` at the end.

    A bad file is added to ``rejected`` with its fault, or raises an InputError if that is ``None``.
    """
    content, labels = hashlib.sha256(), {name: label for label, name in enumerate(classes)}
    with open_source(source, suffix=".npy", max_bytes=MAX_FILE_BYTES, hint=_HINT) as listing:
        files = {file.path[: -len(".npy")]: file for file in listing.files}
        for row in sorted(rows, key=lambda row: row["clip_id"]):
            clip_id = row["clip_id"]
            try:
                if clip_id not in files:
                    raise ClipError(f"there is no file {clip_id}.npy")
                joints = parse_clip(functools.partial(read_joints, skeleton=skeleton), files[clip_id].read())
                check_joints(joints, skeleton)
            except ClipError as fault:
                if rejected is None:
                    raise InputError(
                        f"{printable(str(source))}: {clip_id}: {fault}; fix or remove the clip, or pass --skip-bad to "
                        "leave out such clips"
                    ) from None
                rejected.append((clip_id, str(fault)))
                continue
            content.update(f"{clip_id} {row['label']} ".encode() + np.ascontiguousarray(joints, "<f8").tobytes())
            columns: dict[str, Any] = {column: int(row.get(column) or 0) for column in OPTIONAL_COLUMNS}
            yield Clip(clip_id, labels[row["label"]], joints, **columns)
    origin["sha256"] = content.hexdigest()
    if rejected:
        origin["left_out"] = len(rejected)
