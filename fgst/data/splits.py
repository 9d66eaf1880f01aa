"""Benchmarks (cross-subject, cross-view, cross-setup) and the train, validation and test splits they define."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fgst.errors import InputError
from fgst.parsing import Name, Number


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
        val_subjects: the training subjects held out for validation.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    val_subjects: tuple[int, ...]


def make_splits(
    columns: Mapping[str, np.ndarray], benchmark: Benchmark, *, validation: float = 0.2, seed: int = 0
) -> Splits:
    """Split clips into train, validation and test.

    The validation split consists of all training clips of some training subjects, so validation subjects are never
    trained on. Test clips are never used for validation.

    Args:
        columns: integer columns of the data set, each ``(C,)``.
        benchmark: the rule that separates training from test clips.
        validation: fraction of the training subjects to hold out, at least one subject; 0 holds out none.
        seed: selects the subjects.

    Raises:
        InputError: if a split is empty, or there are too few subjects to hold one out.
    """
    column = columns[benchmark.column]
    train = np.isin(column, benchmark.train)
    test = ~train if benchmark.test is None else np.isin(column, benchmark.test) & ~train
    for split, members in (("training", train), ("test", test)):
        if not members.any():
            raise InputError(f"benchmark {benchmark.name} has no {split} clip")
    val = np.zeros(len(column), dtype=bool)
    val_subjects: list[int] = []
    if validation > 0:
        subjects = np.unique(columns["subject"][train])
        if len(subjects) < 2:
            raise InputError(
                f"all training clips of benchmark {benchmark.name} come from one subject, so none can be held out "
                "for validation; train on all of them with --protocol paper"
            )
        count = min(max(1, round(validation * len(subjects))), len(subjects) - 1)
        held_out = np.random.default_rng(seed).permutation(subjects)[:count]
        val_subjects = sorted(int(subject) for subject in held_out)
        val = train & np.isin(columns["subject"], val_subjects)
    return Splits(
        train=np.flatnonzero(train & ~val),
        val=np.flatnonzero(val),
        test=np.flatnonzero(test),
        val_subjects=tuple(val_subjects),
    )
