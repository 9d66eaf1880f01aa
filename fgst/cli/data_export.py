"""Export a data set to a file that other projects' code reads, with exactly its clips.

Examples:
  python -m data_prep.export datasets/ntu-60 NTU60_CS.npz --benchmark x-sub --frames 300
  python -m data_prep.export datasets/mine mine.pkl

OUT.npz has CTR-GCN's layout: the clips of one benchmark, padded with zeros to the longest clip or to --frames, of at
most two persons, with one-hot labels. OUT.pkl has pyskl's layout: annotations of all clips, and the lists of clips of
all benchmarks. Coordinates are those of the data set.

Names, subjects, class names, the skeleton and the lengths of clips, which CTR-GCN's layout lacks, are stored next to
its arrays, where its code ignores them. A file that is converted back therefore gives the same clips.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from fgst.cli.command import CommandParser
from fgst.cli.data_report import print_lines
from fgst.cli.options import positive
from fgst.data.dataset import ArrowDataset
from fgst.data.export import export


def build_parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser("python -m data_prep.export", __doc__)
    parser.add_argument("dataset", metavar="DATASET", help="data set: a directory, or a URI")
    parser.add_argument("out", metavar="OUT", type=Path, help="the new file, OUT.npz or OUT.pkl")
    parser.add_argument("--benchmark", metavar="NAME", help="its split (.npz, default: the first) or only its (.pkl)")
    parser.add_argument("--frames", type=positive(int), metavar="T", help="frames of the arrays in an .npz")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = build_parser().parse_args(argv)
    start = time.monotonic()
    dataset = ArrowDataset(args.dataset)
    notes = export(dataset, args.out, benchmark=args.benchmark, frames=args.frames, overwrite=args.overwrite)
    count = len(dataset)
    if args.out.suffix.lower() == ".npz":
        splits = dataset.splits(args.benchmark or "", validation=0)
        count = len(splits.train) + len(splits.test)
    print(dataset.name)
    print_lines(
        [
            ("exported", f"{count:,} clips"),
            *(("note", note) for note in notes),
            ("location", f"{args.out} ({args.out.stat().st_size / 1e6:.1f} MB)"),
            ("time", f"{time.monotonic() - start:.1f} s"),
        ]
    )
