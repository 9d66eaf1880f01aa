"""Export of data sets in the layouts of CTR-GCN (``.npz``) and pyskl (``.pkl``), for other projects' code.

Coordinates are those of the data set. Exported files also contain what their layouts lack, where readers of the layouts
ignore it; with it, the readers in :mod:`fgst.data.formats` restore the same clips.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from numpy.lib import format as npy

from fgst import durable
from fgst.data.clip_source import Membership
from fgst.data.dataset import ArrowDataset
from fgst.data.formats import ctr_gcn, find_format, pyskl
from fgst.data.formats.source_labels import ExportedFrom
from fgst.data.layout import SPLIT_PREFIX
from fgst.data.normalization import UNCHANGED
from fgst.data.pickles import write_pickle
from fgst.data.progress import tracked
from fgst.data.skeletons import NTU_25
from fgst.data.splits import Benchmark
from fgst.data.writer import writing_to
from fgst.errors import InputError
from fgst.parsing import printable

NTU_JOINTS, MAX_PERSONS = 25, 2  # of CTR-GCN's code
_COLUMNS = ("subject", "camera", "setup", "replication")


def export(
    dataset: ArrowDataset,
    out: Path,
    *,
    benchmark: str | None = None,
    frames: int | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Export a data set to a file, completely or not at all; at most one clip is in memory.

    Args:
        dataset: the data set.
        out: the new file; its suffix, ``.npz`` or ``.pkl``, determines the layout.
        benchmark: the benchmark that divides the clips of an ``.npz`` (default: the first), or the only one in a
            ``.pkl`` (default: all).
        frames: frames of the arrays in an ``.npz``; by default those of the longest clip.
        overwrite: replace an existing file.

    Returns:
        Remarks about what the layout cannot hold.

    Raises:
        InputError: if ``out`` exists or cannot be written, or the data set does not fit the layout.
    """
    location, suffix = printable(str(out)), out.suffix.lower()
    if suffix not in (".npz", ".pkl"):
        raise InputError(f"{location}: must end in .npz (CTR-GCN) or .pkl (pyskl)")
    if out.is_dir():
        raise InputError(f"{location}: is a folder; choose a file")
    if out.exists() and not overwrite:
        raise InputError(f"{location}: exists; pass --overwrite to replace it")
    if frames is not None and suffix == ".pkl":
        raise InputError("--frames: clips in a .pkl keep their lengths; leave the option out")
    with writing_to(out):
        durable.make_folder(out.absolute().parent)
        with durable.replacing(out.absolute()) as temporary:
            if suffix == ".npz":
                return _write_npz(dataset, temporary, dataset.benchmark(benchmark or ""), frames)
            rules = dataset.benchmarks if benchmark is None else (dataset.benchmark(benchmark),)
            return _write_pkl(dataset, temporary, rules)


def _origin(dataset: ArrowDataset, benchmarks: Iterable[Benchmark]) -> ExportedFrom:
    """Return what a file says about its data set."""
    preparation = dataset.preparation
    if dataset.normalization not in (None, UNCHANGED) and not find_format(preparation).is_normalized:
        preparation = "array"  # raw clips would have to be normalized as the exported ones were
    return ExportedFrom(
        dataset.name, dataset.recipe, preparation, dataset.skeleton, list(dataset.classes), list(benchmarks)
    )


# CTR-GCN


def _write_npz(dataset: ArrowDataset, path: Path, benchmark: Benchmark, frames: int | None) -> list[str]:
    splits = dataset.splits(benchmark.name, validation=0)
    rows: dict[Membership, np.ndarray] = {"train": splits.train, "test": splits.test}
    used = np.concatenate(list(rows.values()))
    lengths, persons = dataset.columns["num_frames"][used], dataset.columns["num_persons"][used]
    T = int(lengths.max()) if frames is None else frames
    M = MAX_PERSONS if dataset.skeleton.num_joints == NTU_JOINTS else min(MAX_PERSONS, int(persons.max()))
    # A list of clips is in the file only if it is the one that divides them.
    rules = [rule for rule in dataset.benchmarks if rule == benchmark or not rule.column.startswith(SPLIT_PREFIX)]
    rules.sort(key=lambda rule: rule != benchmark)
    description: dict[str, Any] = {
        "dataset": msgspec.to_builtins(_origin(dataset, rules)),
        "benchmark": benchmark.name,
        **{split: [_describe(dataset, int(row), M, T) for row in members] for split, members in rows.items()},
    }
    with zipfile.ZipFile(path, "w") as archive:
        for split, members in rows.items():
            with archive.open(f"x_{split}.npy", "w", force_zip64=True) as file:
                _write_header(file, "<f4", (len(members), T, M * dataset.skeleton.num_joints * 3))
                with closing(tracked(iter(members), len(members), f"{split} clips")) as counted:
                    for row in counted:
                        file.write(_padded(dataset.clip(int(row)), M, T))
            with archive.open(f"y_{split}.npy", "w", force_zip64=True) as file:
                _write_header(file, "<f8", (len(members), dataset.num_classes))
                for row in members:
                    one_hot = np.zeros(dataset.num_classes)
                    one_hot[dataset.columns["label"][row]] = 1
                    file.write(one_hot.tobytes())
        archive.writestr(ctr_gcn.DESCRIPTION, json.dumps(description))
    remarks = [
        (int((lengths > T).sum()), f"clips are longer than {T} frames: the rest is left out"),
        (int((persons > M).sum()), f"clips have more than {M} persons: the others are left out"),
        (len(dataset) - len(used), f"clips are in neither split of {benchmark.name}: they are left out"),
    ]
    notes = [f"{count:,} {what}" for count, what in remarks if count]
    if dataset.skeleton.num_joints != NTU_JOINTS:
        notes.append(f"CTR-GCN's code reads {NTU_JOINTS} joints; these clips have {dataset.skeleton.num_joints}")
    elif dataset.skeleton.joints != NTU_25.joints:
        notes.append(f"CTR-GCN's graph is that of {NTU_25.name}; these clips have skeleton {dataset.skeleton.name}")
    if len(rules) < len(dataset.benchmarks):
        notes.append(f"only the list {benchmark.name} is in the file")
    return notes


