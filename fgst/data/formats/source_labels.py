"""What files of the field leave to their reader: class names, benchmarks, and whether clips are centred."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import msgspec
import numpy as np

from fgst.config import RecipeName
from fgst.data.clip_source import ClipEntry, Membership, SourceOptions
from fgst.data.formats.ntu_names import ACTIONS, EDITIONS, ClipName, Edition, belongs, parse_name
from fgst.data.label_table import MAX_NAME, NUMBER_COLUMNS, parse_benchmark, read_class_names
from fgst.data.layout import is_column, split_list
from fgst.data.normalization import Normalization, RawClip, measure, to_space
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import NTU_25
from fgst.data.sources import ClipError, parse_clip
from fgst.data.splits import Benchmark
from fgst.errors import InputError
from fgst.parsing import Text, printable, shorten

MAX_CLASSES = 10_000
PEEKED = 16  # clips that show how a source is normalized
INVALID = -1  # the label of a clip that has no usable one
# How the field abbreviates the official splits of NTU RGB+D, by their names here.
_ABBREVIATIONS = {
    "x-sub": ("xsub", "csub", "cs", "crosssubject"),
    "x-view": ("xview", "cview", "cv", "crossview"),
    "x-set": ("xset", "xsetup", "cset", "csetup", "crosssetup"),
}


@dataclass
class Listed:
    """A clip as a file lists it.

    Attributes:
        name: its unique name.
        label: number of its class, or :data:`INVALID`.
        splits: membership by the name of a list.
        numbers: subject, camera, setup and replication by column, as far as they are known.
        ntu: what a name of NTU RGB+D tells.
        fault: why it is not usable.
    """

    name: str
    label: int
    splits: dict[str, Membership] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    ntu: ClipName | None = None
    fault: str | None = None

    def entry(self, read: Callable[[], RawClip]) -> ClipEntry:
        """Return the clip with its joints; those of a clip that is not usable raise its fault."""
        return ClipEntry(self.name, max(self.label, 0), read, **self.numbers, splits=self.splits)


@dataclass
class Labels:
    """The classes and benchmarks of a source, and remarks."""

    classes: list[str]
    benchmarks: list[Benchmark]
    notes: list[str] = field(default_factory=list)


class ExportedFrom(msgspec.Struct):
    """What an exported file says about its data set, beyond the layout: with it, the clips are read back unchanged."""

    name: Text
    recipe: RecipeName
    preparation: Text
    skeleton: Skeleton
    classes: list[Text]
    benchmarks: list[Benchmark]

    def __post_init__(self) -> None:
        if not self.classes or not self.benchmarks or not all(is_column(rule.column) for rule in self.benchmarks):
            raise ValueError("it has no class, or a benchmark without a column")


def list_clips(names: Sequence[Any], labels: Sequence[Any], *, verbatim: bool = False) -> list[Listed]:
    """Return clips by name; paths and suffixes such as ``.skeleton`` are left out, unless clips would share a name.

    Names that are none, and labels that are no class, make a clip unusable.

    Args:
        names, labels: of the clips.
        verbatim: do not change names.
    """
    clips = []
    texts = [text(given) for given in names]
    verbatim = verbatim or len({clip_name(name) for name in texts}) < len(set(texts))
    for number, (name, label) in enumerate(zip(texts, labels, strict=True)):
        known = (name if verbatim else clip_name(name)) or f"clip {number}"
        clip = Listed(known, label if _is_label(label) else INVALID)
        if not name or len(clip.name) > MAX_NAME or not clip.name.isprintable():
            clip.fault = f"its name must be at most {MAX_NAME} printable characters"
            clip.name = f"clip {number}"
        elif clip.label == INVALID:
            clip.fault = f"its label, {shorten(str(label), 40)}, is not a number from 0 to {MAX_CLASSES - 1:,}"
        try:
            clip.ntu = parse_name(clip_name(clip.name))
        except ClipError:
            clip.ntu = None
        else:
            values = dataclasses.asdict(clip.ntu)
            clip.numbers = {column: values[column] for column in NUMBER_COLUMNS}
        clips.append(clip)
    return clips


def text(value: Any) -> str:
    """Return a text, also from bytes; the empty text for anything else."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if isinstance(value, str) else ""


def clip_name(name: str) -> str:
    """Return a clip's name from that of its file: ``..\\data\\S001C001P001R001A001.skeleton``."""
    path = PureWindowsPath(name)  # both / and \ separate folders
    return path.stem if path.suffix.lower() in (".skeleton", ".json", ".mp4", ".avi") else path.name


