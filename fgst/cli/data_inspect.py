"""Inspect a data set: verify every byte, print a summary, draw a clip. Or list and draw the joints of a skeleton.

Examples:
  python -m data_prep.inspect datasets/nw-ucla
  python -m data_prep.inspect datasets/nw-ucla --clip a01_s01_e00_v01 --out clip.png
  python -m data_prep.inspect datasets/nw-ucla --clip a01_s01_e00_v01 --animate --out clip.gif
  python -m data_prep.inspect --skeleton coco-17 --out coco-17.png
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fgst.cli.command import CommandParser
from fgst.cli.data_report import describe, print_lines
from fgst.data.dataset import ArrowDataset
from fgst.data.formats.custom import read_skeleton
from fgst.data.layout import DESCRIPTION
from fgst.data.skeletons import SKELETONS
from fgst.data.writer import writing_to
from fgst.errors import InputError
from fgst.parsing import printable


def build_parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser("python -m data_prep.inspect", __doc__)
    parser.add_argument(
        "dataset", metavar="DIR", nargs="?", help="the data set: a directory, or s3://… gs://… file://…"
    )
    parser.add_argument(
        "--skeleton",
        metavar="NAME|FILE",
        help=f"list a skeleton's joints, and with --out draw them: {', '.join(SKELETONS)}, or a description in JSON",
    )
    parser.add_argument("--clip", metavar="NAME", help="draw this clip")
    parser.add_argument("--animate", action="store_true", help="draw it as an animated GIF at 30 frames per second")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the image file to write (default for a clip: NAME.png or NAME.gif in the current directory)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = build_parser().parse_args(argv)
    if (args.dataset is None) == (args.skeleton is None):
        raise InputError("name either a data set, DIR, or a skeleton, --skeleton NAME")
    if args.skeleton is not None:
        _show_skeleton(args)
    else:
        _show_dataset(args)


def _show_skeleton(args: argparse.Namespace) -> None:
    """List a skeleton's joints, and draw them if ``--out`` names a file."""
    if args.clip is not None or args.animate:
        raise InputError("--clip and --animate require a data set, DIR")
    skeleton = read_skeleton(args.skeleton)
    name = args.skeleton if args.skeleton in SKELETONS else skeleton.name
    if args.out:
        from fgst.evaluation.skeleton_plots import skeleton_figure  # lazy: the list does not need Matplotlib

        _check_suffix(args.out, ".png")
        with writing_to(args.out):
            skeleton_figure(skeleton, name, args.out)
    print(f"{name}: {skeleton.num_joints} joints")
    for joint, parent in enumerate(skeleton.parents):
        bone = "root" if parent == joint else f"bone from {parent + 1} {skeleton.joints[parent]}"
        print(f"  {joint + 1:>3}  {skeleton.joints[joint]:<20} {bone}{', centre' if joint == skeleton.centre else ''}")
    print_lines([("P", ", ".join(map(str, skeleton.known_parts)))])
    if args.out:
        print_lines([("picture", str(args.out))])


def _show_dataset(args: argparse.Namespace) -> None:
    """Verify a data set; print a summary, or draw a clip."""
    if args.clip is None and (args.animate or args.out):
        raise InputError("--animate and --out require --clip, which selects the clip to draw")
    suffix = ".gif" if args.animate else ".png"
    if args.out:
        _check_suffix(args.out, suffix)
    dataset = ArrowDataset(args.dataset)  # checks sizes, digests, columns, labels
    _check_values(dataset)
    if args.clip is None:
        _print_summary(dataset)
    else:
        out = args.out or Path(f"{printable(args.clip).replace('/', '_')}{suffix}")
        _draw(dataset, find_clip(dataset, args.clip), out, animate=args.animate)


def _check_suffix(out: Path, suffix: str) -> None:
    if out.suffix.lower() != suffix:
        raise InputError(f"--out {out}: choose a file name that ends in {suffix}")


def find_clip(dataset: ArrowDataset, name: str) -> int:
    """Return the row of a clip by its name.

    Raises:
        InputError: if there is none; the message suggests similar names.
    """
    rows = np.flatnonzero(dataset.clip_ids == name)
    if len(rows):
        return int(rows[0])
    names = dataset.clip_ids.tolist()
    containing = [known for known in names if name in known]  # with a folder or a suffix
    similar = [*containing, *difflib.get_close_matches(name, names, n=3, cutoff=0.4)]
    similar = list(dict.fromkeys(similar))[:3]
    raise InputError(
        f"--clip {name}: {dataset.name} has no such clip; "
        + (f"similar names are {', '.join(similar)}" if similar else f"its first is {dataset.clip_ids[0]}")
    )


def _check_values(dataset: ArrowDataset) -> None:
    """Check for errors that digests cannot detect, i.e. those of the program that wrote the data set."""
    names, counts = np.unique(dataset.clip_ids.astype(str), return_counts=True)
    if (counts > 1).any():
        raise InputError(f"{dataset.path}: clip {names[counts > 1][0]} occurs twice; prepare the data set again")
    for row in range(len(dataset)):
        if not np.isfinite(dataset.clip(row)).all():
            raise InputError(f"{dataset.path}: clip {dataset.clip_ids[row]} contains a number that is not finite")


def _print_summary(dataset: ArrowDataset) -> None:
    print(f"{dataset.name}: all files are intact")
    print_lines(
        [
            ("clips", f"{len(dataset):,}"),
            ("skeleton", f"{dataset.skeleton.name}, {dataset.skeleton.num_joints} joints"),
            ("recipe", dataset.recipe),
            *describe(dataset),
            ("source", ", ".join(f"{key} {value}" for key, value in dataset.source.items())),
            ("digest", dataset.digest),
            *(
                []
                if dataset.has_description_digest
                else [("note", f"{DESCRIPTION} has no digest, as in earlier versions; changes of it go unnoticed")]
            ),
        ]
    )


def _draw(dataset: ArrowDataset, row: int, out: Path, *, animate: bool) -> None:
    """Draw a clip and print its columns."""
    from fgst.evaluation.plots import clip_animation, clip_frames  # lazy: the summary does not need Matplotlib

    columns = {column: int(values[row]) for column, values in dataset.columns.items()}
    title = f"{dataset.clip_ids[row]}: {dataset.classes[columns['label']]}"
    with writing_to(out):
        (clip_animation if animate else clip_frames)(dataset.clip(row), dataset.skeleton, title, out)
    print(title)
    width = max(map(len, columns)) + 1
    for column, value in columns.items():
        recorded = value or column == "label"  # 0 means "not recorded"
        print(f"  {column:<{width}}{value if recorded else '-'}")
    print(f"  {'picture':<{width}}{out}")
