"""Custom skeletons: preparation of an Arrow data set from NumPy arrays, a table of labels and a skeleton description.

``python -m data_prep.custom --help`` documents the files.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from fgst.data.dataset import ArrowDataset, Clip
from fgst.data.progress import tracked
from fgst.data.skeleton import Skeleton
from fgst.data.sources import ClipError, printable
from fgst.data.splits import Benchmark
from fgst.data.writer import check_output, write_dataset
from fgst.errors import InputError

OPTIONAL_COLUMNS = ("subject", "camera", "setup", "replication")


def read_joints(content: bytes, skeleton: Skeleton) -> np.ndarray:
    """Parse a clip from the content of an ``.npy`` file.

    Args:
        content: the whole file: numbers of shape ``(T, N, 3)`` or ``(M, T, N, 3)``.
        skeleton: gives N.

    Returns:
        ``(M, T, N, 3)`` float32.

    Raises:
        ClipError: if it is not such an array, or a coordinate is not finite.
    """
    try:
        joints = np.load(io.BytesIO(content), allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, SyntaxError) as error:
        raise ClipError(f"is not an array of numbers ({str(error).splitlines()[0]})") from None
    if not isinstance(joints, np.ndarray):
        raise ClipError("does not contain a single array of numbers")
    joints = _with_persons(joints, skeleton)
    with np.errstate(over="ignore"):
        clip = joints.astype(np.float32)
    if not np.isfinite(clip).all():
        raise ClipError("contains a coordinate that is not a finite number")
    return clip


def encode_joints(joints: np.ndarray, skeleton: Skeleton) -> bytes:
    """Write joints, ``(T, N, 3)``, as an ``.npy`` file."""
    del skeleton
    file = io.BytesIO()
    np.save(file, joints)
    return file.getvalue()


def _with_persons(joints: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """Check type and shape of a clip's array, and add the axis of persons if it is missing: ``(M, T, N, 3)``."""
    N = skeleton.num_joints
    if joints.dtype.kind not in "fiu":
        raise ClipError(f"contains {joints.dtype} values, not numbers")
    if joints.ndim not in (3, 4) or joints.shape[-2:] != (N, 3) or 0 in joints.shape:
        raise ClipError(f"has shape {joints.shape}, not (T, {N}, 3) or (M, T, {N}, 3)")
    return joints if joints.ndim == 4 else joints[None]


def read_skeleton(path: Path) -> Skeleton:
    """Read a skeleton description in JSON.

    Raises:
        InputError: if it cannot be read or is not valid.
    """
    try:
        fields = json.loads(path.read_bytes())
        joints = [str(joint) for joint in fields["joints"]]
        bones = {str(child): str(parent) for child, parent in fields["bones"].items()}
        unknown = sorted({*bones, *bones.values(), str(fields["centre"])} - set(joints))
        if unknown:
            raise InputError(f"{path}: bones or centre name {unknown[0]!r}, which is not one of the joints")
        return Skeleton(
            name=str(fields["name"]),
            joints=tuple(joints),
            parents=tuple(joints.index(bones.get(joint, joint)) for joint in joints),
            centre=joints.index(str(fields["centre"])),
            partitions=tuple(
                tuple(tuple(joints.index(str(joint)) for joint in part) for part in partition)
                for partition in fields.get("partitions", [])
            ),
        )
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        fault = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path}: is not a skeleton description ({fault}); see --help") from None


