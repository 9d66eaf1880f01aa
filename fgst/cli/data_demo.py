"""Generate a data set of synthetic motion, which needs no download and contains no recordings of people.

Example:
  python -m data_prep.demo datasets/demo

Ten generated subjects of different build perform up to twelve actions in the NTU-25 skeleton, in metres, y up, at 30
frames per second. An action determines the joints of one or two limbs, or of the trunk. Head, arms and legs that do not
take part change between postures that only this subject has in this action, and in each recording some joints are
tracked badly. Two cameras record each performance. In benchmark x-sub, odd subjects are for training and even ones for
testing; in x-view, camera 2 is for training and camera 1 for testing. The same arguments give the same files, and
--clips 200 begins with the clips of --clips 100.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from fgst.cli.command import CommandParser
from fgst.cli.data_report import Line, print_report
from fgst.data.synthetic import ACTIONS, make_demo


def build_parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser("python -m data_prep.demo", __doc__)
    parser.add_argument("out", metavar="OUT", type=Path, help="the new directory, e.g. datasets/demo")
    parser.add_argument("--clips", type=int, default=1200, help="number of clips (default: %(default)s)")
    parser.add_argument(
        "--classes", type=int, default=8, help=f"number of actions, 2 to {len(ACTIONS)} (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing data set at OUT")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = build_parser().parse_args(argv)
    start = time.monotonic()
    dataset = make_demo(args.out, clips=args.clips, classes=args.classes, seed=args.seed, overwrite=args.overwrite)
    lines: list[Line] = [("clips", f"{len(dataset):,}"), ("seed", str(args.seed))]
    print_report("generated motion, not recordings", lines, dataset, args.out, time.monotonic() - start)
