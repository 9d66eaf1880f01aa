"""Northwestern-UCLA: make an Arrow data set of the skeleton clips of all_sqe.zip.

example:
  python -m data_prep.nw_ucla downloads/all_sqe.zip datasets/nw-ucla

SOURCE is the zip as it was downloaded (nothing is unpacked), or the folder that it unpacks to. The public release
holds 1,484 JSON files, one a clip, each named by action, subject, episode and view: a01_s01_e00_v01.json. Views 1
and 2 train and view 3 tests (benchmark x-view, 1,020 and 464 clips); odd subjects train in benchmark x-sub.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fgst.cli.command import CommandParser, run_command
from fgst.data.dataset import ArrowDataset, Benchmark, Clip
from fgst.data.report import Line, print_report, printable, tracked, writing_to
from fgst.data.skeleton import NW_UCLA_20
from fgst.data.sources import ClipError, ClipFile, open_source
from fgst.data.writer import check_output, write_dataset
from fgst.errors import InputError

CLASSES = (
    "pick up with one hand", "pick up with two hands", "drop trash", "walk around", "sit down", "stand up",
    "donning", "doffing", "throw", "carry",
)  # fmt: skip
ACTIONS = (1, 2, 3, 4, 5, 6, 8, 9, 11, 12)  # number in the file name, in the order of CLASSES
SUBJECTS, VIEWS = 10, 3
BENCHMARKS = (
    Benchmark("x-view", "camera", train=(1, 2), test=(3,)),
    Benchmark("x-sub", "subject", train=(1, 3, 5, 7, 9), test=(2, 4, 6, 8, 10)),
)
# The longest clip takes 124 KiB. Beyond this a file is no clip, and reading it could take all memory.
MAX_FILE_BYTES = 16 * 1024 * 1024

_NAME = re.compile(r"a([0-9]{2})_s([0-9]{2})_e([0-9]{2})_v([0-9]{2})")


@dataclass
class Reading:
    """What became of the files of the source; complete when all clips are read."""

    read: int = 0
    kept: int = 0
    strays: int = 0  # files that are not JSON
    left_out: list[tuple[str, str]] = field(default_factory=list)  # place in the source, fault
    content: Any = field(default_factory=hashlib.sha256)  # of the pairs of clip name and digest

    def record(self) -> dict[str, Any]:
        return {
            "preparation": "nw-ucla",
            "release": "all_sqe",
            "sha256": self.content.hexdigest(),
            "files": self.read,
            "kept": self.kept,
            "left_out": len(self.left_out),
            "not_json": self.strays,
        }


def prepare(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> tuple[ArrowDataset, Reading]:
    """Make the data set ``out`` of the zip or folder ``source``.

    Clips are written in the order of their names, as they are: metres in the frame of the camera, ``(1, T, 20, 3)``.

    Args:
        skip_bad: leave faulty files out and note them in the :class:`Reading`, instead of stopping at the first.
        overwrite: replace a data set that is at ``out``.

    Raises:
        InputError: naming the file and its fault; nothing is written then.
    """
    source, out = Path(source), Path(out)
    check_output(out, overwrite=overwrite)
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{printable(str(out))}: lies inside SOURCE; name a directory outside of it")
    with open_source(source, suffix=".json", max_bytes=MAX_FILE_BYTES, hint="name all_sqe.zip or its folder") as found:
        files, reading = list(found.files), Reading(strays=found.strays)
        files.sort(key=lambda file: (file.name, file.place))
        record: dict[str, Any] = {}  # filled by _clips at its end, before write_dataset looks at it
        # Closed before a message is printed, or the progress bar would be drawn over it.
        with closing(_clips(source, files, reading, record, skip_bad=skip_bad)) as clips, writing_to(out):
            first = next(clips, None)
            if first is None:
                place, fault = reading.left_out[0]
                raise InputError(
                    f"{printable(str(source))}: none of its {reading.read} JSON files is a clip (the first, {place}: "
                    f"{fault}); name all_sqe.zip or its folder"
                )
            dataset = write_dataset(
                out,
                itertools.chain([first], clips),
                name="nw-ucla",
                skeleton=NW_UCLA_20,
                classes=CLASSES,
                benchmarks=BENCHMARKS,
                recipe="nw-ucla",
                source=record,
                overwrite=overwrite,
            )
    return dataset, reading


def _clips(
    source: Path, files: Sequence[ClipFile], reading: Reading, record: dict[str, Any], *, skip_bad: bool
) -> Generator[Clip, None, None]:
    """Read the files one by one, keeping the account in ``reading``, and at the end in ``record``."""
    copies = {name: list(group) for name, group in itertools.groupby(files, key=lambda file: file.name)}
    with closing(tracked(files, len(files), "reading clips")) as progress:
        for file in progress:
            reading.read += 1
            try:
                content = file.read()
                if len(copies[file.name]) > 1:
                    _check_copies(file, copies[file.name], content)
                clip = _parse(file.name, content)
            except ClipError as fault:
                if not skip_bad:
                    raise InputError(
                        f"{printable(str(source))}: {file.place}: {fault}; mend or remove that file, or leave such "
                        "files out with --skip-bad"
                    ) from None
                reading.left_out.append((file.place, str(fault)))
                continue
            reading.kept += 1
            reading.content.update(f"{file.name} {hashlib.sha256(content).hexdigest()}\n".encode())
            yield clip
    record.update(reading.record())


def _check_copies(file: ClipFile, copies: Sequence[ClipFile], content: bytes) -> None:
    """Of equal copies all but the first are too many; of different ones nobody can tell which is right."""
    others = [copy for copy in copies if copy is not file]
    if file is not copies[0] or any(copy.read() != content for copy in others):
        raise ClipError(f"clip {file.name} occurs {len(copies)} times, also as {others[0].place}")


def _parse(name: str, content: bytes) -> Clip:
    """Turn the JSON of one clip into a Clip, or say in a ClipError what is wrong with it."""
    action, subject, episode, view = _parse_name(name)
    label = ACTIONS.index(action)
    fields = _fields(content)
    if "file_name" in fields and fields["file_name"] != name:
        raise ClipError(f"calls itself {_shown(fields['file_name'])} in file_name, against the name of the file")
    # True == 1, but is no label
    if "label" in fields and (fields["label"] != label + 1 or isinstance(fields["label"], bool)):
        raise ClipError(f"has label {_shown(fields['label'])}, but its name stands for label {label + 1}")
    joints = _joints(fields["skeletons"])[None]  # (1, T, 20, 3)
    return Clip(name, label, joints, subject=subject, camera=view, replication=episode)


def read_joints(content: bytes) -> np.ndarray:
    """The joints of a clip's JSON, ``(1, T, 20, 3)`` float32, whatever it is called and labelled.

    Raises:
        ClipError: saying why it is no clip.
    """
    return _joints(_fields(content)["skeletons"])[None]


def _fields(content: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ClipError(f"is not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise ClipError("is nested too deeply to be a clip") from None
    except ValueError as error:  # JSONDecodeError, and a whole number of thousands of digits
        raise ClipError(f"is not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise ClipError("holds no JSON object")
    if "skeletons" not in fields:
        raise ClipError("has no key 'skeletons'")
    return fields


def _parse_name(name: str) -> tuple[int, int, int, int]:
    """Action, subject, episode and view."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ClipError("is not named like a clip, a01_s01_e00_v01.json")
    action, subject, episode, view = map(int, match.groups())
    if action not in ACTIONS:
        raise ClipError(f"is named after action {action:02d}; there are {', '.join(f'{a:02d}' for a in ACTIONS)}")
    if not 1 <= subject <= SUBJECTS:
        raise ClipError(f"is named after subject {subject:02d}; there are 01 to {SUBJECTS}")
    if not 1 <= view <= VIEWS:
        raise ClipError(f"is named after view {view:02d}; there are 01 to {VIEWS:02d}")
    return action, subject, episode, view


