"""Classes and splits of sources with a file or a folder per clip: from a table of labels, or from folder names."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from fgst.data.clip_source import ClipEntry, Membership, SourceOptions
from fgst.data.formats.custom import OPTIONAL_COLUMNS, read_benchmark, read_labels
from fgst.data.normalization import RawClip
from fgst.data.sources import ClipError
from fgst.data.splits import Benchmark
from fgst.errors import InputError
from fgst.parsing import printable, shorten

OFFICIAL = "official"  # the benchmark of folders "train" and "test"
_SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "validation": "val",
}
_LISTED = 5


@dataclass(frozen=True)
class NamedClip:
    """A clip before its class is known.

    Attributes:
        name: its path inside the source, without suffix, e.g. ``wave/clip_1``.
        read: reads its joints; see :class:`~fgst.data.clip_source.ClipEntry`.
    """

    name: str
    read: Callable[[], RawClip] = field(repr=False)


@dataclass(frozen=True)
class Labelled:
    """The fields of a :class:`~fgst.data.clip_source.ClipSource` that follow from classes and splits."""

    entries: list[ClipEntry]
    benchmarks: list[Benchmark]
    split_lists: list[str]
    notes: list[str]


def label_clips(clips: Sequence[NamedClip], options: SourceOptions, location: str) -> Labelled:
    """Give each clip its class, subject and split.

    With a table of labels, ``clip_id`` is a clip's name or the last part of it. Without one, a clip's class is the
    name of the folder that it is in. Folders ``train`` and ``test`` further up are the benchmark ``official``.

    Args:
        clips: the clips of the source.
        options: the table of labels, and benchmarks by its columns.
        location: the source, for messages.

    Raises:
        InputError: if there is no class, or no benchmark.
    """
    benchmarks = [read_benchmark(text) for text in options.benchmarks]
    if options.labels is not None:
        rows = read_labels(options.labels)
        for benchmark in benchmarks:
            if not any(row.get(benchmark.column) for row in rows):
                raise InputError(
                    f"{options.labels}: has no {benchmark.column}, which benchmark {benchmark.name} splits by"
                )
        entries, notes = _by_table(clips, rows)
    else:
        if benchmarks:
            raise InputError(
                f"--benchmark {options.benchmarks[0]}: needs a table of labels with the column {benchmarks[0].column}; "
                "pass --labels labels.csv"
            )
        entries, notes = _by_folder(clips, location)
    splits = _folder_splits(entry.clip_id for entry in entries)
    has_lists = len(set(splits.values())) == 2
    if not benchmarks and not has_lists:
        raise InputError(
            f"{location}: which clips are for training is unknown; put them into folders train and test, or pass "
            "--labels labels.csv with a column subject, and --benchmark x-sub:subject=1,2,3"
        )
    if has_lists:
        entries = [
            dataclasses.replace(entry, splits={OFFICIAL: splits[entry.clip_id]}) if entry.clip_id in splits else entry
            for entry in entries
        ]
    classes = Counter(str(entry.label) for entry in entries)
    if len(classes) == 1:
        notes.append(f"all clips are of one class, {printable(next(iter(classes)))}")
    return Labelled(entries, benchmarks, [OFFICIAL] if has_lists else [], notes)


def _by_folder(clips: Sequence[NamedClip], location: str) -> tuple[list[ClipEntry], list[str]]:
    entries = []
    for clip in sorted(clips, key=lambda clip: clip.name):
        label = PurePosixPath(clip.name).parent.name
        if not label or label.lower() in _SPLIT_FOLDERS:
            raise InputError(
                f"{location}: the class of clip {printable(clip.name)} is unknown; put the clips of each class into a "
                "folder with its name, or pass --labels labels.csv"
            )
        entries.append(ClipEntry(clip.name, label, clip.read))
    return entries, ["classes are the names of the folders that clips are in"]


def _by_table(clips: Sequence[NamedClip], rows: Sequence[Mapping[str, str]]) -> tuple[list[ClipEntry], list[str]]:
    by_name = {clip.name: clip for clip in clips}
    last_parts = Counter(PurePosixPath(clip.name).name for clip in clips)
    by_last = {last: clip for clip in clips if last_parts[last := PurePosixPath(clip.name).name] == 1}
    entries: list[ClipEntry] = []
    used: set[str] = set()
    for row in sorted(rows, key=lambda row: row["clip_id"]):
        name = row["clip_id"]
        clip = by_name.get(name) or by_last.get(name)
        if clip is not None and clip.name in used:
            clip = None
        used |= {clip.name} if clip else set()
        columns: dict[str, Any] = {column: int(row.get(column) or 0) for column in OPTIONAL_COLUMNS}
        clip_id = name if clip is None else clip.name
        entries.append(ClipEntry(clip_id, row["label"], clip.read if clip else _missing, **columns))
    unlisted = sorted(by_name.keys() - used)
    listed = shorten(", ".join(unlisted[:_LISTED])) + (" …" if len(unlisted) > _LISTED else "")
    notes = [f"{len(unlisted):,} clips are not in the table of labels, and are left out ({listed})"] if unlisted else []
    return entries, notes


def _missing() -> RawClip:
    raise ClipError("is in the table of labels, but there is no such clip")


def _folder_splits(names: Iterable[str]) -> dict[str, Membership]:
    """Return the split of each clip below a folder with the name of one.

    Clips of "val" are for testing if there is no "test"; else they are in neither split.
    """
    found = {}
    for name in names:
        parents = PurePosixPath(name).parts[:-1]
        if splits := [_SPLIT_FOLDERS[part.lower()] for part in parents if part.lower() in _SPLIT_FOLDERS]:
            found[name] = splits[0]
    test = "test" if "test" in found.values() else "val"
    memberships: dict[str, Membership] = {"train": "train", test: "test"}
    return {name: memberships[split] for name, split in found.items() if split in memberships}
