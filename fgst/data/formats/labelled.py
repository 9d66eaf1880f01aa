"""Classes and splits of sources with a file or a folder per clip: from a table of labels, or from folder names."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from fgst.data.clip_source import ClipEntry, Membership, SourceOptions
from fgst.data.label_table import read_class_names, read_label_table
from fgst.data.normalization import RawClip
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
    classes: tuple[str, ...] | None
    benchmarks: tuple[Benchmark, ...]
    split_lists: tuple[str, ...]
    notes: list[str]


def label_clips(clips: Sequence[NamedClip], options: SourceOptions, location: str, suffix: str = "") -> Labelled:
    """Give each clip its class, subject and split.

    With a table of labels, ``clip_id`` is a clip's name or the last part of it. Without one, a clip's class is the
    name of the folder that it is in. Folders ``train`` and ``test`` further up are the benchmark ``official``.

    Args:
        clips: the clips of the source.
        options: the table of labels, and benchmarks by its columns.
        location: the source, for messages.
        suffix: of the files, which names in the table may have.

    Raises:
        InputError: if there is no class, or no benchmark.
    """
    labelled = _by_folder(clips, options, location) if options.labels is None else _by_table(clips, options, suffix)
    splits = {} if labelled.split_lists else _folder_splits(entry.clip_id for entry in labelled.entries)
    if len(set(splits.values())) == 2:
        entries = [
            dataclasses.replace(entry, splits={OFFICIAL: splits[entry.clip_id]}) if entry.clip_id in splits else entry
            for entry in labelled.entries
        ]
        notes = [*labelled.notes, f"{OFFICIAL}: train and test from the names of folders"]
        labelled = dataclasses.replace(labelled, entries=entries, split_lists=(OFFICIAL,), notes=notes)
    elif not labelled.benchmarks and not labelled.split_lists:
        raise InputError(
            f"{location}: which clips are for training is unknown; put them into folders train and test, or pass "
            "--labels labels.csv with a column split or subject, and --benchmark x-sub:subject=1,2,3"
        )
    classes = {entry.label for entry in labelled.entries}
    if len(classes) == 1:
        labelled.notes.append("all clips are of one class")
    return labelled


def _by_folder(clips: Sequence[NamedClip], options: SourceOptions, location: str) -> Labelled:
    if options.benchmarks:
        raise InputError(f"--benchmark {options.benchmarks[0]}: needs a table of labels; pass --labels labels.csv")
    names = None if options.classes is None else read_class_names(options.classes)
    entries = []
    for clip in sorted(clips, key=lambda clip: clip.name):
        label = PurePosixPath(clip.name).parent.name
        if not label or label.lower() in _SPLIT_FOLDERS:
            raise InputError(
                f"{location}: the class of clip {printable(clip.name)} is unknown; put the clips of each class into a "
                "folder with its name, or pass --labels labels.csv"
            )
        if names is not None and label not in names:
            raise InputError(f"{printable(str(options.classes))}: does not contain the folder {printable(label)}")
        entries.append(ClipEntry(clip.name, label, clip.read))
    return Labelled(entries, names, (), (), ["classes are the names of the folders that clips are in"])


def _by_table(clips: Sequence[NamedClip], options: SourceOptions, suffix: str) -> Labelled:
    assert options.labels is not None
    table = read_label_table(options.labels, options.benchmarks, options.classes)
    by_name = {clip.name: clip for clip in clips}
    last_parts = Counter(PurePosixPath(clip.name).name for clip in clips)
    by_last = {last: clip for clip in clips if last_parts[last := PurePosixPath(clip.name).name] == 1}
    entries: list[ClipEntry] = []
    used: set[str] = set()
    for clip_id, row in sorted(table.rows.items()):
        name = clip_id.removesuffix(suffix)
        clip = by_name.get(name) or by_last.get(name)
        if clip is not None and clip.name in used:  # named in two ways
            clip = None
        used |= {clip.name} if clip else set()
        found = {"clip_id": clip.name, "read": clip.read} if clip else {"clip_id": name}
        entries.append(dataclasses.replace(row, **found))
    unlisted = sorted(by_name.keys() - used)
    notes = list(table.notes)
    if unlisted:
        listed = shorten(", ".join(unlisted[:_LISTED])) + (" …" if len(unlisted) > _LISTED else "")
        notes.append(f"{len(unlisted):,} clips are not in the table of labels, and are left out ({listed})")
    return Labelled(entries, table.classes, table.benchmarks, table.split_lists, notes)


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
