"""Options that the commands which convert other people's data have in common, and their report."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fgst.cli.data_report import Line, print_report
from fgst.config import RECIPES
from fgst.data.clip_source import ClipSource
from fgst.data.conversion import write_source
from fgst.data.normalization import UP_AXES, describe_removed
from fgst.data.writer import check_output
from fgst.errors import InputError
from fgst.parsing import printable

UNITS: dict[str, dict[str, Any]] = {
    "m": {"scale": 1.0, "scaling": "constant"},
    "cm": {"scale": 0.01, "scaling": "constant"},
    "mm": {"scale": 0.001, "scaling": "constant"},
    "px": {"scaling": "image"},
}
_LISTED = 20  # clips that were left out, in the report


def add_conversion_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the output and of the normalization."""
    group = parser.add_argument_group("coordinates (default: measured on the first clips, and reported)")
    group.add_argument("--unit", choices=UNITS, help="unit of the coordinates; px scales by the image or the torso")
    group.add_argument(
        "--up", choices=UP_AXES, metavar="AXIS", help=f"axis that points up: {', '.join(UP_AXES)} (--up=-y, with =)"
    )
    group.add_argument(
        "--third", choices=("z", "confidence"), help="what the third number of a joint is, if there are three"
    )
    group.add_argument(
        "--no-centre",
        action="store_true",
        help="keep the origin; default: the centre joint of the first person, where it is first seen",
    )
    parser.add_argument("--recipe", choices=RECIPES, help="sampling and augmentation (default: ntu)")
    parser.add_argument("--name", help="name of the data set (default: the name of OUT)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out bad clips and list them in the report")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing data set at OUT")


def normalization_changes(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of the normalization that the options set."""
    changes = dict(UNITS[args.unit]) if args.unit else {}
    if args.up:
        changes["up"] = args.up
    if args.third:
        changes["has_confidence"] = args.third == "confidence"
    if args.no_centre:
        changes["centred"] = False
    return changes


def convert(source: Path, args: argparse.Namespace, opened: Callable[[], AbstractContextManager[ClipSource]]) -> None:
    """Convert a source as the options say, and print the report.

    Args:
        source: what is converted, for messages.
        args: with ``out`` and the options of :func:`add_conversion_options`.
        opened: opens the source.
    """
    start = time.monotonic()
    check_output(args.out, overwrite=args.overwrite)
    if source.is_dir() and args.out.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{args.out}: is inside {printable(str(source))}; choose a directory outside of it")
    with opened() as clips:
        dataset, report = write_source(
            clips,
            args.out,
            name=args.name,
            recipe=args.recipe,
            normalization=normalization_changes(args),
            skip_bad=args.skip_bad,
            overwrite=args.overwrite,
        )
    lines: list[Line] = [
        ("read", f"{len(dataset):,} clips"),
        ("left out", f"{len(report.rejected) + report.empty.total():,} clips"),
        *(("", f"{printable(clip_id)}: {fault}") for clip_id, fault in report.rejected[:_LISTED]),
    ]
    if len(report.rejected) > _LISTED:
        lines.append(("", f"… and {len(report.rejected) - _LISTED:,} more"))
    if removed := describe_removed(report.removed):
        lines.append(("removed", ", ".join(removed)))
    lines += [("note", note) for note in report.notes]
    print_report(dataset.name, lines, dataset, args.out, time.monotonic() - start)