def _joints(frames: Any) -> np.ndarray:
    """``(T, 20, 3)`` float32 from nested lists."""
    if not isinstance(frames, list):
        raise ClipError("skeletons is no list of frames")
    if not frames:
        raise ClipError("has no frame")
    N = NW_UCLA_20.num_joints
    for t, frame in enumerate(frames):
        if not isinstance(frame, list) or len(frame) != N:
            raise ClipError(f"frame {t} is {_kind(frame, 'joints')} instead of {N} joints")
        for n, joint in enumerate(frame):
            if not isinstance(joint, list) or len(joint) != 3:
                raise ClipError(f"frame {t}, joint {n} is {_kind(joint, 'numbers')} instead of 3 numbers")
    values = [value for frame in frames for joint in frame for value in joint]
    for i, value in enumerate(values):
        if type(value) is not float and type(value) is not int:  # a bool is an int, and no coordinate
            raise ClipError(f"{_place(i)} is {_shown(value)}, not a number")
    try:
        numbers = np.array(values, dtype=np.float64)
    except OverflowError:
        raise ClipError("a coordinate is too big a number") from None
    wrong = ~(np.abs(numbers) <= np.finfo(np.float32).max)  # NaN compares false
    if wrong.any():
        i = int(np.argmax(wrong))
        fault = "too big a number" if np.isfinite(numbers[i]) else "not a finite number"
        raise ClipError(f"{_place(i)} is {numbers[i]:g}, {fault}")
    return numbers.astype(np.float32).reshape(-1, N, 3)


def _place(i: int) -> str:
    t, n, axis = np.unravel_index(i, (i // (NW_UCLA_20.num_joints * 3) + 1, NW_UCLA_20.num_joints, 3))
    return f"{'xyz'[axis]} of frame {t}, joint {n}"


def _kind(value: Any, what: str) -> str:
    return f"{len(value)} {what}" if isinstance(value, list) else _shown(value)


def _shown(value: Any) -> str:
    """A JSON value, cut short."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return printable(text if len(text) <= 40 else text[:40] + "...")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; exits with 2 and one line on stderr on bad input."""
    run_command(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    parser = CommandParser("python -m data_prep.nw_ucla", __doc__)
    parser.add_argument("source", metavar="SOURCE", type=Path, help="all_sqe.zip, or the folder it unpacks to")
    parser.add_argument("out", metavar="OUT", type=Path, help="the new directory, e.g. datasets/nw-ucla")
    parser.add_argument("--skip-bad", action="store_true", help="leave faulty files out and list them in the report")
    parser.add_argument("--overwrite", action="store_true", help="replace the data set that is at OUT")
    args = parser.parse_args(argv)
    began = time.monotonic()
    dataset, reading = prepare(args.source, args.out, skip_bad=args.skip_bad, overwrite=args.overwrite)
    lines: list[Line] = [
        ("read", f"{reading.read:,} JSON files"),
        ("kept", f"{reading.kept:,} clips"),
        ("left out", f"{len(reading.left_out):,} files"),
        *(("", f"{place}: {fault}") for place, fault in reading.left_out),
    ]
    if reading.strays:
        lines.append(("ignored", f"{reading.strays:,} files that are not JSON"))
    print_report("Northwestern-UCLA", lines, dataset, args.out, time.monotonic() - began)


if __name__ == "__main__":
    main()
