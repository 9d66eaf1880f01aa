"""The summary that all data preparation commands print."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fgst.data.dataset import ArrowDataset
from fgst.data.layout import is_split_list
from fgst.data.skeleton import Skeleton
from fgst.data.splits import Benchmark
from fgst.errors import InputError

Line = tuple[str, str]  # label, value


def describe(dataset: ArrowDataset) -> list[Line]:
    """Return the clips per split and what is held out of each benchmark, clips per class, and ranges of frames and
    persons.
    """
    lines = []
    for benchmark in dataset.benchmarks:
        try:
            splits = dataset.splits(benchmark.name, validation=0)
        except InputError:
            lines.append((benchmark.name, "not usable: one of its splits has no clip"))
            continue
        counts = f"{len(splits.train):,} train, {len(splits.test):,} test ({_rule(benchmark)})"
        lines += [(benchmark.name, counts), ("", f"validation: {_validation(dataset, benchmark.name)[0]}")]
    frames, persons = dataset.columns["num_frames"], dataset.columns["num_persons"]
    subjects = np.count_nonzero(np.unique(dataset.columns["subject"]))  # 0 means "not recorded"
    per_class = np.bincount(dataset.columns["label"], minlength=dataset.num_classes)
    per_count = zip(*np.unique(persons, return_counts=True), strict=True)
    return [
        *lines,
        ("frames", f"{frames.min()} to {frames.max()}, median {np.median(frames):g}"),
        ("persons", ", ".join(f"{clips:,} clips of {count}" for count, clips in per_count)),
        ("subjects", str(subjects) if subjects else "not recorded"),
        ("classes", str(dataset.num_classes)),
        *(("", f"{count:6,}  {name}") for name, count in zip(dataset.classes, per_class, strict=True)),
    ]


def _rule(benchmark: Benchmark) -> str:
    return "a list of clips" if is_split_list(benchmark) else f"by {benchmark.column}"


def _validation(dataset: ArrowDataset, benchmark: str = "") -> tuple[str, bool]:
    """Say what trainings hold out by default, or why they cannot hold out anything, and whether they can."""
    try:
        return dataset.splits(benchmark).held_out, True
    except InputError as error:
        return f"not possible: {str(error).removeprefix(f'{dataset.path}: ')}", False


def print_lines(lines: Sequence[Line]) -> None:
    """Print labels and values in two columns."""
    for label, value in lines:
        print(f"  {label:<10}{value}")


def print_report(title: str, lines: Sequence[Line], dataset: ArrowDataset, out: Path, seconds: float) -> None:
    """Print the summary of a new data set, and the commands to run next.

    Args:
        title: the first line.
        lines: information that is specific to the format.
        dataset: the new data set.
        out: its directory as the user typed it.
        seconds: the duration of the preparation.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # escape names that the terminal's encoding lacks
    size = sum(file.stat().st_size for file in dataset.path.iterdir())
    print(title)
    print_lines(
        [
            *lines,
            *describe(dataset),
            ("digest", dataset.digest),
            ("location", f"{out} ({size / 1e6:.1f} MB)"),
            ("time", f"{seconds:.1f} s"),
        ]
    )
    path = shlex.quote(str(out))
    focal, parts = _required_settings(dataset.skeleton)
    protocol = "" if _validation(dataset)[1] else " --protocol paper"
    print("next, train once or sweep K:")
    print(f"  python -m fgst.train --dataset {path}{protocol}{focal}{parts}")
    print(f"  python sweeps/focal_k.py --dataset {path}{protocol}{parts}", flush=True)


def _required_settings(skeleton: Skeleton) -> tuple[str, str]:
    """Return the options that a skeleton needs where it does not support the defaults, K = 15 and P = 10."""
    joints, known = skeleton.num_joints, skeleton.known_parts
    focal = "" if joints >= 15 else f" --set model.focal_joints={-(-3 * joints // 5)}"
    largest = max((count for count in known if count <= 10), default=known[0])
    return focal, "" if 10 in known else f" --set model.parts={largest}"
