"""Prepare an Arrow data set from your own recordings: files with one clip each, a table of labels and a skeleton.

Examples:
  python -m data_prep.custom clips/ datasets/mine --labels labels.csv --skeleton coco-17 \\
      --benchmark x-sub:subject=1,2,3
  python -m data_prep.custom clips.npz datasets/mine --labels labels.csv --skeleton skeleton.json    with a column split

CLIPS is a folder or zip with one file per clip (formats: see --clip-format), or a single .npz with an array per name.
An array has shape (T, N, 3) for one person or (M, T, N, 3) for M persons; (T, N, 2) and (M, T, N, 2) are recordings in
the plane. A joint that was not seen is zero or NaN.

labels.csv has one line per clip. Its header names the columns: clip_id (the name of the file) and label (the name or
number of the class), and optionally subject, camera, setup and replication (numbers from 1, or names) and any others:
  clip_id,label,subject,split
  wave_001,wave,P01,train

--benchmark NAME:COLUMN=VALUES selects the training clips by the value of a column, all others are for testing;
NAME:COLUMN=VALUES/VALUES names the test values, too. The option can be repeated. Without it, each column whose name
begins with split and that contains train and test is a benchmark.

--skeleton takes the name of a known skeleton, or a file:
  {"name": "hand-5", "joints": ["wrist", "thumb", "index", "middle", "ring"],
   "bones": {"thumb": "wrist", "index": "wrist", "middle": "wrist", "ring": "wrist"},
   "centre": "wrist", "partitions": [[["wrist"], ["thumb"], ["index", "middle", "ring"]]]}
bones maps each joint to its parent; the root has none. centre is the joint that is moved to the origin. partitions
into body parts are optional; without them, P must be the number of joints (--set model.parts=5).

Frames and persons without any seen joint are removed, persons are matched between frames, and the centre joint of the
first person is moved to the origin. Units other than metres are converted. The report says what was done, and the same
is done with clips that are classified later.

A bad clip ends the command with exit code 2, and nothing is written; with --skip-bad such clips are left out and
listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fgst.cli.command import CommandParser
from fgst.cli.data_options import add_conversion_options, convert
from fgst.data.formats import FORMATS
from fgst.data.formats.custom import formats_by_suffix, open_custom, read_skeleton
from fgst.data.skeletons import SKELETONS


def build_parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser("python -m data_prep.custom", __doc__)
    parser.add_argument(
        "clips", metavar="CLIPS", type=Path, help="folder or zip of files with one clip each, or an .npz"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="the new directory, e.g. datasets/mine")
    parser.add_argument("--labels", type=Path, required=True, metavar="FILE", help="table of labels, labels.csv")
    parser.add_argument(
        "--skeleton",
        required=True,
        metavar="NAME|FILE",
        help=f"{', '.join(SKELETONS)}, or a description in JSON, skeleton.json",
    )
    parser.add_argument(
        "--benchmark", action="append", default=[], metavar="NAME:COLUMN=VALUES", help="which clips are for training"
    )
    parser.add_argument("--classes", type=Path, metavar="FILE", help="names of the classes, one per line, by label")
    parser.add_argument(
        "--clip-format",
        choices=FORMATS,
        help="format of the files in CLIPS (default: by their suffix: "
        + ", ".join(f"{suffix} {names[0]}" for suffix, names in formats_by_suffix().items() if len(names) == 1)
        + ")",
    )
    add_conversion_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = build_parser().parse_args(argv)
    skeleton = read_skeleton(args.skeleton)
    convert(
        args.clips,
        args,
        lambda: open_custom(
            args.clips,
            labels=args.labels,
            skeleton=skeleton,
            benchmarks=args.benchmark,
            classes=args.classes,
            clip_format=args.clip_format,
        ),
    )
