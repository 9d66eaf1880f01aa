"""Your own skeletons: make an Arrow data set of NumPy arrays, a table of labels and a description of the skeleton.

example:
  python -m data_prep.custom clips/ datasets/mine --labels labels.csv --skeleton skeleton.json \\
      --benchmark x-sub:subject=1,2,3

CLIPS is a folder with one NAME.npy for each clip (or a single .npz that holds them by name): numbers of shape
(T, N, 3) for one person, (M, T, N, 3) for M; a person who is not seen in a frame is zero there.

labels.csv has a line for each clip. Its heading names the columns: clip_id and label (the name of the class), and as
far as they are known subject, camera, setup and replication (whole numbers from 1):
  clip_id,label,subject
  wave_001,wave,1

skeleton.json:
  {"name": "hand-5", "joints": ["wrist", "thumb", "index", "middle", "ring"],
   "bones": {"thumb": "wrist", "index": "wrist", "middle": "wrist", "ring": "wrist"},
   "centre": "wrist", "partitions": [[["wrist"], ["thumb"], ["index", "middle", "ring"]]]}
bones go from each joint to the one nearer to the root; the root has none. centre is the joint moved to the origin.
partitions, into body parts, may be left out: then P is the number of joints (--set model.parts=5).

--benchmark NAME:COLUMN=VALUES says which clips train: those whose COLUMN is one of VALUES. All others test.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from fgst.cli.command import CommandParser, run_command
from fgst.data.dataset import RECIPES, ArrowDataset, Benchmark, Clip
from fgst.data.report import Line, print_report, printable, tracked, writing_to
from fgst.data.skeleton import Skeleton
from fgst.data.writer import check_output, write_dataset
from fgst.errors import InputError

OPTIONAL_COLUMNS = ("subject", "camera", "setup", "replication")


def read_skeleton(path: Path) -> Skeleton:
    """A skeleton from the JSON description above.

    Raises:
        InputError: naming what is wrong with it.
    """
    try:
        fields = json.loads(path.read_bytes())
        joints = [str(joint) for joint in fields["joints"]]
        bones = {str(child): str(parent) for child, parent in fields["bones"].items()}
        unknown = sorted({*bones, *bones.values(), str(fields["centre"])} - set(joints))
        if unknown:
            raise InputError(f"{path}: bones or centre name {unknown[0]!r}, which is not among the joints")
        return Skeleton(
            name=str(fields["name"]),
            joints=tuple(joints),
            parents=tuple(joints.index(bones.get(joint, joint)) for joint in joints),
            centre=joints.index(str(fields["centre"])),
            partitions=tuple(
                tuple(tuple(joints.index(str(joint)) for joint in part) for part in partition)
                for partition in fields.get("partitions", [])
            ),
        )
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        fault = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path}: is not a skeleton ({fault}); see --help") from None


def read_labels(path: Path) -> list[dict[str, str]]:
    """The lines of the table of labels, by column.

    Raises:
        InputError: naming the line and what is wrong with it.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = [column.strip() for column in reader.fieldnames or []]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    for column in ("clip_id", "label"):
        if column not in columns:
            raise InputError(f"{path}: has no column {column}; its heading is {', '.join(columns) or 'empty'}")
    found, seen = [], set()
    for number, row in enumerate(rows, start=2):
        values = {str(k).strip(): (v or "").strip() for k, v in row.items() if isinstance(v, str)}
        if not any(values.values()):
            continue
        clip = values.get("clip_id", "")
        if not clip or not values.get("label"):
            raise InputError(f"{path}, line {number}: lacks its clip_id or label")
        if clip in seen:
            raise InputError(f"{path}, line {number}: {clip} is there twice")
        for column in OPTIONAL_COLUMNS:
            if not re.fullmatch(r"[0-9]{0,9}", values.get(column, "")):
                raise InputError(f"{path}, line {number}: {column} is {values[column]!r}, not a whole number")
        seen.add(clip)
        found.append(values)
    if not found:
        raise InputError(f"{path}: names no clip")
    return found


def read_benchmark(text: str) -> Benchmark:
    """``x-sub:subject=1,2,3`` → the benchmark.

    Raises:
        InputError: if it is not written so.
    """
    match = re.fullmatch(r"([\w-]+):(\w+)=([0-9]+(?:,[0-9]+)*)", text)
    if match is None or match[2] not in OPTIONAL_COLUMNS:
        raise InputError(f"--benchmark {text}: write NAME:COLUMN=VALUES, e.g. x-sub:subject=1,2,3")
    return Benchmark(match[1], match[2], train=tuple(map(int, match[3].split(","))))