def read_labels(path: Path) -> list[dict[str, str]]:
    """Read the table of labels in CSV; returns one mapping from column to value per clip.

    Raises:
        InputError: if it cannot be read or a line is not valid; the message names the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = [column.strip() for column in reader.fieldnames or []]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    for column in ("clip_id", "label"):
        if column not in columns:
            raise InputError(f"{path}: has no column {column}; its header is {', '.join(columns) or 'empty'}")
    labels: list[dict[str, str]] = []
    names: set[str] = set()
    for number, row in enumerate(rows, start=2):
        values = {str(k).strip(): (v or "").strip() for k, v in row.items() if isinstance(v, str)}
        if not any(values.values()):
            continue
        clip = values.get("clip_id", "")
        if not clip or not values.get("label"):
            raise InputError(f"{path}, line {number}: has no clip_id or no label")
        if clip in names:
            raise InputError(f"{path}, line {number}: clip {clip} occurs twice")
        for column in OPTIONAL_COLUMNS:
            if not re.fullmatch(r"[0-9]{0,9}", values.get(column, "")):
                raise InputError(f"{path}, line {number}: {column} is {values[column]!r}, not a whole number")
        names.add(clip)
        labels.append(values)
    if not labels:
        raise InputError(f"{path}: lists no clip")
    return labels


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
    skeleton: Path,
    benchmarks: Sequence[Benchmark],
    recipe: str = "ntu",
    name: str | None = None,
    overwrite: bool = False,
) -> ArrowDataset:
    """Prepare a data set from arrays. Classes are numbered in alphabetical order.

    Args:
        clips: a folder of ``.npy`` files, or an ``.npz``.
        out: the new directory.
        labels: the table of labels, in CSV.
        skeleton: the skeleton description, in JSON.
        benchmarks: one or more; the first is the default.
        recipe: the default sampling and augmentation, one of :data:`~fgst.config.RECIPES`.
        name: name of the data set; ``None`` means the name of ``out``.
        overwrite: replace an existing data set at ``out``.

    Raises:
        InputError: if a file is not valid; nothing is written then.
    """
    check_output(out, overwrite=overwrite)
    if clips.is_dir() and out.resolve().is_relative_to(clips.resolve()):
        raise InputError(f"{out}: is inside CLIPS; choose a directory outside of it")
    parsed_skeleton, rows = read_skeleton(skeleton), read_labels(labels)
    _check_benchmarks(benchmarks, rows, labels)
    classes = sorted({row["label"] for row in rows})
    source: dict[str, Any] = {"made_by": "data_prep.custom"}  # _read_clips completes it before it is written
    reading = tracked(_read_clips(clips, rows, parsed_skeleton, classes, source), total=len(rows), description="clips")
    with closing(reading):
        return write_dataset(
            out,
            reading,
            name=name or out.name,
            skeleton=parsed_skeleton,
            classes=classes,
            benchmarks=benchmarks,
            recipe=recipe,
            source=source,
            overwrite=overwrite,
        )


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
    source: Path, rows: Sequence[Mapping[str, str]], skeleton: Skeleton, classes: Sequence[str], origin: dict[str, Any]
) -> Generator[Clip, None, None]:
    """Read the clips in the order of their names; add the digest of all content to ``origin`` at the end."""
    read, content = _array_reader(source), hashlib.sha256()
    for row in sorted(rows, key=lambda row: row["clip_id"]):
        clip_id = row["clip_id"]
        try:
            joints = _with_persons(read(clip_id), skeleton)
        except ClipError as fault:
            raise InputError(f"{printable(f'{source}: {clip_id}')}: {fault}") from None
        content.update(f"{clip_id} {row['label']} ".encode() + np.ascontiguousarray(joints, "<f8").tobytes())
        columns = {column: int(row.get(column) or 0) for column in OPTIONAL_COLUMNS}
        yield Clip(clip_id, classes.index(row["label"]), joints, **columns)
    origin["sha256"] = content.hexdigest()


def _array_reader(source: Path) -> Callable[[str], np.ndarray]:
    """Return a function that reads a clip's array by name from a folder or an ``.npz``."""
    if source.is_dir():

        def from_folder(clip_id: str) -> np.ndarray:
            path = source / f"{clip_id}.npy"
            if path.resolve().parent != source.resolve():
                raise ClipError("is outside the folder of the clips")
            try:
                return np.load(path, allow_pickle=False)
            except FileNotFoundError:
                raise ClipError(f"there is no file {path.name}") from None
            except (OSError, ValueError, EOFError) as error:
                raise ClipError(f"is not an array of numbers ({error})") from None

        return from_folder
    try:
        archive = np.load(source, allow_pickle=False)
        names = set(archive.files)
    except FileNotFoundError:
        raise InputError(f"{source}: no such folder or file") from None
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise InputError(f"{source}: is neither a folder of .npy files nor an .npz ({error})") from None

    def from_archive(clip_id: str) -> np.ndarray:
        if clip_id not in names:
            raise ClipError("there is no array of that name")
        try:
            return np.asarray(archive[clip_id])
        except (OSError, ValueError, EOFError) as error:
            raise ClipError(f"is not an array of numbers ({error})") from None

    return from_archive
