"""Reader of Arrow data sets: a directory of memory-mapped IPC files and the ``dataset.json`` that describes them.

One row is one clip. Joints are float32 in ``(M, T, N, 3)`` order: M persons, T frames, N joints, in metres where the
source is in metres. Files are uncompressed with one record batch each, so all processes that open them share the same
mapped pages and copy nothing. Nothing in a data set is ever unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from fgst.config import DataConfig, ValidationBy, ValidationScheme
from fgst.data.arrow import read_batch
from fgst.data.cache import is_remote, local_copy
from fgst.data.layout import (
    DESCRIPTION,
    FORMAT,
    INTEGER_COLUMNS,
    Description,
    FileEntry,
    arrow_schema,
    content_digest,
    file_digest,
    parse_description,
    split_columns,
)
from fgst.data.normalization import Normalization, read_normalization
from fgst.data.splits import Benchmark, Splits, choose_scheme, make_splits
from fgst.errors import InputError
from fgst.parsing import read_regular_file

_PREPARE = "python -m data_prep.nw_ucla, .ntu, .convert, .custom or .demo"


@dataclass(frozen=True)
class Clip:
    """One clip to be written to a data set.

    Attributes:
        clip_id: unique name.
        label: index of its class.
        joints: ``(M, T, N, 3)``.
        subject, camera, setup, replication: positive numbers; 0 means "not recorded".
        splits: by the name of a benchmark that is a list of clips: "train" or "test"; a clip may be in neither.
    """

    clip_id: str
    label: int
    joints: np.ndarray = field(repr=False)
    subject: int = 0
    camera: int = 0
    setup: int = 0
    replication: int = 0
    splits: Mapping[str, Literal["train", "test"]] = field(default_factory=dict)


class ArrowDataset:
    """A data set opened for reading.

    Attributes:
        path: its directory on this machine.
        location: the directory or URI it was opened from; for a URI, ``path`` is the local copy.
        name, skeleton, classes, benchmarks, recipe, source: as in ``dataset.json``.
        clip_ids: the names of the C clips.
        columns: ``label``, ``subject``, ``camera``, ``setup``, ``replication``, ``num_persons``, ``num_frames``, and
            ``split_NAME`` for each benchmark that is a list of clips; each an int32 array ``(C,)``.
        digest: SHA-256 over skeleton, classes, benchmarks and the digests of all files. Data sets with equal digests
            contain the same clips and split them identically.
        has_description_digest: whether ``dataset.json`` has a digest of its own content, which was checked. Data sets
            of earlier versions do not have it.
    """

    def __init__(self, path: str | os.PathLike[str], *, verify: bool = True) -> None:
        """Open a data set.

        Args:
            path: a directory, or a URI such as ``s3://bucket/name``, which is copied to the local cache first.
            verify: read every byte once and check it against its digest.

        Raises:
            InputError: if there is no data set, or a file is missing, truncated, modified or of another format.
        """
        if is_remote(path):
            self.path, self.location = local_copy(str(path)), str(path)
        else:
            self.path = Path(path).absolute()
            self.location = str(self.path)
        description = _read_description(self.path)
        self.name, self.recipe, self.source = description.name, description.recipe, description.source
        self.skeleton, self.classes = description.skeleton, description.classes
        self.benchmarks, files = description.benchmarks, description.files
        self.has_description_digest = description.sha256 is not None
        self.digest = content_digest(self.skeleton, self.classes, self.benchmarks, [file.sha256 for file in files])
        self._load([self._open_file(file, verify=verify) for file in files])
        if description.num_clips != len(self):
            raise InputError(
                f"{self.path / DESCRIPTION}: lists {description.num_clips} clips, but the files contain "
                f"{len(self)}; prepare the data set again"
            )
        labels = self.columns["label"]
        if labels.min() < 0 or labels.max() >= len(self.classes):
            raise InputError(
                f"{self.path / DESCRIPTION}: lists {len(self.classes)} classes, but clips have labels "
                f"{labels.min()} to {labels.max()}, outside the range of classes; prepare the data set again"
            )

    def _open_file(self, file: FileEntry, *, verify: bool) -> pa.RecordBatch:
        """Map one file after checking its size, its digest if ``verify``, and its structure."""
        path = self.path / file.name
        if not path.is_file():
            raise InputError(f"{path}: is missing; prepare the data set again")
        size = path.stat().st_size
        if size != file.bytes:
            fault = "truncated" if size < file.bytes else "longer than when it was written"
            raise InputError(f"{path}: is {fault} ({size} bytes instead of {file.bytes}); prepare the data set again")
        if verify and file_digest(path) != file.sha256:
            raise InputError(
                f"{path}: was modified after it was written (SHA-256 mismatch); prepare the data set again"
            )
        try:
            with pa.memory_map(str(path)) as mapped:
                batch = read_batch(mapped.read_buffer(), lambda schema: arrow_schema(self.skeleton, self.benchmarks))
            if not batch.num_rows:
                raise ValueError("it contains no clip")
            _check_clips(batch)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: is not an Arrow file of format {FORMAT} ({error}); prepare the data set again"
            ) from None
        return batch

    def _load(self, batches: list[pa.RecordBatch]) -> None:
        """Take the columns from the mapped files, and views of their joints."""
        N = self.skeleton.num_joints
        self._frames: list[np.ndarray] = []  # per file: (rows, N, 3), the frames of all its clips concatenated
        starts, shards = [], []
        for shard, batch in enumerate(batches):
            joints = batch.column("joints")
            starts.append(joints.offsets.to_numpy()[:-1].astype(np.int64))
            shards.append(np.full(batch.num_rows, shard, dtype=np.int32))
            self._frames.append(joints.values.values.to_numpy(zero_copy_only=True).reshape(-1, N, 3))
        self._starts, self._shards = np.concatenate(starts), np.concatenate(shards)
        clips = pa.Table.from_batches(batches)
        self.clip_ids: np.ndarray = np.array(clips.column("clip_id").to_pylist(), dtype=object)
        self.columns = {
            name: clips.column(name).to_numpy().astype(np.int32)
            for name in (*INTEGER_COLUMNS, *split_columns(self.benchmarks))
        }

    def __len__(self) -> int:
        return len(self.clip_ids)

    @property
    def preparation(self) -> str:
        """The raw format its clips were read from, see :func:`fgst.data.formats.find_format`."""
        if named := str(self.source.get("preparation", "")):
            return named
        release = str(self.source.get("release", ""))  # data sets written before the preparation was recorded
        return "nw-ucla" if release == "all_sqe" else "ntu" if release in ("ntu-60", "ntu-120") else "array"

    @property
    def normalization(self) -> Normalization | None:
        """How raw clips were normalized; ``None`` if the preparation does all of it, or changes nothing."""
        return read_normalization(self.source.get("normalization"))

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def max_persons(self) -> int:
        """The largest number of persons in a clip."""
        return int(self.columns["num_persons"].max())

    def clip(self, row: int) -> np.ndarray:
        """Return the joints of one clip, ``(M, T, N, 3)``: a read-only view of the mapped file."""
        persons, frames = int(self.columns["num_persons"][row]), int(self.columns["num_frames"][row])
        start = int(self._starts[row])
        block = self._frames[self._shards[row]][start : start + persons * frames]
        return block.reshape(persons, frames, *block.shape[1:])

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return a copy of the frames of several clips, concatenated person by person: ``(sum of M·T, N, 3)``."""
        N = self.skeleton.num_joints
        blocks = [self.clip(int(row)).reshape(-1, N, 3) for row in rows]
        return np.concatenate(blocks) if blocks else np.empty((0, N, 3), np.float32)

    def benchmark(self, name: str = "") -> Benchmark:
        """Return a benchmark by name; the data set's first one for the empty name.

        Raises:
            InputError: if there is no such benchmark.
        """
        for benchmark in self.benchmarks:
            if name in ("", benchmark.name):
                return benchmark
        known = ", ".join(benchmark.name for benchmark in self.benchmarks)
        raise InputError(f"data.benchmark is {name!r}; data set {self.name} has {known}")

    def splits(
        self,
        benchmark: str = "",
        *,
        validation: float = 0.2,
        by: ValidationBy = "auto",
        seed: int = 0,
        folds: int = 0,
        fold: int = 0,
    ) -> Splits:
        """Return the train, validation and test clips of a benchmark; see :func:`fgst.data.splits.make_splits`.

        Args:
            benchmark: its name, or "" for the data set's first.
            validation: fraction of the training side to hold out for validation; 0 holds out none.
            by: what is held out; "auto" is what the benchmark asks, see :meth:`validation_scheme`.
            seed: selects what is held out.
            folds: number of folds that the training side is divided into; 0 holds out the fraction instead.
            fold: the fold that is held out, from 0.

        Raises:
            InputError: if a split is empty, or there is too little to hold out.
        """
        rule = self.benchmark(benchmark)
        try:
            return make_splits(
                self.clip_ids, self.columns, rule, validation=validation, by=by, seed=seed, folds=folds, fold=fold
            )
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None

    def splits_for(self, settings: DataConfig) -> Splits:
        """Return the train, validation and test clips of a trial with these settings.

        Raises:
            InputError: if a split is empty, or there is too little to hold out.
        """
        return self.splits(
            settings.benchmark or "",
            validation=settings.validation if settings.protocol == "validation" else 0,
            by=settings.validation_by,
            seed=settings.validation_seed,
            folds=settings.folds,
            fold=settings.fold,
        )

    def validation_scheme(self, benchmark: str = "") -> ValidationScheme:
        """Return the scheme that "auto" stands for; see :func:`fgst.data.splits.choose_scheme`.

        Raises:
            InputError: if there is no such benchmark.
        """
        return choose_scheme(self.columns, self.benchmark(benchmark))