def _describe(dataset: ArrowDataset, row: int, persons: int, frames: int) -> list[Any]:
    """Return the values of :class:`~fgst.data.formats.ctr_gcn.ExportedClip`."""
    sizes = (("num_persons", persons), ("num_frames", frames))
    return [
        dataset.clip_ids[row],
        *(min(int(dataset.columns[column][row]), limit) for column, limit in sizes),
        *(int(dataset.columns[column][row]) for column in _COLUMNS),
    ]


def _write_header(file: IO[bytes], dtype: str, shape: tuple[int, ...]) -> None:
    npy.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})


def _padded(joints: np.ndarray, persons: int, frames: int) -> bytes:
    """Return a clip, ``(M, T, N, 3)``, as frames of persons, filled with zeros."""
    joints = joints[:persons, :frames].transpose(1, 0, 2, 3)
    padded = np.zeros((frames, persons, *joints.shape[2:]), np.float32)
    padded[: joints.shape[0], : joints.shape[1]] = joints
    return padded.tobytes()


# pyskl


def _write_pkl(dataset: ArrowDataset, path: Path, benchmarks: Iterable[Benchmark]) -> list[str]:
    notes, lists, rules = [], dict[str, list[str]](), list[Benchmark]()
    for rule in benchmarks:
        try:
            splits = dataset.splits(rule.name, validation=0)
        except InputError:
            notes.append(f"{rule.name} is left out: one of its splits has no clip")
            continue
        keys = pyskl.list_keys(rule.name)
        lists[keys["train"]] = [str(name) for name in dataset.clip_ids[splits.train]]
        lists[keys["test"]] = [str(name) for name in dataset.clip_ids[splits.test]]
        rules.append(rule)
    if not rules:
        raise InputError(f"{dataset.path}: has no benchmark with clips in both splits")
    if is_planar := _is_planar(dataset):
        notes.append("keypoint has two coordinates in the units of the data set, not pixels: omit PreNormalize2D")
    clips = _annotations(dataset, is_planar=is_planar)
    with closing(tracked(clips, len(dataset), "clips")) as annotations, path.open("wb") as file:
        content = {
            "split": lists,
            "annotations": annotations,
            pyskl.DESCRIPTION: msgspec.to_builtins(_origin(dataset, rules)),
        }
        write_pickle(file, content)
    return notes


def _keypoints(joints: np.ndarray, *, is_planar: bool) -> dict[str, np.ndarray]:
    """Return the arrays of an annotation; clips in the plane have two coordinates and confidences."""
    if not is_planar:
        return {"keypoint": joints}
    return {"keypoint": joints[..., :2], "keypoint_score": np.asarray(joints.any(axis=-1), np.float32)}


def _is_planar(dataset: ArrowDataset) -> bool:
    """Return whether z is 0 in all clips."""
    return not any(dataset.clip(row)[..., 2].any() for row in range(len(dataset)))


def _annotations(dataset: ArrowDataset, *, is_planar: bool) -> Iterator[dict[str, Any]]:
    for row, name in enumerate(dataset.clip_ids):
        joints = dataset.clip(row)
        yield {
            "frame_dir": str(name),
            "label": int(dataset.columns["label"][row]),
            "total_frames": joints.shape[1],
            **_keypoints(joints, is_planar=is_planar),
            **{column: int(dataset.columns[column][row]) for column in _COLUMNS},
        }
