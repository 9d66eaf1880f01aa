"""The Arrow data set: a directory of memory-mapped IPC files and the ``dataset.json`` that describes them.

One row a clip, joints as float32 in ``(M, T, N, 3)`` order: M persons, T frames, N joints, metres where the source
has metres. Files are uncompressed and hold one record batch each, so that every process that opens them maps the
same pages and copies nothing. Nothing in a data set is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from fgst.data.cache import is_remote, local_copy
from fgst.data.skeleton import Skeleton
from fgst.errors import InputError

FORMAT = 1
DESCRIPTION = "dataset.json"
RECIPES = ("nw-ucla", "ntu")
PREPARATIONS = ("nw-ucla", "ntu", "array")
INTEGER_COLUMNS = ("label", "subject", "camera", "setup", "replication", "num_persons", "num_frames")


@dataclass(frozen=True)
class Benchmark:
    """Which clips train and which test, by the value of one column (cross-subject, cross-view, cross-setup).

    Attributes:
        name: e.g. ``x-sub``.
        column: the integer column that decides, e.g. ``subject``.
        train: values of that column whose clips train.
        test: values whose clips test; ``None`` means all others.
    """

    name: str
    column: str
    train: tuple[int, ...]
    test: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Clip:
    """One clip on its way into a data set. ``joints`` is ``(M, T, N, 3)``; 0 stands for "not recorded" in the rest."""

    clip_id: str
    label: int
    joints: np.ndarray = field(repr=False)
    subject: int = 0
    camera: int = 0
    setup: int = 0
    replication: int = 0


@dataclass(frozen=True)
class Splits:
    """Row numbers of the clips of each split; ``val`` is empty when everything trains (protocol "paper")."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    val_subjects: tuple[int, ...]


