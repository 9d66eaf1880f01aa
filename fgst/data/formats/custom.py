"""Your own recordings: single clips of any format, a table of labels and a skeleton.

``python -m data_prep.custom --help`` documents the files.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec

from fgst.data.clip_source import ClipSource
from fgst.data.formats import FORMATS, RawFormat
from fgst.data.label_table import read_label_table
from fgst.data.normalization import RawClip
from fgst.data.skeleton import MAX_JOINTS, Skeleton
from fgst.data.skeletons import SKELETONS, find_skeleton
from fgst.data.sources import MAX_FILE_BYTES, ClipError, ClipFile, open_source
from fgst.errors import InputError
from fgst.parsing import Name, printable, read_json

# Formats of data sets with a command of their own, and the same suffix as others.
_OF_DATA_SETS = ("ntu", "nw-ucla")
_LISTED = 5  # names that a remark lists


class _Description(msgspec.Struct):
    """The content of a skeleton description."""

    name: Name
    joints: Annotated[list[Name], msgspec.Meta(min_length=1, max_length=MAX_JOINTS)]
    bones: dict[str, str]
    centre: str
    partitions: list[list[list[str]]] = []

    def __post_init__(self) -> None:
        in_parts = (joint for partition in self.partitions for part in partition for joint in part)
        unknown = sorted({*self.bones, *self.bones.values(), self.centre, *in_parts} - set(self.joints))
        if unknown:
            raise ValueError(f"bones, centre or partitions name {unknown[0]!r}, which is not one of the joints")


def read_skeleton(source: Path | str) -> Skeleton:
    """Return a skeleton that ships by its name, or read a skeleton description in JSON.

    Raises:
        InputError: if it is neither, or the file cannot be read or is not valid.
    """
    skeleton, path = find_skeleton(str(source)), Path(source)
    if skeleton is not None:
        return skeleton
    if not path.exists():
        known = ", ".join(f"{name} ({skeleton.num_joints})" for name, skeleton in SKELETONS.items())
        raise InputError(
            f"--skeleton {printable(str(source))}: there is no such file or skeleton; skeletons (joints) are {known}"
        )
    fields = read_json(path, _Description, what="a skeleton description", hint="see --help")
    index = {joint: i for i, joint in enumerate(fields.joints)}
    try:
        return Skeleton(
            name=fields.name,
            joints=tuple(fields.joints),
            parents=tuple(index[fields.bones.get(joint, joint)] for joint in fields.joints),
            centre=index[fields.centre],
            partitions=tuple(tuple(tuple(index[j] for j in part) for part in parts) for parts in fields.partitions),
        )
    except ValueError as error:
        raise InputError(f"{printable(str(path))}: is not a skeleton description ({error}); see --help") from None


@contextmanager
def open_custom(
    clips: Path,
    *,
    labels: Path,
    skeleton: Skeleton,
    benchmarks: Sequence[str] = (),
    classes: Path | None = None,
    clip_format: str | None = None,
) -> Iterator[ClipSource]:
    """Open a folder or archive of clips, and the table that labels them.

    Args:
        clips: a folder or a zip of files with one clip each, or an ``.npz`` with one array per clip.
        labels: the table of labels; see :func:`fgst.data.label_table.read_label_table`.
        skeleton: the skeleton of all clips.
        benchmarks: as on the command line.
        classes: a file with one class name per line; ``None`` sorts the labels of the table.
        clip_format: key of :data:`~fgst.data.formats.FORMATS`; ``None`` takes the one of the files' suffix.

    Raises:
        InputError: if a file is not valid, or the files' format is not clear.
    """
    table = read_label_table(labels, benchmarks, classes)
    preparation = clip_format or _detect_format(clips)
    raw_format = FORMATS[preparation]
    suffix = raw_format.suffix
    hint = f"give a folder or zip of {suffix} files"
    with open_source(clips, suffix=suffix, max_bytes=MAX_FILE_BYTES, hint=hint) as listing:
        clip_files = raw_format.clips_of(listing.files) if raw_format.clips_of else listing.files
        files = {_without(file.path, suffix): file for file in clip_files}
        entries = [
            dataclasses.replace(
                row, clip_id=name, read=functools.partial(_read, name + suffix, files.get(name), raw_format, skeleton)
            )
            for name, row in sorted((clip_id.removesuffix(suffix), row) for clip_id, row in table.rows.items())
        ]
        unlisted = sorted(set(files) - {entry.clip_id for entry in entries})
        notes = list(table.notes)
        if unlisted:
            names = ", ".join(unlisted[:_LISTED]) + (" …" if len(unlisted) > _LISTED else "")
            notes.append(f"{len(unlisted):,} {suffix} files are not in the table of labels ({names})")
        yield ClipSource(
            skeleton=skeleton,
            entries=entries,
            num_clips=len(entries),
            classes=table.classes,
            benchmarks=table.benchmarks,
            split_lists=table.split_lists,
            normalization=raw_format.normalization,
            preparation=preparation,
            origin={"made_by": "data_prep.custom", "numbers": {c: dict(n) for c, n in table.numbers.items()}},
            notes=notes,
        )


def _without(path: str, suffix: str) -> str:
    return path[: -len(suffix)] if path.lower().endswith(suffix) else path


def _read(name: str, file: ClipFile | None, raw_format: RawFormat, skeleton: Skeleton) -> RawClip:
    if file is None:
        raise ClipError(f"there is no file {name}")
    result = raw_format.read(file.read(), skeleton)
    return result if isinstance(result, RawClip) else RawClip(result)


def formats_by_suffix() -> dict[str, list[str]]:
    """Return the formats that the suffix of single clips may mean, by suffix."""
    formats: dict[str, list[str]] = {}
    for name, raw_format in FORMATS.items():
        if name not in _OF_DATA_SETS:
            formats.setdefault(raw_format.suffix, []).append(name)
    return formats


def _detect_format(clips: Path) -> str:
    """Return the format of the files by the suffix that most of them have.

    Raises:
        InputError: if no format, or more than one, has the suffix.
    """
    suffixes: Mapping[str, int] = Counter()
    known = {f.suffix for f in FORMATS.values()}
    if clips.suffix.lower() == ".npz":
        return "array"
    for suffix in known:
        try:
            with open_source(clips, suffix=suffix, max_bytes=MAX_FILE_BYTES, hint="") as listing:
                suffixes = {**suffixes, suffix: len(listing.files)}
        except InputError:
            continue
    if not suffixes:
        hint = f"give a folder or zip of files with one clip each ({', '.join(sorted(known))}), or an .npz"
        if not clips.exists():
            raise InputError(f"{printable(str(clips))}: no such file or folder; {hint}")
        raise InputError(f"{printable(str(clips))}: contains no clip; {hint}")
    suffix = max(suffixes, key=lambda s: suffixes[s])
    formats = formats_by_suffix()[suffix]
    if len(formats) > 1:
        raise InputError(
            f"{printable(str(clips))}: {suffix} files may be {' or '.join(formats)}; choose one with --clip-format"
        )
    return formats[0]
