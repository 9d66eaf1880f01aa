"""Prepare an Arrow data set from NumPy arrays, a table of labels and a skeleton.

Examples:
  python -m data_prep.custom clips/ datasets/mine --labels labels.csv --skeleton coco-17 \\
      --benchmark x-sub:subject=1,2,3
  python -m data_prep.custom clips/ datasets/mine --labels labels.csv --skeleton skeleton.json \\
      --benchmark x-sub:subject=1,2,3

CLIPS is a folder with one NAME.npy per clip, or a single .npz with an array per name. Arrays have shape (T, N, 3) for
one person, or (M, T, N, 3) for M persons; in frames in which a person is not visible, that person's coordinates are
zero.

labels.csv has one line per clip. Its header names the columns: clip_id and label (the name of the class), and
optionally subject, camera, setup and replication (whole numbers from 1):
  clip_id,label,subject
  wave_001,wave,1

--skeleton names a skeleton that ships, or a description in JSON, skeleton.json:
  {"name": "hand-5", "joints": ["wrist", "thumb", "index", "middle", "ring"],
   "bones": {"thumb": "wrist", "index": "wrist", "middle": "wrist", "ring": "wrist"},
   "centre": "wrist", "partitions": [[["wrist"], ["thumb"], ["index", "middle", "ring"]]]}
bones maps each joint to its parent; the root has none. centre is the joint that is moved to the origin. partitions
into body parts are optional; without them, P must be the number of joints (--set model.parts=5).

--benchmark NAME:COLUMN=VALUES defines a split: clips whose COLUMN is one of VALUES are for training, all others for
testing. The option can be repeated.

A bad clip ends the command with exit code 2, and nothing is written; with --skip-bad such clips are left out and
listed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from fgst.cli.command import CommandParser
from fgst.cli.data_report import Line, print_report
from fgst.config import RECIPES
from fgst.data.formats.custom import prepare, read_benchmark
from fgst.data.skeletons import SKELETONS


def build_parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser("python -m data_prep.custom", __doc__)
    parser.add_argument("clips", metavar="CLIPS", type=Path, help="folder of NAME.npy files, or an .npz")
    parser.add_argument("out", metavar="OUT", type=Path, help="the new directory, e.g. datasets/mine")
    parser.add_argument("--labels", type=Path, required=True, metavar="FILE", help="table of labels, labels.csv")
    parser.add_argument(
        "--skeleton",
        required=True,
        metavar="NAME|FILE",
        help=f"{', '.join(SKELETONS)}, or a description in JSON, skeleton.json",
    )
    parser.add_argument(
        "--benchmark", action="append", required=True, metavar="NAME:COLUMN=VALUES", help="which clips are for training"
    )
    parser.add_argument("--recipe", choices=RECIPES, default="ntu", help="sampling and augmentation (default: ntu)")
    parser.add_argument("--name", help="name of the data set (default: the name of OUT)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out bad clips and list them in the report")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing data set at OUT")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = build_parser().parse_args(argv)
    start = time.monotonic()
    dataset, rejected = prepare(
        args.clips,
        args.out,
        labels=args.labels,
        skeleton=args.skeleton,
        benchmarks=[read_benchmark(text) for text in args.benchmark],
        recipe=args.recipe,
        name=args.name,
        skip_bad=args.skip_bad,
        overwrite=args.overwrite,
    )
    lines: list[Line] = [
        ("read", f"{len(dataset):,} clips"),
        ("left out", f"{len(rejected):,} clips"),
        *(("", f"{clip_id}: {fault}") for clip_id, fault in rejected),
    ]
    print_report(dataset.name, lines, dataset, args.out, time.monotonic() - start)