class ArrowDataset:
    """A data set that is open for reading.

    Attributes:
        path: its directory on this machine.
        location: what it was opened as: that directory, or the URI of which that directory is a copy.
        name, skeleton, classes, benchmarks, recipe, source: what ``dataset.json`` says.
        clip_ids: array of the C clip names.
        columns: ``label``, ``subject``, ``camera``, ``setup``, ``replication``, ``num_persons``, ``num_frames``,
            each an int32 array ``(C,)``.
        digest: SHA-256 over skeleton, classes, benchmarks and the digests of all files: two data sets with the same
            digest hold the same clips and split them in the same way.
    """

    def __init__(self, path: str | os.PathLike[str], *, verify: bool = True) -> None:
        """Open the data set at ``path``, a directory or the URI of one.

        ``verify`` reads every byte once and checks it against its digest.

        Raises:
            InputError: if there is no data set, or a file is missing, truncated, altered or of another format.
        """
        if is_remote(path):
            self.path, self.location = local_copy(str(path)), str(path)
        else:
            self.path = Path(path).absolute()
            self.location = str(self.path)
        description = _read_description(self.path)
        self._description = description
        try:
            self.name = str(description["name"])
            self.recipe = str(description["recipe"])
            self.skeleton = Skeleton.from_dict(description["skeleton"])
            self.classes = tuple(map(str, description["classes"]))
            self.source: dict[str, Any] = dict(description["source"])
            self.benchmarks = tuple(_read_benchmark(b) for b in description["benchmarks"])
            files = [(str(f["name"]), int(f["bytes"]), str(f["sha256"])) for f in description["files"]]
            if self.recipe not in RECIPES:
                raise ValueError(f"recipe is {self.recipe!r}; it is one of {', '.join(RECIPES)}")
            if not files or not self.benchmarks:
                raise ValueError("it has no files or no benchmarks")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.path / DESCRIPTION}: not a data set description ({error!r})") from None
        self.digest = content_digest(self.skeleton, self.classes, self.benchmarks, [digest for _, _, digest in files])

        tables = [self._open_file(*entry, verify=verify) for entry in files]
        N = self.skeleton.num_joints
        self._frames: list[np.ndarray] = []  # of each file, (rows, N, 3): all its clips' frames, one after another
        starts, shards = [], []
        for shard, (file, table) in enumerate(zip(files, tables, strict=True)):
            column = table.column("joints").chunk(0) if table.num_rows else None
            if column is None:
                raise InputError(f"{self.path / file[0]}: holds no clip; prepare the data set again")
            starts.append(column.offsets.to_numpy()[:-1].astype(np.int64))
            shards.append(np.full(table.num_rows, shard, dtype=np.int32))
            self._frames.append(column.values.values.to_numpy(zero_copy_only=True).reshape(-1, N, 3))
        self._starts, self._shards = np.concatenate(starts), np.concatenate(shards)
        whole = pa.concat_tables(tables)
        self.clip_ids: np.ndarray = np.array(whole.column("clip_id").to_pylist(), dtype=object)
        self.columns = {name: whole.column(name).to_numpy().astype(np.int32) for name in INTEGER_COLUMNS}
        labels = self.columns["label"]
        if labels.min() < 0 or labels.max() >= len(self.classes):
            raise InputError(
                f"{self.path / DESCRIPTION}: names {len(self.classes)} classes, but there are clips of class "
                f"{labels.min()} to {labels.max()}; prepare the data set again"
            )

    def _open_file(self, name: str, size: int, sha256: str, *, verify: bool) -> pa.Table:
        path = self.path / name
        if Path(name).name != name:
            raise InputError(f"{self.path / DESCRIPTION}: file name {name!r} leaves the data set's folder")
        if not path.is_file():
            raise InputError(f"{path}: is missing; prepare the data set again")
        found = path.stat().st_size
        if found != size:
            what = "truncated" if found < size else "longer than it was"
            raise InputError(f"{path}: is {what} ({found} bytes instead of {size}); prepare the data set again")
        if verify and file_digest(path) != sha256:
            raise InputError(f"{path}: was altered after it was written (its SHA-256 differs); prepare it again")
        try:
            reader = ipc.open_file(pa.memory_map(str(path)))
            if not reader.schema.equals(arrow_schema(self.skeleton)):
                raise InputError(f"{path}: has other columns than format {FORMAT}; prepare the data set again")
            if reader.num_record_batches != 1:
                raise InputError(f"{path}: holds {reader.num_record_batches} record batches instead of 1")
            return reader.read_all()
        except pa.ArrowException as error:
            raise InputError(f"{path}: is not an Arrow file ({error})") from None

    def __len__(self) -> int:
        return len(self.clip_ids)

    @property
    def preparation(self) -> str:
        """How its clips were made of raw files: "nw-ucla", "ntu", or "array" where they were arrays already."""
        named = str(self.source.get("preparation", ""))
        if named in PREPARATIONS:
            return named
        release = str(self.source.get("release", ""))  # of data sets that do not say it yet
        return "nw-ucla" if release == "all_sqe" else "ntu" if release in ("ntu-60", "ntu-120") else "array"

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def max_persons(self) -> int:
        return int(self.columns["num_persons"].max())

    def clip(self, row: int) -> np.ndarray:
        """The joints of one clip, ``(M, T, N, 3)``: a read-only view of the mapped file."""
        persons, frames = int(self.columns["num_persons"][row]), int(self.columns["num_frames"][row])
        start = int(self._starts[row])
        block = self._frames[self._shards[row]][start : start + persons * frames]
        return block.reshape(persons, frames, *block.shape[1:])

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The frames of several clips one after another, person by person: ``(sum of M·T, N, 3)``, a copy."""
        N = self.skeleton.num_joints
        blocks = [self.clip(int(row)).reshape(-1, N, 3) for row in rows]
        return np.concatenate(blocks) if blocks else np.empty((0, N, 3), np.float32)

    def benchmark(self, name: str = "") -> Benchmark:
        """The benchmark of that name; the data set's first one without a name."""
        for benchmark in self.benchmarks:
            if name in ("", benchmark.name):
                return benchmark
        known = ", ".join(benchmark.name for benchmark in self.benchmarks)
        raise InputError(f"data.benchmark is {name!r}; data set {self.name} has {known}")

    def splits(self, benchmark: str = "", *, validation: float = 0.2, seed: int = 0) -> Splits:
        """Train, validation and test clips of a benchmark.

        The validation split holds all training clips of some training subjects, so that a person who is validated
        on was never trained on; the test clips play no part in it.

        Args:
            benchmark: name, or "" for the data set's first.
            validation: share of the training subjects, at least one of them; 0 for none.
            seed: which subjects.

        Raises:
            InputError: if a split has no clip, or there are too few subjects to hold one out.
        """
        rule = self.benchmark(benchmark)
        column = self.columns[rule.column]
        train = np.isin(column, rule.train)
        test = ~train if rule.test is None else np.isin(column, rule.test) & ~train
        for split, members in (("training", train), ("test", test)):
            if not members.any():
                raise InputError(f"{self.path}: benchmark {rule.name} has no {split} clip")
        val = np.zeros(len(self), dtype=bool)
        held_out: list[int] = []
        if validation > 0:
            subjects = np.unique(self.columns["subject"][train])
            if len(subjects) < 2:
                raise InputError(
                    f"{self.path}: the training clips of {rule.name} come from one subject, so none can be held out "
                    "for validation; train on all of them with --protocol paper"
                )
            count = min(max(1, round(validation * len(subjects))), len(subjects) - 1)
            chosen = np.random.default_rng(seed).permutation(subjects)[:count]
            held_out = sorted(int(subject) for subject in chosen)
            val = train & np.isin(self.columns["subject"], held_out)
        return Splits(
            train=np.flatnonzero(train & ~val),
            val=np.flatnonzero(val),
            test=np.flatnonzero(test),
            val_subjects=tuple(held_out),
        )


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def arrow_schema(skeleton: Skeleton) -> pa.Schema:
    joints = pa.list_(
        pa.field("item", pa.list_(pa.field("item", pa.float32(), nullable=False), skeleton.num_joints * 3), False)
    )
    return pa.schema(
        [
            pa.field("clip_id", pa.string(), False),
            *(pa.field(column, pa.int32(), False) for column in INTEGER_COLUMNS),
            pa.field("joints", joints, False),
        ]
    )


