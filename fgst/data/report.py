"""What the commands that prepare data share: their progress bar, and the report at the end."""

from __future__ import annotations

import errno
import io
import shlex
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fgst.data.dataset import ArrowDataset
from fgst.data.skeleton import Skeleton
from fgst.errors import InputError

Line = tuple[str, str]  # what it is, its value
T = TypeVar("T")


def printable(name: str) -> str:
    """A file name on one line and free of control characters, whatever an archive calls its members."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)


def tracked(items: Iterable[T], total: int, what: str) -> Generator[T, None, None]:
    """Pass the items on, with a progress bar on stderr when that is a terminal, and in silence otherwise.

    Close the generator when something goes wrong on the way, so that the bar is gone before a message is printed.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, total=total, description=what)


def tracked_clips(items: Iterable[tuple[T, int]], *, total: int, done: int) -> Generator[T, None, None]:
    """Pass items on that stand for a number of clips each, telling clips per second and the time left on stderr.

    On a terminal as a bar, otherwise as a line every half minute.
    """
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task("", total=total, completed=done)
            began, start = time.monotonic(), done
            for item, clips in items:
                done += clips
                rate = (done - start) / max(time.monotonic() - began, 1e-9)
                progress.update(bar, completed=done, description=f"{rate:,.0f} clips/s")
                yield item
        return
    began = told = time.monotonic()
    start = done
    for item, clips in items:
        done += clips
        now = time.monotonic()
        if now - told >= 30:
            rate = (done - start) / (now - began)
            left = (total - done) / rate / 60
            print(f"{done:,}/{total:,} clips, {rate:,.0f} clips/s, {left:.0f} min left", file=sys.stderr, flush=True)
            told = now
        yield item


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """A full disk or a lost permission is the user's to mend, so it gets one line as other bad input does."""
    try:
        yield
    except OSError as error:
        mend = "make room, or name another" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "name another"
        raise InputError(f"{out}: cannot be written ({error.strerror or error}); {mend}") from None


def describe(dataset: ArrowDataset) -> list[Line]:
    """Clips per split of each benchmark, per class, and their lengths and persons."""
    lines = []
    for benchmark in dataset.benchmarks:
        try:
            splits = dataset.splits(benchmark.name, validation=0)
            counts = f"{len(splits.train):,} train, {len(splits.test):,} test (by {benchmark.column})"
        except InputError:
            counts = "cannot be used: one of its splits has no clip"
        lines.append((benchmark.name, counts))
    frames, persons = dataset.columns["num_frames"], dataset.columns["num_persons"]
    per_class = np.bincount(dataset.columns["label"], minlength=dataset.num_classes)
    return [
        *lines,
        ("frames", f"{frames.min()} to {frames.max()}, median {np.median(frames):g}"),
        ("persons", ", ".join(f"{count:,} clips of {m}" for m, count in zip(*_counted(persons), strict=True))),
        ("subjects", str(len(np.unique(dataset.columns["subject"])))),
        ("classes", str(dataset.num_classes)),
        *(("", f"{count:6,}  {name}") for name, count in zip(dataset.classes, per_class, strict=True)),
    ]


def print_report(title: str, lines: Sequence[Line], dataset: ArrowDataset, out: Path, seconds: float) -> None:
    """Print the report on stdout; its last lines are the commands to type next. ``out`` is shown as it was typed."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to fail
    size = sum(file.stat().st_size for file in dataset.path.iterdir())
    everything = [
        *lines,
        *describe(dataset),
        ("digest", dataset.digest),
        ("lies at", f"{out} ({size / 1e6:.1f} MB)"),
        ("took", f"{seconds:.1f} s"),
    ]
    print(title)
    for label, value in everything:
        print(f"  {label:<10}{value}")
    where = shlex.quote(str(out))
    focal, parts = _settings(dataset.skeleton)
    print("next, train once or sweep K:")
    print(f"  python -m fgst.train --dataset {where}{focal}{parts}")
    print(f"  python sweeps/focal_k.py --dataset {where}{parts}", flush=True)


def _settings(skeleton: Skeleton) -> tuple[str, str]:
    """What a skeleton needs where the paper's K = 15 or P = 10 is not for it: options to type."""
    joints, known = skeleton.num_joints, skeleton.known_parts
    focal = "" if joints >= 15 else f" --set model.focal_joints={-(-3 * joints // 5)}"
    fitting = max((count for count in known if count <= 10), default=known[0])
    return focal, "" if 10 in known else f" --set model.parts={fitting}"


def _counted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.unique(values, return_counts=True)