def open_recorded(location: str, owner: str) -> ArrowDataset:
    """Open the data set that a run has recorded.

    Args:
        location: path or URI.
        owner: the run, for the message.

    Raises:
        InputError: if it cannot be opened; if it is no longer there, the message names ``--dataset``.
    """
    if not is_remote(location) and not Path(location).exists():
        raise InputError(
            f"{location}: the data set of {owner} is no longer there; name its new location with --dataset"
        )
    return ArrowDataset(location)


def _check_clips(batch: pa.RecordBatch) -> None:
    """Check what Arrow does not know: that each clip has its persons and frames, and that no number is negative.

    Raises:
        ValueError: if the columns of a clip contradict each other.
    """
    numbers = {name: batch.column(name).to_numpy().astype(np.int64) for name in INTEGER_COLUMNS}
    for name, values in numbers.items():
        if values.min() < (name in ("num_persons", "num_frames")):
            raise ValueError(f"{name} of clip {int(values.argmin())} is {values.min()}")
    joints = batch.column("joints")
    offsets = joints.offsets.to_numpy().astype(np.int64)
    wrong = np.flatnonzero(np.diff(offsets) != numbers["num_persons"] * numbers["num_frames"])
    if len(wrong):
        raise ValueError(f"clip {wrong[0]} does not have the frames that num_persons and num_frames promise")
    frames, width = joints.values, joints.values.type.list_size
    if len(frames) < offsets[-1] or len(frames.values) != width * len(frames):
        raise ValueError("the joints are fewer or more than the frames")


def _read_description(path: Path) -> Description:
    file = path / DESCRIPTION
    if not path.exists():
        raise InputError(f"{path}: no such directory; create a data set with {_PREPARE}")
    if not path.is_dir():
        raise InputError(f"{path}: is a file; give the directory of a data set")
    if not os.path.lexists(file):
        raise InputError(f"{path}: is not a data set (no {DESCRIPTION}); create one with {_PREPARE}")
    try:
        content = read_regular_file(file)
    except ValueError as error:
        raise InputError(f"{file}: {error}") from None
    return parse_description(content, path)
