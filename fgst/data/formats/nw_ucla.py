"""Northwestern-UCLA: preparation of an Arrow data set from the JSON clips of ``all_sqe.zip``."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np

from fgst.data.dataset import ArrowDataset, Clip
from fgst.data.progress import tracked
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import NW_UCLA_20
from fgst.data.sources import MAX_FILE_BYTES, ClipError, ClipFile, open_source, parse_clip
from fgst.data.splits import Benchmark
from fgst.data.writer import check_output, write_dataset
from fgst.errors import InputError
from fgst.parsing import decode_json, printable, shorten

T = TypeVar("T")

CLASSES = (
    "pick up with one hand", "pick up with two hands", "drop trash", "walk around", "sit down", "stand up",
    "donning", "doffing", "throw", "carry",
)  # fmt: skip
ACTIONS = (1, 2, 3, 4, 5, 6, 8, 9, 11, 12)  # numbers in file names, in the order of CLASSES
SUBJECTS, VIEWS = 10, 3
BENCHMARKS = (
    Benchmark("x-view", "camera", train=(1, 2), test=(3,)),
    Benchmark("x-sub", "subject", train=(1, 3, 5, 7, 9), test=(2, 4, 6, 8, 10)),
)

_NAME = re.compile(r"a([0-9]{2})_s([0-9]{2})_e([0-9]{2})_v([0-9]{2})")


@dataclass
class Report:
    """Outcome of a preparation: which files were used, and which were rejected. It is complete once all clips are read.

    Attributes:
        num_files: number of JSON files.
        num_clips: number of clips in the data set.
        other_files: number of files with another suffix.
        rejected: path and fault of each JSON file that is not in the data set.
        content: a running SHA-256 over names and digests of the clips.
    """

    num_files: int = 0
    num_clips: int = 0
    other_files: int = 0
    rejected: list[tuple[str, str]] = field(default_factory=list)
    content: Any = field(default_factory=hashlib.sha256, repr=False)

    def source(self) -> dict[str, Any]:
        """Return the origin of the clips as ``dataset.json`` records it."""
        return {
            "preparation": "nw-ucla",
            "release": "all_sqe",
            "sha256": self.content.hexdigest(),
            "files": self.num_files,
            "kept": self.num_clips,
            "left_out": len(self.rejected),
            "not_json": self.other_files,
        }


def prepare(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> tuple[ArrowDataset, Report]:
    """Prepare a data set from a zip or folder of JSON clips.

    Clips are written in the order of their names, unchanged: in metres in camera coordinates, ``(1, T, 20, 3)``.

    Args:
        source: ``all_sqe.zip``, or the folder it unpacks to.
        out: the new directory.
        skip_bad: reject bad files and list them in the report, instead of stopping at the first.
        overwrite: replace an existing data set at ``out``.

    Raises:
        InputError: if a file is bad and ``skip_bad`` is not set, or no clip is usable; nothing is written then.
    """
    source, out = Path(source), Path(out)
    check_output(out, overwrite=overwrite)
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{printable(str(out))}: is inside SOURCE; choose a directory outside of it")
    hint = "give all_sqe.zip or the folder it unpacks to"
    with open_source(source, suffix=".json", max_bytes=MAX_FILE_BYTES, hint=hint) as listing:
        files = sorted(listing.files, key=lambda file: (file.name, file.path))
        report = Report(other_files=listing.other_files)
        origin: dict[str, Any] = {}  # _read_clips completes it before write_dataset reads it
        # Close the generator before an error message is printed, so that its progress bar is removed first.
        with closing(_read_clips(source, files, report, origin, skip_bad=skip_bad)) as clips:
            first = next(clips, None)
            if first is None:
                path, fault = report.rejected[0]
                raise InputError(
                    f"{printable(str(source))}: none of its {report.num_files} JSON files is a clip (the first, "
                    f"{path}: {fault}); {hint}"
                )
            dataset = write_dataset(
                out,
                itertools.chain([first], clips),
                name="nw-ucla",
                skeleton=NW_UCLA_20,
                classes=CLASSES,
                benchmarks=BENCHMARKS,
                recipe="nw-ucla",
                source=origin,
                overwrite=overwrite,
            )
    return dataset, report


def _read_clips(
    source: Path, files: Sequence[ClipFile], report: Report, origin: dict[str, Any], *, skip_bad: bool
) -> Generator[Clip, None, None]:
    """Read the files one by one and update ``report``; fill ``origin`` from it at the end."""
    copies = {name: list(group) for name, group in itertools.groupby(files, key=lambda file: file.name)}
    with closing(tracked(files, len(files), "reading clips")) as progress:
        for file in progress:
            report.num_files += 1
            try:
                content = file.read()
                if len(copies[file.name]) > 1:
                    _check_copies(file, copies[file.name], content)
                clip = parse_clip(functools.partial(_parse, name=file.name), content)
            except ClipError as fault:
                if not skip_bad:
                    raise InputError(
                        f"{printable(str(source))}: {file.path}: {fault}; fix or remove the file, or pass --skip-bad "
                        "to leave out such files"
                    ) from None
                report.rejected.append((file.path, str(fault)))
                continue
            report.num_clips += 1
            report.content.update(f"{file.name} {hashlib.sha256(content).hexdigest()}\n".encode())
            yield clip
    origin.update(report.source())


def _check_copies(file: ClipFile, copies: Sequence[ClipFile], content: bytes) -> None:
    """Raise ClipError for all but the first of several identical files, and for all files if they differ."""
    others = [copy for copy in copies if copy is not file]
    if file is not copies[0] or any(copy.read() != content for copy in others):
        raise ClipError(f"clip {file.name} occurs {len(copies)} times, also as {others[0].path}")


_Coordinate = Annotated[float, msgspec.Meta(ge=-float(np.finfo(np.float32).max), le=float(np.finfo(np.float32).max))]
_N = NW_UCLA_20.num_joints
_Frame = Annotated[list[tuple[_Coordinate, _Coordinate, _Coordinate]], msgspec.Meta(min_length=_N, max_length=_N)]


class _Skeletons(msgspec.Struct):
    """The joints of a clip's JSON, frame by frame."""

    skeletons: Annotated[list[_Frame], msgspec.Meta(min_length=1)]


