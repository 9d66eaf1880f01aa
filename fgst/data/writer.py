"""Atomic writer of Arrow data sets, in files of bounded size."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fgst import durable
from fgst.config import RECIPES
from fgst.data.arrow import write_batch
from fgst.data.dataset import ArrowDataset, Clip
from fgst.data.layout import (
    DESCRIPTION,
    FORMAT,
    IN_NEITHER,
    IN_TEST,
    IN_TRAIN,
    INTEGER_COLUMNS,
    SPLIT_PREFIX,
    FileEntry,
    arrow_schema,
    is_column,
    split_columns,
)
from fgst.data.skeleton import Skeleton
from fgst.data.sources import ClipError
from fgst.data.splits import Benchmark
from fgst.errors import InputError
from fgst.integrity import with_digest

# Names of the files in a data set's directory.
_FILE_NAME = re.compile(r"clips-\d{5,}\.arrow|report\.(json|png)|" + re.escape(DESCRIPTION))
MAX_NUMBER = 2**31 - 1  # of a subject, camera, setup or replication
SHARD_BYTES = 256 * 1024 * 1024
_LOCKED_AFTER = 60.0  # seconds


def write_dataset(
    out: str | os.PathLike[str],
    clips: Iterable[Clip],
    *,
    name: str,
    skeleton: Skeleton,
    classes: Sequence[str],
    benchmarks: Sequence[Benchmark],
    recipe: str,
    source: Mapping[str, Any],
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> ArrowDataset:
    """Write a data set completely or not at all: into a folder next to ``out``, which is renamed once it is synced.

    Args:
        out: the new directory.
        clips: consumed one by one; at most ``shard_bytes`` of joints are in memory at a time.
        name: name of the data set.
        skeleton: skeleton of all clips.
        classes: class names by label.
        benchmarks: one or more; the first is the default.
        recipe: the default sampling and augmentation, one of :data:`~fgst.config.RECIPES`.
        source: JSON values that record where the clips come from.
        overwrite: replace an existing data set at ``out``; a folder with any other content is never replaced.
        shard_bytes: limit of joints per file; only a single larger clip exceeds it.

    Returns:
        The new data set, opened.

    Raises:
        InputError: if ``out`` exists or cannot be written, or a clip does not fit the skeleton or the classes, has a
            number out of range, or repeats a name.
        ValueError: if the recipe or a benchmark's column is unknown.
    """
    _check_metadata(recipe, benchmarks)
    out = Path(out)
    check_output(out, overwrite=overwrite)
    with _temporary_folder(out) as temporary:
        files: list[FileEntry] = []
        count = 0
        for shard in _shards(_checked(clips, skeleton, len(classes)), shard_bytes):
            path = temporary / f"clips-{len(files):05d}.arrow"
            with writing_to(out):  # not around the loop: an OSError of ``clips`` is about their source
                _write_file(path, shard, skeleton, benchmarks)
            files.append(FileEntry.of(path))
            count += len(shard)
            del shard  # free its clips before the next shard is collected
        if not files:
            raise InputError(f"{out}: there is no clip to write")
        with writing_to(out):
            write_description(
                temporary,
                files,
                num_clips=count,
                name=name,
                skeleton=skeleton,
                classes=classes,
                benchmarks=benchmarks,
                recipe=recipe,
                source=source,
            )
            durable.publish(temporary, out.absolute())
    return ArrowDataset(out, verify=False)


@contextmanager
def _temporary_folder(out: Path) -> Iterator[Path]:
    """A new folder next to ``out``, for its content; removed if the context is left by an exception.

    Its process holds a lock on it. A folder without one was left by a process that was killed, and is removed.
    """
    with writing_to(out):
        out = out.absolute()
        durable.make_folder(out.parent)
        for leftover in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
            # A folder that was created just now may not be locked yet.
            if time.time() - leftover.stat().st_mtime > _LOCKED_AFTER and (lock := _lock(leftover)) is not None:
                shutil.rmtree(leftover, ignore_errors=True)
                os.close(lock)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
        lock = _lock(folder)
        folder.chmod(0o755)  # mkdtemp's 0700 would hide it from other users
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder until the descriptor that is returned is closed; ``None`` if another process has locked it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked, or on a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def write_shard(path: Path, clips: Iterable[Clip], skeleton: Skeleton, num_classes: int) -> FileEntry:
    """Write one file of a data set that is assembled from files written separately.

    Returns:
        Its entry for the description.

    Raises:
        InputError: if a clip does not fit the skeleton or the classes.
    """
    _write_file(path, list(_checked(clips, skeleton, num_classes)), skeleton)
    return FileEntry.of(path)


def write_description(
    folder: Path,
    files: Sequence[FileEntry],
    *,
    num_clips: int,
    name: str,
    skeleton: Skeleton,
    classes: Sequence[str],
    benchmarks: Sequence[Benchmark],
    recipe: str,
    source: Mapping[str, Any],
) -> None:
    """Write ``dataset.json`` into a folder that has the files of a data set; see :func:`write_dataset`."""
    _check_metadata(recipe, benchmarks)
    description = {
        "format": FORMAT,
        "name": name,
        "recipe": recipe,
        "num_clips": num_clips,
        "classes": list(classes),
        "benchmarks": [asdict(benchmark) for benchmark in benchmarks],
        "files": [asdict(file) for file in files],
        "source": dict(source),
        "skeleton": skeleton.to_dict(),
    }
    (folder / DESCRIPTION).write_text(json.dumps(with_digest(description), indent=1) + "\n")


def _check_metadata(recipe: str, benchmarks: Sequence[Benchmark]) -> None:
    """Raise ValueError if the reader would reject the recipe or the benchmarks."""
    if recipe not in RECIPES:
        raise ValueError(f"recipe is {recipe!r}; choose one of {', '.join(RECIPES)}")
    if not benchmarks or not all(is_column(benchmark.column) for benchmark in benchmarks):
        raise ValueError(
            f"benchmarks are {benchmarks!r}; give at least one, each a list of clips or by one of "
            f"{', '.join(INTEGER_COLUMNS)}"
        )


def check_output(out: Path, *, overwrite: bool) -> None:
    """Check that a data set can be written to ``out``, before any work is done.

    Raises:
        InputError: if it cannot be written, or exists and must not be replaced.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose a directory for the data set")
    if out.is_dir() and any(out.iterdir()):
        if not (out / DESCRIPTION).is_file():
            raise InputError(f"{out}: is not empty and not a data set; choose another directory")
        others = sorted(e.name for e in out.iterdir() if not _FILE_NAME.fullmatch(e.name))
        if others:
            raise InputError(
                f"{out}: contains {others[0]} in addition to a data set; move it or choose another directory"
            )
        if not overwrite:
            raise InputError(f"{out}: already contains a data set; pass --overwrite to replace it")
    existing = out
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing if existing != out else out.parent, os.W_OK):
        raise InputError(f"{out}: cannot be written; check the permissions of {existing}")


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """Turn an OSError inside the context, such as a full disk, into an :class:`InputError` that names ``out``."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space, or choose another location" if full else "choose another location"
        raise InputError(f"{out}: cannot be written ({error.strerror or error}); {remedy}") from None


def check_joints(joints: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """Check the joints of one clip.

    Returns:
        The joints as float32, ``(M, T, N, 3)``.

    Raises:
        ClipError: if they have another shape, or a coordinate is not a finite 32-bit number.
    """
    shape = joints.shape
    if len(shape) != 4 or shape[2:] != (skeleton.num_joints, 3) or 0 in shape:
        raise ClipError(f"joints have shape {shape}, not (persons, frames, {skeleton.num_joints}, 3)")
    with np.errstate(over="ignore"):  # values beyond float32 become infinite and are caught below
        joints = np.asarray(joints, np.float32)
    if not np.isfinite(joints).all():
        raise ClipError("a coordinate is not a finite 32-bit number")
    return joints


def _checked(clips: Iterable[Clip], skeleton: Skeleton, num_classes: int) -> Iterator[Clip]:
    seen: set[str] = set()
    for clip in clips:
        try:
            joints = check_joints(clip.joints, skeleton)
        except ClipError as fault:
            raise InputError(f"clip {clip.clip_id}: {fault}") from None
        for column in ("subject", "camera", "setup", "replication"):
            number = getattr(clip, column)
            if not 0 <= number <= MAX_NUMBER:
                raise InputError(
                    f"clip {clip.clip_id}: {column} is {number}; it must be 1 to {MAX_NUMBER}, or 0 if not recorded"
                )
        if not 0 <= clip.label < num_classes:
            raise InputError(f"clip {clip.clip_id}: label {clip.label} is outside 0 to {num_classes - 1}")
        if clip.clip_id in seen:
            raise InputError(f"clip {clip.clip_id}: occurs twice")
        seen.add(clip.clip_id)
        yield replace(clip, joints=joints)


def _shards(clips: Iterable[Clip], shard_bytes: int) -> Iterator[list[Clip]]:
    shard: list[Clip] = []
    total = 0
    for clip in clips:
        size = clip.joints.size * 4
        if shard and total + size > shard_bytes:
            yield shard
            shard, total = [], 0
        shard.append(clip)
        total += size
    if shard:
        yield shard


def _write_file(path: Path, clips: Sequence[Clip], skeleton: Skeleton, benchmarks: Sequence[Benchmark] = ()) -> None:
    schema = arrow_schema(skeleton, benchmarks)
    rows = np.cumsum([0, *(clip.joints.shape[0] * clip.joints.shape[1] for clip in clips)], dtype=np.int32)
    values = np.concatenate([np.asarray(clip.joints, np.float32).reshape(-1) for clip in clips])
    frame_type = schema.field("joints").type.value_type
    frames = pa.FixedSizeListArray.from_arrays(pa.array(values), type=frame_type)
    joints = pa.ListArray.from_arrays(pa.array(rows), frames, type=schema.field("joints").type)
    integers = {
        "label": [clip.label for clip in clips],
        "subject": [clip.subject for clip in clips],
        "camera": [clip.camera for clip in clips],
        "setup": [clip.setup for clip in clips],
        "replication": [clip.replication for clip in clips],
        "num_persons": [clip.joints.shape[0] for clip in clips],
        "num_frames": [clip.joints.shape[1] for clip in clips],
    }
    columns = [
        pa.array([clip.clip_id for clip in clips], pa.string()),
        *(pa.array(integers[column], pa.int32()) for column in INTEGER_COLUMNS),
        *(pa.array([_membership(clip, column) for clip in clips], pa.int32()) for column in split_columns(benchmarks)),
        joints,
    ]
    write_batch(str(path), pa.record_batch(columns, schema=schema))


def _membership(clip: Clip, column: str) -> int:
    split = clip.splits.get(column.removeprefix(SPLIT_PREFIX))
    return IN_NEITHER if split is None else IN_TRAIN if split == "train" else IN_TEST
