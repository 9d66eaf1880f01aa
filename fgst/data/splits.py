"""Benchmarks (cross-subject, cross-view, cross-setup) and the train, validation and test splits they define.

Validation clips are training clips that are held out. They should ask what the benchmark asks with its test clips: are
unseen subjects, cameras or setups recognized? A *scheme* says what is held out:

- ``subject``, ``camera``, ``setup``: all training clips of some subjects, cameras or setups.
- ``subject-camera``: of some subjects, the clips of one training camera each; their other cameras are trained on.
- ``clip``: some recordings of each class. A recording is held out with the clips of all its cameras, or not at all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fgst.config import ValidationBy, ValidationScheme
from fgst.errors import InputError
from fgst.parsing import Name, Number

# What "auto" holds out where a benchmark trains on two cameras: one whole camera would be half of the clips.
TWO_CAMERAS: ValidationScheme = "subject-camera"
_MAX_LISTED = 10  # groups that a description lists by number


@dataclass(frozen=True)
class Benchmark:
    """A rule that assigns clips to the training and test splits by the value of one column.

    Attributes:
        name: e.g. ``x-sub``.
        column: the integer column that determines the split, e.g. ``subject``.
        train: values of that column whose clips are for training.
        test: values whose clips are for testing; ``None`` means all others.
    """

    name: Name
    column: str
    train: tuple[Number, ...]
    test: tuple[Number, ...] | None = None


@dataclass(frozen=True)
class Splits:
    """Row numbers of the clips in each split.

    Attributes:
        train, val, test: ascending row numbers; ``val`` is empty under the "paper" protocol, which trains on all
            training clips.
        val_groups: what is held out for validation, as values of the scheme's columns, e.g. ``((5,), (7,))`` for two
            subjects and ``((5, 1), (7, 2))`` for a camera of each; empty for the scheme ``clip``.
        held_out: the same in words, with the number of clips; empty if nothing is held out.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    val_groups: tuple[tuple[int, ...], ...] = ()
    held_out: str = ""


def make_splits(
    clip_ids: Sequence[str] | np.ndarray,
    columns: Mapping[str, np.ndarray],
    benchmark: Benchmark,
    *,
    validation: float = 0.2,
    by: ValidationBy = "auto",
    seed: int = 0,
    folds: int = 0,
    fold: int = 0,
) -> Splits:
    """Split clips into train, validation and test. Test clips are never used for validation.

    The result depends on the clips, not on the order of their rows.

    Args:
        clip_ids: unique names of the C clips.
        columns: integer columns of the data set, each ``(C,)``.
        benchmark: the rule that separates training from test clips.
        validation: fraction of the training side to hold out, at least one group: of its subjects, cameras, setups,
            pairs of subject and camera, or recordings. 0 holds out none.
        by: the scheme; "auto" is replaced by :func:`choose_scheme`.
        seed: selects what is held out.
        folds: number of folds; 0 for none. The groups are dealt to the folds, and ``fold`` is held out instead of the
            fraction ``validation``.
        fold: number of the fold, from 0.

    Raises:
        InputError: if a split is empty, or there is too little to hold out.
    """
    train, test = _sides(columns, benchmark)
    if not validation:
        return Splits(np.flatnonzero(train), np.empty(0, np.int64), np.flatnonzero(test))
    scheme = choose_scheme(columns, benchmark) if by == "auto" else by
    rows = np.flatnonzero(train)
    side = _TrainingSide(
        benchmark.name,
        np.asarray(clip_ids, dtype=object)[rows].tolist(),
        {name: values[rows] for name, values in columns.items()},
        validation,
        seed,
        folds,
        fold,
    )
    mask, groups, held_out = side.hold_out(scheme)
    if folds:
        held_out = f"fold {fold} of {folds}, counted from 0: {held_out}"
    return Splits(rows[~mask], rows[mask], np.flatnonzero(test), groups, held_out)