class _LabelledSkeletons(_Skeletons):
    """A clip's JSON with its name and its label, which counts from 1."""

    file_name: str | None = None
    label: int | None = None


def _parse(content: bytes, name: str) -> Clip:
    """Convert the JSON of one clip; raises ClipError if it is malformed or contradicts the file name."""
    action, subject, episode, view = _parse_name(name)
    label = ACTIONS.index(action)
    fields = _decode(content, _LabelledSkeletons)
    if fields.file_name not in (None, name):
        raise ClipError(f"has file_name {shorten(repr(fields.file_name), 80)}, which differs from the name of the file")
    if fields.label not in (None, label + 1):
        raise ClipError(f"has label {fields.label}, but its name implies label {label + 1}")
    joints = np.array([fields.skeletons], np.float32)  # (1, T, 20, 3)
    return Clip(name, label, joints, subject=subject, camera=view, replication=episode)


def read_joints(content: bytes, skeleton: Skeleton = NW_UCLA_20) -> np.ndarray:
    """Parse the joints of a clip's JSON, ignoring its name and label.

    Args:
        content: the whole file.
        skeleton: not used, because all files have the same skeleton.

    Returns:
        ``(1, T, 20, 3)`` float32.

    Raises:
        ClipError: if it is not a clip.
    """
    return np.array([_decode(content, _Skeletons).skeletons], np.float32)


def encode_joints(joints: np.ndarray, skeleton: Skeleton) -> bytes:
    """Write the joints of one person, ``(T, 20, 3)``, as a clip's JSON without name and label."""
    del skeleton
    return json.dumps({"skeletons": joints.tolist()}).encode()


def _decode(content: bytes, kind: type[T]) -> T:
    try:
        return decode_json(content, kind)
    except ValueError as fault:
        raise ClipError(f"is not a clip ({fault})") from None


def _parse_name(name: str) -> tuple[int, int, int, int]:
    """Return the action, subject, episode and view in a file name."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ClipError("is not named like a clip, e.g. a01_s01_e00_v01.json")
    action, subject, episode, view = map(int, match.groups())
    if action not in ACTIONS:
        raise ClipError(f"is named after action {action:02d}; valid are {', '.join(f'{a:02d}' for a in ACTIONS)}")
    if not 1 <= subject <= SUBJECTS:
        raise ClipError(f"is named after subject {subject:02d}; valid are 01 to {SUBJECTS}")
    if not 1 <= view <= VIEWS:
        raise ClipError(f"is named after view {view:02d}; valid are 01 to {VIEWS:02d}")
    return action, subject, episode, view
