"""Prepare an Arrow data set of NTU RGB+D 60 or 120 from .skeleton files.

Examples:
  python -m data_prep.ntu nturgbd_skeletons_s001_to_s017.zip datasets/ntu-60 --edition 60
  python -m data_prep.ntu nturgbd_skeletons_s001_to_s017.zip nturgbd_skeletons_s018_to_s032.zip datasets/ntu-120 \\
      --edition 120 --exclude-list NTU_RGBD120_samples_with_missing_skeletons.txt
  python -m data_prep.ntu folder/of/skeleton/files datasets/ntu-60 --edition 60 --workers 4

Each SOURCE is a zip as downloaded (it is read without unpacking) or a folder of .skeleton files. Clips contain one or
two persons, in metres. They are cleaned by the usual rules of public code: ghost and noise bodies are removed,
fragments joined, the two bodies with the most motion selected, empty frames removed, and the spine of the first frame
moved to the origin.

Files that cannot be read are omitted and listed in OUT/report.json. An interrupted preparation resumes when the same
command is run again. The result is bit-identical for any number of workers.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path

from fgst.cli.command import CommandParser
from fgst.cli.data_report import Line, print_report
from fgst.data.dataset import ArrowDataset
from fgst.data.formats.ntu import ParallelMap, Report, prepare
from fgst.data.formats.ntu_names import EDITIONS
from fgst.data.formats.ntu_plan import read_exclude_list
from fgst.data.writer import writing_to
from fgst.errors import InputError, Interrupted

MAX_LISTED = 5  # unreadable files in the printed summary


def build_parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser("python -m data_prep.ntu", __doc__)
    parser.add_argument("sources", metavar="SOURCE", type=Path, nargs="+", help="zips or folders of .skeleton files")
    parser.add_argument("out", metavar="OUT", type=Path, help="the new directory, e.g. datasets/ntu-60")
    parser.add_argument(
        "--edition", choices=EDITIONS, required=True, help="NTU RGB+D 60 or 120; 120 includes the clips of 60"
    )
    parser.add_argument("--exclude-list", type=Path, metavar="FILE", help="file with names of clips to leave out")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="parallel workers (default: all cores)"
    )
    parser.add_argument("--address", metavar="ADDRESS", help='Ray cluster to run on; "auto" detects it')
    parser.add_argument("--overwrite", action="store_true", help="replace an existing data set at OUT")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = build_parser().parse_args(argv)
    if args.workers < 1:
        raise InputError(f"--workers is {args.workers}; it must be at least 1")
    exclude = read_exclude_list(args.exclude_list) if args.exclude_list else []
    start = time.monotonic()
    try:
        dataset, report = prepare(
            args.sources,
            args.out,
            edition=args.edition,
            exclude=exclude,
            parallel_map=_parallel_map(args.workers, args.address),
            overwrite=args.overwrite,
        )
        _draw_lengths(dataset, args.out)
    except KeyboardInterrupt:
        raise Interrupted("Finished files are saved next to OUT; run the same command to resume.") from None
    lines = _summary(report, args.out, exclude)
    print_report(f"NTU RGB+D {args.edition}", lines, dataset, args.out, time.monotonic() - start)


def _parallel_map(workers: int, address: str | None) -> ParallelMap | None:
    if workers == 1 and address is None:
        return None
    from fgst.sweep.backends.ray_session import ray_map  # lazy: a single process does not need Ray

    return functools.partial(ray_map, address=address, workers=workers)


def _draw_lengths(dataset: ArrowDataset, out: Path) -> None:
    """Add a histogram of the clips' lengths to the data set's directory."""
    from fgst.evaluation.plots import lengths  # lazy: --help does not need Matplotlib

    with writing_to(out):
        lengths(dataset.columns["num_frames"], dataset.path / "report.png")


def _summary(report: Report, out: Path, exclude: Sequence[str]) -> list[Line]:
    reasons = report.reasons()
    unreadable = [f"{r.path}: {r.fault}" for r in report.rejected if r.reason == "unreadable"]
    removed = ", ".join(f"{count:,} {reason}" for reason, count in sorted(report.removed.items()))
    lines: list[Line] = [
        ("read", f"{report.num_files:,} .skeleton files"),
        ("written", f"{report.num_clips:,} clips"),
        ("left out", f"{len(report.rejected):,} files (listed in {out}/report.json)"),
        *(("", f"{count:6,}  {reason}") for reason, count in sorted(reasons.items())),
        *(("", f"        {line}") for line in unreadable[:MAX_LISTED]),
    ]
    if len(unreadable) > MAX_LISTED:
        lines.append(("", f"        and {len(unreadable) - MAX_LISTED:,} more"))
    lines.append(("cleaned", removed or "nothing"))
    if exclude:
        lines.append(("excluded", f"{reasons['excluded']:,} of the {len(exclude):,} names on the list"))
    if report.other_files:
        lines.append(("ignored", f"{report.other_files:,} files that are not .skeleton"))
    return lines
