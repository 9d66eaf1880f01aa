"""Writing an Arrow data set: all of it or nothing, in files of bounded size."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from fgst.data.dataset import (
    DESCRIPTION,
    FORMAT,
    INTEGER_COLUMNS,
    RECIPES,
    ArrowDataset,
    Benchmark,
    Clip,
    arrow_schema,
    file_digest,
)
from fgst.data.skeleton import Skeleton
from fgst.errors import InputError

# What a data set's folder holds.
_FILE_NAME = re.compile(r"clips-\d{5,}\.arrow|report\.(json|png)|" + re.escape(DESCRIPTION))
SHARD_BYTES = 256 * 1024 * 1024


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
    """Write a data set, all of it or nothing: into a temporary folder beside ``out``, renamed when complete.

    Args:
        out: the new directory.
        clips: consumed one by one; at most ``shard_bytes`` of joints are held in memory.
        recipe: how its clips become batches by default, one of :data:`RECIPES`.
        source: where the clips come from (JSON values), for the record.
        overwrite: replace a data set that is at ``out`` already; anything else there is never touched.
        shard_bytes: joints per file, at most, unless one clip alone is larger.

    Raises:
        InputError: if ``out`` is taken, or a clip does not fit the skeleton, the classes or the ones before it.
    """
    check_rules(recipe, benchmarks)
    out = Path(out).absolute()
    check_output(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp's 0700 would lock colleagues out
        files: list[dict[str, Any]] = []
        count = 0
        for shard in _shards(_checked(clips, skeleton, len(classes)), shard_bytes):
            path = temporary / f"clips-{len(files):05d}.arrow"
            _write_file(path, shard, skeleton)
            files.append(_described(path))
            count += len(shard)
            del shard  # or its clips would stay in memory while the next ones gather
        if not files:
            raise InputError(f"{out}: there is no clip to write")
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
        move_into_place(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return ArrowDataset(out, verify=False)


def write_shard(path: Path, clips: Iterable[Clip], skeleton: Skeleton, num_classes: int) -> dict[str, Any]:
    """Write one file of a data set that is put together from several; returns its entry for the description.

    Raises:
        InputError: if a clip does not fit the skeleton or the classes.
    """
    _write_file(path, list(_checked(clips, skeleton, num_classes)), skeleton)
    return _described(path)


def _described(path: Path) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": file_digest(path)}


def write_description(
    folder: Path,
    files: Sequence[Mapping[str, Any]],
    *,
    num_clips: int,
    name: str,
    skeleton: Skeleton,
    classes: Sequence[str],
    benchmarks: Sequence[Benchmark],
    recipe: str,
    source: Mapping[str, Any],
) -> None:
    """Make a folder with the files of a data set a data set. The arguments are those of :func:`write_dataset`."""
    check_rules(recipe, benchmarks)
    description = {
        "format": FORMAT,
        "name": name,
        "recipe": recipe,
        "num_clips": num_clips,
        "classes": list(classes),
        "benchmarks": [asdict(benchmark) for benchmark in benchmarks],
        "files": [dict(file) for file in files],
        "source": dict(source),
        "skeleton": skeleton.to_dict(),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")


def check_rules(recipe: str, benchmarks: Sequence[Benchmark]) -> None:
    """Refuse what no reader would understand.

    Raises:
        ValueError: if there is no such recipe or column, or no benchmark at all.
    """
    if recipe not in RECIPES:
        raise ValueError(f"recipe is {recipe!r}; it is one of {', '.join(RECIPES)}")
    if not benchmarks or any(benchmark.column not in INTEGER_COLUMNS for benchmark in benchmarks):
        raise ValueError(f"benchmarks are {benchmarks!r}; there is at least one, each by {', '.join(INTEGER_COLUMNS)}")


def check_output(out: Path, *, overwrite: bool) -> None:
    """Refuse a target that cannot be written or must not be replaced, before any work is done.

    Raises:
        InputError: naming the target and the way out.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name a directory for the data set")
    if out.is_dir() and any(out.iterdir()):
        if not (out / DESCRIPTION).is_file():
            raise InputError(f"{out}: is not empty and not a data set; name another directory")
        others = sorted(e.name for e in out.iterdir() if not _FILE_NAME.fullmatch(e.name))
        if others:
            raise InputError(f"{out}: holds {others[0]} besides a data set; move that away or name another directory")
        if not overwrite:
            raise InputError(f"{out}: holds a data set already; --overwrite replaces it")
    existing = out
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing if existing != out else out.parent, os.W_OK):
        raise InputError(f"{out}: cannot be written (see the permissions of {existing})")


def _checked(clips: Iterable[Clip], skeleton: Skeleton, num_classes: int) -> Iterator[Clip]:
    seen: set[str] = set()
    for clip in clips:
        shape = clip.joints.shape
        if len(shape) != 4 or shape[2:] != (skeleton.num_joints, 3) or 0 in shape:
            raise InputError(
                f"clip {clip.clip_id}: joints have shape {shape}, not (persons, frames, {skeleton.num_joints}, 3)"
            )
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is found
            joints = np.asarray(clip.joints, np.float32)
        if not np.isfinite(joints).all():
            raise InputError(f"clip {clip.clip_id}: a coordinate is not a finite number of 32 bits")
        if not 0 <= clip.label < num_classes:
            raise InputError(f"clip {clip.clip_id}: label {clip.label} is outside 0 to {num_classes - 1}")
        if clip.clip_id in seen:
            raise InputError(f"clip {clip.clip_id}: occurs twice")
        seen.add(clip.clip_id)
        yield replace(clip, joints=joints)


def _shards(clips: Iterable[Clip], shard_bytes: int) -> Iterator[list[Clip]]:
    shard: list[Clip] = []
    held = 0
    for clip in clips:
        size = clip.joints.size * 4
        if shard and held + size > shard_bytes:
            yield shard
            shard, held = [], 0
        shard.append(clip)
        held += size
    if shard:
        yield shard


def _write_file(path: Path, clips: Sequence[Clip], skeleton: Skeleton) -> None:
    schema = arrow_schema(skeleton)
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
        joints,
    ]
    with ipc.new_file(str(path), schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))


def move_into_place(temporary: Path, out: Path) -> None:
    """Rename a complete data set to its place; an old one steps aside first, and comes back if the rename fails."""
    if not out.exists():
        temporary.rename(out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
    out.rename(aside / "dataset")
    try:
        temporary.rename(out)
    except BaseException:
        (aside / "dataset").rename(out)  # should even that fail, the old data set stays where it is now
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)