def _read_description(path: Path) -> dict[str, Any]:
    file = path / DESCRIPTION
    if not path.exists():
        raise InputError(
            f"{path}: no such directory; make one with python -m data_prep.nw_ucla, .ntu, .custom or .demo"
        )
    if not path.is_dir():
        raise InputError(f"{path}: is a file; name the directory of a data set")
    if not file.is_file():
        raise InputError(
            f"{path}: is not a data set, it has no {DESCRIPTION}; make one with python -m data_prep.nw_ucla, "
            ".ntu, .custom or .demo"
        )
    try:
        description = json.loads(file.read_bytes())
    except ValueError as error:
        raise InputError(f"{file}: is not JSON ({error})") from None
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT:
        raise InputError(f"{file}: format {found!r}, this version reads format {FORMAT}; prepare the data set again")
    return description


def _read_benchmark(fields: Mapping[str, Any]) -> Benchmark:
    column = str(fields["column"])
    if column not in INTEGER_COLUMNS:
        raise ValueError(f"benchmark column {column!r}")
    test = fields.get("test")
    return Benchmark(
        name=str(fields["name"]),
        column=column,
        train=tuple(map(int, fields["train"])),
        test=None if test is None else tuple(map(int, test)),
    )


def content_digest(
    skeleton: Skeleton, classes: Sequence[str], benchmarks: Sequence[Benchmark], files: Sequence[str]
) -> str:
    rules = [asdict(benchmark) for benchmark in benchmarks]
    content = json.dumps([FORMAT, skeleton.to_dict(), list(classes), rules, list(files)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