def prepare(
    clips: Path,
    out: Path,
    *,
    labels: Path,
    skeleton: Path,
    benchmarks: Sequence[Benchmark],
    recipe: str = "ntu",
    name: str | None = None,
    overwrite: bool = False,
) -> ArrowDataset:
    """Make the data set ``out`` of the arrays in ``clips``; the arguments are those of the command line.

    Classes are numbered in the order of their names.

    Raises:
        InputError: naming the file and what is wrong with it; nothing is written then.
    """
    check_output(out, overwrite=overwrite)
    if clips.is_dir() and out.resolve().is_relative_to(clips.resolve()):
        raise InputError(f"{out}: lies inside CLIPS; name a directory outside of it")
    body, rows = read_skeleton(skeleton), read_labels(labels)
    for benchmark in benchmarks:
        if not any(row.get(benchmark.column) for row in rows):
            raise InputError(f"{labels}: has no {benchmark.column}, by which benchmark {benchmark.name} splits")
    for number, benchmark in enumerate(benchmarks):
        if benchmark.name in [other.name for other in benchmarks[:number]]:
            raise InputError(f"--benchmark {benchmark.name}: is there twice; give each a name of its own")
        values = [int(row.get(benchmark.column) or 0) for row in rows]
        trained = sum(value in benchmark.train for value in values)
        if trained in (0, len(rows)):
            split = "train" if trained == 0 else "test"
            raise InputError(
                f"--benchmark {benchmark.name}: leaves no clip to {split}; {benchmark.column} is one of "
                f"{', '.join(map(str, sorted(set(values))[:20]))}"
            )
    classes = sorted({row["label"] for row in rows})
    source: dict[str, Any] = {"made_by": "data_prep.custom"}  # completed by _clips before it is written
    found = tracked(_clips(clips, rows, body, classes, source), total=len(rows), what="clips")
    with closing(found), writing_to(out):
        return write_dataset(
            out,
            found,
            name=name or out.name,
            skeleton=body,
            classes=classes,
            benchmarks=benchmarks,
            recipe=recipe,
            source=source,
            overwrite=overwrite,
        )


def _clips(
    folder: Path, rows: Sequence[Mapping[str, str]], skeleton: Skeleton, classes: Sequence[str], source: dict[str, Any]
) -> Generator[Clip, None, None]:
    read, content = _reader(folder), hashlib.sha256()
    for row in sorted(rows, key=lambda row: row["clip_id"]):
        clip_id = row["clip_id"]
        where = printable(f"{folder}: {clip_id}")
        joints = read(clip_id, where)
        if joints.dtype.kind not in "fiu":
            raise InputError(f"{where}: holds {joints.dtype}, not numbers")
        N = skeleton.num_joints
        if joints.ndim not in (3, 4) or joints.shape[-2:] != (N, 3) or 0 in joints.shape:
            raise InputError(f"{where}: has shape {joints.shape}, not (T, {N}, 3) or (M, T, {N}, 3)")
        joints = joints if joints.ndim == 4 else joints[None]
        content.update(f"{clip_id} {row['label']} ".encode() + np.ascontiguousarray(joints, "<f8").tobytes())
        columns = {column: int(row.get(column) or 0) for column in OPTIONAL_COLUMNS}
        yield Clip(clip_id, classes.index(row["label"]), joints, **columns)
    source["sha256"] = content.hexdigest()


def _reader(source: Path) -> Any:
    """A function that gives the array of a clip's name."""
    if source.is_dir():

        def from_folder(clip_id: str, where: str) -> np.ndarray:
            path = source / f"{clip_id}.npy"
            if path.resolve().parent != source.resolve():
                raise InputError(f"{where}: leaves the folder of the clips")
            try:
                return np.load(path, allow_pickle=False)
            except FileNotFoundError:
                raise InputError(f"{where}: there is no {path.name}") from None
            except (OSError, ValueError, EOFError) as error:
                raise InputError(f"{where}: is not an array of numbers ({error})") from None

        return from_folder
    try:
        archive = np.load(source, allow_pickle=False)
        names = set(archive.files)
    except FileNotFoundError:
        raise InputError(f"{source}: no such folder or file") from None
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise InputError(f"{source}: is neither a folder of .npy files nor an .npz ({error})") from None

    def from_archive(clip_id: str, where: str) -> np.ndarray:
        if clip_id not in names:
            raise InputError(f"{where}: there is no array of that name")
        try:
            return np.asarray(archive[clip_id])
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{where}: is not an array of numbers ({error})") from None

    return from_archive


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; exits with 2 and one line on stderr on bad input."""
    run_command(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    parser = CommandParser("python -m data_prep.custom", __doc__)
    parser.add_argument("clips", metavar="CLIPS", type=Path, help="folder of NAME.npy files, or an .npz")
    parser.add_argument("out", metavar="OUT", type=Path, help="the new directory, e.g. datasets/mine")
    parser.add_argument("--labels", type=Path, required=True, metavar="FILE", help="the table, labels.csv")
    parser.add_argument("--skeleton", type=Path, required=True, metavar="FILE", help="the description, skeleton.json")
    parser.add_argument(
        "--benchmark", action="append", required=True, metavar="NAME:COLUMN=VALUES", help="which clips train"
    )
    parser.add_argument("--recipe", choices=RECIPES, default="ntu", help="how clips become batches (default: ntu)")
    parser.add_argument("--name", help="of the data set; default: the name of OUT")
    parser.add_argument("--overwrite", action="store_true", help="replace the data set that is at OUT")
    args = parser.parse_args(argv)
    began = time.monotonic()
    dataset = prepare(
        args.clips, args.out, labels=args.labels, skeleton=args.skeleton, recipe=args.recipe, name=args.name,
        benchmarks=[read_benchmark(text) for text in args.benchmark], overwrite=args.overwrite,
    )  # fmt: skip
    lines: list[Line] = [("read", f"{len(dataset):,} clips")]
    print_report(dataset.name, lines, dataset, args.out, time.monotonic() - began)


if __name__ == "__main__":
    main()