def choose_scheme(columns: Mapping[str, np.ndarray], benchmark: Benchmark) -> ValidationScheme:
    """Return the scheme of "auto": what asks the benchmark's question, as far as the training clips allow it.

    Benchmarks by subject, camera or setup hold out groups of that kind if there are several, but see ``TWO_CAMERAS``.
    Benchmarks that train on one camera or setup hold out subjects. If the groups are not recorded (0), or if the
    benchmark is a list of clips, recordings are held out.
    """
    train = np.isin(columns[benchmark.column], benchmark.train)
    side = {name: columns[name][train] for name in ("subject", "camera", "setup")}
    # A clip without a number may belong to any of the groups.
    groups = {name: len(np.unique(values)) if values.all() else 0 for name, values in side.items()}
    column = benchmark.column
    if column not in groups:
        return "clip"
    if column == "camera" and groups["camera"] == 2:
        pairs = np.unique(np.stack([side["subject"], side["camera"]]), axis=1)
        cameras_per_subject = np.unique(pairs[0], return_counts=True)[1]
        if groups["subject"] > 1 and np.count_nonzero(cameras_per_subject > 1) > 1:
            return TWO_CAMERAS
    elif groups[column] > 1:
        schemes: dict[str, ValidationScheme] = {"subject": "subject", "camera": "camera", "setup": "setup"}
        return schemes[column]
    return "subject" if groups["subject"] > 1 else "clip"


def _sides(columns: Mapping[str, np.ndarray], benchmark: Benchmark) -> tuple[np.ndarray, np.ndarray]:
    """Return masks of the training and the test clips, ``(C,)``; raises InputError if one of them is empty."""
    column = columns[benchmark.column]
    train = np.isin(column, benchmark.train)
    test = ~train if benchmark.test is None else np.isin(column, benchmark.test) & ~train
    for split, members in (("training", train), ("test", test)):
        if not members.any():
            raise InputError(f"benchmark {benchmark.name} has no {split} clip")
    return train, test


_HeldOut = tuple[np.ndarray, tuple[tuple[int, ...], ...], str]  # mask of the clips, groups, description


