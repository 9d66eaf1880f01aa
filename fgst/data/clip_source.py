"""Sources of clips: what a reader of somebody else's data provides, and :mod:`fgst.data.conversion` writes.

A reader opens a file or folder and returns a :class:`ClipSource`: the skeleton, the classes, the benchmarks, and one
:class:`ClipEntry` per clip, whose joints are read only when the clip is written. Axes: M persons, T frames, N joints,
C coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fgst.data.normalization import Normalization, RawClip
from fgst.data.skeleton import Skeleton
from fgst.data.splits import Benchmark

Membership = Literal["train", "test"]


@dataclass(frozen=True)
class ClipEntry:
    """A clip of a source.

    Attributes:
        clip_id: unique name.
        label: its class, by name, or by number if the source has a list of class names.
        read: reads its joints; raises :class:`~fgst.data.sources.ClipError` if it is not a usable clip.
        subject, camera, setup, replication: numbers from 1; 0 means "not recorded".
        splits: by the name of a benchmark that is a list of clips: whether the clip is for training or for testing. A
            clip that a list does not contain is in neither split.
    """

    clip_id: str
    label: str | int
    read: Callable[[], RawClip] = field(repr=False)
    subject: int = 0
    camera: int = 0
    setup: int = 0
    replication: int = 0
    splits: Mapping[str, Membership] = field(default_factory=dict)


@dataclass(frozen=True)
class ClipSource:
    """An open source of clips.

    Attributes:
        skeleton: the skeleton of all clips.
        entries: the clips, in the order in which they are written. Each is read once, in this order.
        num_clips: number of entries, for the display of progress.
        classes: names of the classes by label; ``None`` if the labels of the entries are names, which are sorted then.
        benchmarks: rules by a column. Lists of clips (``ClipEntry.splits``) are named in ``split_lists`` instead.
        split_lists: names of the benchmarks that are lists of clips.
        normalization: how coordinates become those of the data set; ``None`` measures it on the first clips.
        recipe: default sampling and augmentation.
        preparation: the format of single raw clips for prediction; see :func:`fgst.data.formats.find_format`.
        origin: JSON values that record where the clips come from.
        notes: remarks for the user, e.g. what the source is taken for.
    """

    skeleton: Skeleton
    entries: Iterable[ClipEntry]
    num_clips: int
    classes: Sequence[str] | None = None
    benchmarks: Sequence[Benchmark] = ()
    split_lists: Sequence[str] = ()
    normalization: Normalization | None = None
    recipe: str = "ntu"
    preparation: str = "array"
    origin: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class SourceOptions:
    """What the user says about a source; ``None`` where the reader decides.

    Attributes:
        labels: a table of labels, for formats whose files do not contain them.
        classes: a file with one class name per line.
        skeleton: the skeleton, for formats that do not imply one.
        benchmarks: further benchmarks, as on the command line.
        columns: which column of a table is what, as on the command line; see :mod:`fgst.data.formats.joint_csv`.
    """

    labels: Path | None = None
    classes: Path | None = None
    skeleton: Skeleton | None = None
    benchmarks: Sequence[str] = ()
    columns: str = ""


@dataclass(frozen=True)
class SourceFormat:
    """A format of data sets that :mod:`data_prep.convert` reads.

    Attributes:
        name: its name on the command line.
        description: what it is, in a few words.
        recognizes: whether a file or folder looks like this format; must be fast, and must not raise.
        open: opens a source until the context ends; raises :class:`~fgst.errors.InputError` if it is not valid.
    """

    name: str
    description: str
    recognizes: Callable[[Path], bool]
    open: Callable[[Path, SourceOptions], AbstractContextManager[ClipSource]]
