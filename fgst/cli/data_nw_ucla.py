"""Prepare an Arrow data set of Northwestern-UCLA from the skeleton clips of all_sqe.zip.

Example:
  python -m data_prep.nw_ucla downloads/all_sqe.zip datasets/nw-ucla

SOURCE is the zip as downloaded (it is read without unpacking), or the folder it unpacks to. The public release has
1,484 JSON files, one per clip, named by action, subject, episode and view: a01_s01_e00_v01.json. In benchmark x-view,
views 1 and 2 are for training and view 3 for testing (1,020 and 464 clips); in x-sub, odd subjects are for training.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from fgst.cli.command import CommandParser
from fgst.cli.data_report import Line, print_report
from fgst.data.formats.nw_ucla import prepare


def build_parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser("python -m data_prep.nw_ucla", __doc__)
    parser.add_argument("source", metavar="SOURCE", type=Path, help="all_sqe.zip, or the folder it unpacks to")
    parser.add_argument("out", metavar="OUT", type=Path, help="the new directory, e.g. datasets/nw-ucla")
    parser.add_argument("--skip-bad", action="store_true", help="leave out bad files and list them in the report")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing data set at OUT")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = build_parser().parse_args(argv)
    start = time.monotonic()
    dataset, report = prepare(args.source, args.out, skip_bad=args.skip_bad, overwrite=args.overwrite)
    lines: list[Line] = [
        ("read", f"{report.num_files:,} JSON files"),
        ("written", f"{report.num_clips:,} clips"),
        ("left out", f"{len(report.rejected):,} files"),
        *(("", f"{path}: {fault}") for path, fault in report.rejected),
    ]
    if report.other_files:
        lines.append(("ignored", f"{report.other_files:,} files that are not JSON"))
    print_report("Northwestern-UCLA", lines, dataset, args.out, time.monotonic() - start)