@dataclass(frozen=True)
class _TrainingSide:
    """The training clips of a benchmark, and how a part of them is drawn; see :func:`make_splits`."""

    benchmark: str
    clip_ids: Sequence[str] = field(repr=False)
    columns: Mapping[str, np.ndarray] = field(repr=False)
    share: float
    seed: int
    folds: int
    fold: int

    def hold_out(self, scheme: ValidationScheme) -> _HeldOut:
        """Draw the validation clips; raises InputError if there is too little to hold out."""
        if scheme == "clip":
            return self._recordings()
        if scheme == "subject-camera":
            return self._cameras_of_subjects()
        return self._groups(scheme)

    def _groups(self, column: str) -> _HeldOut:
        """Hold out all clips of some values of a column."""
        values = self.columns[column]
        groups = np.unique(values)
        if len(groups) < 2:
            raise self._impossible(f"come from one {column}")
        order = np.random.default_rng(self.seed).permutation(groups)
        if self.folds:
            self._require_folds(len(groups), f"{column}s")
            chosen = np.sort(order[self.fold :: self.folds])
        else:
            chosen = np.sort(order[: min(max(1, round(self.share * len(groups))), len(groups) - 1)])
        mask = np.isin(values, chosen)
        numbers = f" ({', '.join(map(str, chosen))})" if len(chosen) <= _MAX_LISTED else ""
        description = f"{len(chosen)} of {len(groups)} {column}s{numbers}: {_clips(mask)}"
        return mask, tuple((int(value),) for value in chosen), description

    def _cameras_of_subjects(self) -> _HeldOut:
        """Hold out one camera each of some subjects, dealt evenly over the cameras.

        In folds, every pair of a subject and a camera is held out once, and two cameras of a subject never together.
        Subjects with a single camera stay in training.
        """
        subjects, cameras = self.columns["subject"], self.columns["camera"]
        cameras_of = {int(subject): np.unique(cameras[subjects == subject]).tolist() for subject in np.unique(subjects)}
        cameras_of = {subject: known for subject, known in cameras_of.items() if len(known) > 1}
        if not cameras_of:
            raise self._impossible("have a single camera for each subject")
        order = np.random.default_rng(self.seed).permutation(sorted(cameras_of)).tolist()
        if self.folds:
            most = max(map(len, cameras_of.values()))
            self._require_folds(len(order), "subjects with several cameras")
            if self.folds < most:
                raise InputError(
                    f"data.folds is {self.folds}, but benchmark {self.benchmark} trains on {most} cameras of a "
                    f"subject, of which a fold holds out one; use at least {most} folds"
                )
            step = self.folds // most  # the camera of number j is held out j · step folds after the first
            pairs = [
                (subject, camera)
                for i, subject in enumerate(order)
                for j, camera in enumerate(cameras_of[subject])
                if (i + j * step) % self.folds == self.fold
            ]
        else:
            count = min(max(1, round(self.share * sum(map(len, cameras_of.values())))), len(order))
            chosen = order[:count]
            pairs = [(subject, cameras_of[subject][i % len(cameras_of[subject])]) for i, subject in enumerate(chosen)]
        pairs.sort()
        mask = np.any([(subjects == subject) & (cameras == camera) for subject, camera in pairs], axis=0)
        total = len(np.unique(subjects))
        return mask, tuple(pairs), f"{len(pairs)} of {total} subjects, one camera each: {_clips(mask)}"

    def _recordings(self) -> _HeldOut:
        """Hold out some recordings of each class; the only recording of a class stays in training."""
        of_class: dict[int, list[list[int]]] = defaultdict(list)
        for recording in self._find_recordings():
            of_class[int(self.columns["label"][recording[0]])].append(recording)
        total = sum(map(len, of_class.values()))
        of_class = {label: members for label, members in of_class.items() if len(members) > 1}
        if not of_class:
            raise self._impossible("are a single recording of each class", other_schemes=False)
        self._require_folds(sum(map(len, of_class.values())), "recordings in classes with several")
        rng = np.random.default_rng(self.seed)
        chosen: list[list[int]] = []
        seen = 0
        for label in rng.permutation(sorted(of_class)):
            members = [of_class[label][i] for i in rng.permutation(len(of_class[label]))]
            if self.folds:
                chosen += members[(self.fold - seen) % self.folds :: self.folds]
            else:
                # Fractions of a recording are carried over from class to class, so that the total is right.
                ends = [math.floor(self.share * count + 0.5) for count in (seen, seen + len(members))]
                chosen += members[: min(ends[1] - ends[0], len(members) - 1)]
            seen += len(members)
        if not chosen:
            chosen = [max(of_class.values(), key=len)[0]]
        mask = np.zeros(len(self.clip_ids), dtype=bool)
        mask[[clip for recording in chosen for clip in recording]] = True
        return mask, (), f"{len(chosen)} of {total} recordings, from all classes: {_clips(mask)}"

    def _find_recordings(self) -> list[list[int]]:
        """Group the clips that may show the same performance, in the order of their names.

        They agree in label, subject, setup and replication. Without a number of the replication (0) they may also be
        several performances, and count as one only if more than one camera recorded that subject or setup.
        """
        names = ("label", "subject", "setup", "replication", "camera")
        numbers = np.stack([self.columns[name] for name in names], axis=1).tolist()
        cameras: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for *key, camera in numbers:
            cameras[tuple(key)].add(camera)
        recordings: dict[tuple[int, ...] | str, list[int]] = {}
        for clip in sorted(range(len(numbers)), key=self.clip_ids.__getitem__):
            key = _, subject, setup, replication = tuple(numbers[clip][:4])
            is_known = replication > 0 or ((subject > 0 or setup > 0) and len(cameras[key] - {0}) > 1)
            recordings.setdefault(key if is_known else self.clip_ids[clip], []).append(clip)
        return list(recordings.values())

    def _impossible(self, reason: str, *, other_schemes: bool = True) -> InputError:
        remedy = "hold out recordings with --set data.validation_by=clip, or " if other_schemes else ""
        return InputError(
            f"all training clips of benchmark {self.benchmark} {reason}, so none can be held out for validation; "
            f"{remedy}train on all of them with --protocol paper"
        )

    def _require_folds(self, available: int, what: str) -> None:
        if available < self.folds:
            raise InputError(
                f"data.folds is {self.folds}, but benchmark {self.benchmark} has only {available} training {what}; use "
                "fewer folds, or another scheme with --set data.validation_by=…"
            )


def _clips(mask: np.ndarray) -> str:
    count = int(mask.sum())
    return f"{count:,} clip{'s' * (count != 1)}"