def _is_label(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_CLASSES


def describe(
    clips: Sequence[Listed],
    lists: Sequence[str],
    options: SourceOptions,
    *,
    where: Path,
    num_classes: int = 0,
    assume_ntu: bool = False,
    exported: ExportedFrom | None = None,
) -> Labels:
    """Choose class names and benchmarks.

    Clips whose name repeats that of an earlier one are not usable. A list that divides all clips as an official
    benchmark of NTU RGB+D does becomes that benchmark, by its column.

    Args:
        clips: the clips.
        lists: names of the lists that divide the clips, as the source writes them.
        options: what the user says.
        where: the source, for messages, and for the names of the official splits.
        num_classes: number of classes, if the source tells it.
        assume_ntu: the labels are NTU RGB+D's if their number fits, although clips have no names.
        exported: what an exported file says: its classes and benchmarks are used.

    Raises:
        InputError: if there is no benchmark, or there are labels beyond the class names.
    """
    if options.labels is not None:
        raise InputError("--labels: files of this format contain the labels of their clips; leave the option out")
    seen: set[str] = set()
    for clip in clips:
        if clip.name in seen:
            clip.fault = "its name occurs twice"
        seen.add(clip.name)
    if exported is not None:
        for clip in clips:
            if clip.label >= len(exported.classes):
                clip.fault = f"its label is {clip.label}, but there are {len(exported.classes)} classes"
    usable = [clip for clip in clips if clip.fault is None]
    num_classes = max(num_classes, 1 + max((clip.label for clip in usable), default=0))
    edition = None if exported is not None else _edition(usable)
    if exported is not None:
        names, num_classes = list(exported.classes), len(exported.classes)
    elif edition is not None:
        names = list(ACTIONS[: edition.actions])
    elif assume_ntu and num_classes in (60, 120):
        names = list(ACTIONS[:num_classes])
    else:
        names = [str(label) for label in range(num_classes)]
    labels = Labels(names if options.classes is None else _read_names(options.classes, num_classes), [])
    if exported is not None:
        labels.benchmarks += exported.benchmarks
        labels.notes.append(f"exported from data set {exported.name}")
        by_list = {rule.name for rule in exported.benchmarks if rule == split_list(rule.name)}
        for name in lists:
            _rename(clips, name, name if name in by_list else None)
        lists = ()
    for name in lists:
        rule = _official(usable, name, edition, where)
        if rule is None or rule in labels.benchmarks:
            labels.benchmarks.append(split_list(readable(name)))
            _rename(clips, name, readable(name))
        else:
            labels.benchmarks.append(rule)
            labels.notes.append(f"the split is the official {rule.name} of NTU RGB+D, by {rule.column}")
            _rename(clips, name, None)
    for given in options.benchmarks:
        labels.benchmarks.append(_column_benchmark(given, usable, labels.benchmarks))
    if not labels.benchmarks and edition is not None:
        labels.benchmarks += edition.benchmarks
    if not labels.benchmarks:
        raise InputError(
            f"{printable(str(where))}: does not say which clips are for training; pass --benchmark NAME:COLUMN=VALUES"
        )
    return labels


def readable(name: str) -> str:
    """Return the name of a list of clips: the usual one for official splits of NTU RGB+D, else ``name``."""
    plain = name.lower().replace("-", "").replace("_", "")
    return next((known for known, short in _ABBREVIATIONS.items() if plain in short), name)


def official_in(name: str) -> str | None:
    """Return the official split that a file name such as ``NTU60_CS`` names, ``None`` if it names none."""
    words = name.lower().replace("-", "_").split("_")
    for known, short in _ABBREVIATIONS.items():
        if any(word in short for word in words):
            return known
    return None


def _edition(clips: Sequence[Listed]) -> Edition | None:
    """Return the edition of NTU RGB+D whose clips these are, by their names."""
    if not clips or any(clip.ntu is None or clip.ntu.action != clip.label + 1 for clip in clips):
        return None
    return next(e for e in EDITIONS.values() if all(clip.ntu and belongs(clip.ntu, e) for clip in clips))


def _read_names(path: Path, count: int) -> list[str]:
    names = list(read_class_names(path))
    if count > len(names):
        raise InputError(f"{printable(str(path))}: names {len(names)} classes, but there are labels up to {count - 1}")
    return names


def _column_benchmark(given: str, clips: Sequence[Listed], others: Sequence[Benchmark]) -> Benchmark:
    """Read a benchmark as on the command line, by a column of numbers."""
    name, column, train, test = parse_benchmark(given)
    if column not in NUMBER_COLUMNS or not all(value.isdecimal() for value in (*train, *(test or ()))):
        raise InputError(f"--benchmark {given}: clips are divided by numbers of {', '.join(NUMBER_COLUMNS)} here")
    if name in [rule.name for rule in others]:
        raise InputError(f"--benchmark {name}: is in the file already; use another name")
    rule = Benchmark(name, column, tuple(map(int, train)), None if test is None else tuple(map(int, test)))
    sides = {_membership(clip, rule) for clip in clips}
    if not {"train", "test"} <= sides:
        known = sorted({clip.numbers.get(column, 0) for clip in clips})
        raise InputError(
            f"--benchmark {name}: its {'test' if 'train' in sides else 'train'} split is empty; {column} is one of "
            f"{', '.join(map(str, known[:20]))} (0: not known)"
        )
    return rule


def _official(clips: Sequence[Listed], name: str, edition: Edition | None, where: Path) -> Benchmark | None:
    """Return the official benchmark that divides all clips as the list does."""
    if edition is None:
        return None
    named = readable(name) if readable(name) in _ABBREVIATIONS else official_in(f"{where.parent.name}_{where.stem}")
    for rule in edition.benchmarks:
        if named in (None, rule.name) and all(clip.splits.get(name) == _membership(clip, rule) for clip in clips):
            return rule
    return None


def _membership(clip: Listed, rule: Benchmark) -> Membership | None:
    number = clip.numbers.get(rule.column, 0)
    if number in rule.train:
        return "train"
    return "test" if rule.test is None or number in rule.test else None


def _rename(clips: Sequence[Listed], old: str, new: str | None) -> None:
    """Rename a list, or remove it."""
    for clip in clips:
        membership = clip.splits.pop(old, None)
        if membership is not None and new is not None:
            clip.splits[new] = membership


def peek(reads: Iterable[Callable[[], RawClip]]) -> list[RawClip]:
    """Return the first :data:`PEEKED` clips, without those that are not usable."""
    clips = []
    for read in itertools.islice(reads, PEEKED):
        with contextlib.suppress(ClipError):
            clip = parse_clip(lambda read: read(), read)
            to_space(clip)
            clips.append(clip)
    return clips


def measured(clips: Sequence[RawClip], skeleton: Skeleton) -> tuple[Normalization, list[str]]:
    """Choose the normalization of clips that may be centred already, by some of them.

    A clip is centred if the first person's centre joint is exactly at the origin, in all frames or in the first one.

    Returns:
        The normalization, and remarks.
    """
    clips = [clip for clip in clips if clip.joints.any()]
    normalization, notes = measure(clips, skeleton)
    if not clips:
        return normalization, notes
    everywhere, first = np.mean([_is_centred(clip, skeleton.centre) for clip in clips], axis=0)
    if everywhere > 0.5:
        up = _rotated_up(clips, skeleton)
        notes = [note for note in notes if "stand along" not in note]
        notes.append(f"already centred in each frame{' and rotated: z points up, and is turned to y' if up else ''}")
        return dataclasses.replace(normalization, centred=False, up="z" if up else normalization.up), notes
    if first > 0.5:
        return dataclasses.replace(normalization, centred=False), [*notes, "already centred"]
    return normalization, notes


def _is_centred(clip: RawClip, centre: int) -> tuple[bool, bool]:
    """Return whether the first person's centre is at the origin in all frames, and in the first one."""
    person = np.asarray(clip.joints[0])
    person = person[person.any(axis=(1, 2))]
    is_away = [bool(frame.any()) for frame in person[:, centre]]
    return (not any(is_away), not is_away[0]) if len(person) else (False, False)


def _rotated_up(clips: Sequence[RawClip], skeleton: Skeleton) -> bool:
    """Return whether first persons stand exactly along z in their first frame: hip and spine are above each other."""
    if skeleton != NTU_25:
        return False
    along = []
    for clip in clips:
        joints, seen = to_space(clip)
        frames = np.flatnonzero(seen[0].any(axis=1))
        if len(frames):
            bone = joints[0, frames[0], 1] - joints[0, frames[0], 0]
            along.append(bone[2] > 0.999 * np.linalg.norm(bone))
    return bool(along) and float(np.mean(along)) > 0.5
