"""Look at a data set: check every byte of it, print what is in it, draw a clip.

examples:
  python -m data_prep.inspect datasets/nw-ucla
  python -m data_prep.inspect datasets/nw-ucla --clip a01_s01_e00_v01 --out clip.png
  python -m data_prep.inspect datasets/nw-ucla --clip a01_s01_e00_v01 --animate --out clip.gif
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fgst.cli.command import CommandParser, run_command
from fgst.data.dataset import ArrowDataset
from fgst.data.report import describe, printable, writing_to
from fgst.errors import InputError


def find_clip(dataset: ArrowDataset, name: str) -> int:
    """The row of a clip by its name.

    Raises:
        InputError: with the names nearest to it, if there is none.
    """
    rows = np.flatnonzero(dataset.clip_ids == name)
    if len(rows):
        return int(rows[0])
    near = difflib.get_close_matches(name, dataset.clip_ids.tolist(), n=3, cutoff=0.4)
    raise InputError(
        f"--clip {name}: {dataset.name} has no clip of that name; "
        + (f"near it are {', '.join(near)}" if near else f"its first is {dataset.clip_ids[0]}")
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; exits with 2 and one line on stderr on bad input."""
    run_command(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    parser = CommandParser("python -m data_prep.inspect", __doc__)
    parser.add_argument("dataset", metavar="DIR", help="the data set: a directory, or s3://… gs://… file://…")
    parser.add_argument("--clip", metavar="NAME", help="draw this clip")
    parser.add_argument("--animate", action="store_true", help="as an animated GIF, 30 frames a second")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the picture; default: NAME.png or NAME.gif here")
    args = parser.parse_args(argv)
    if args.clip is None and (args.animate or args.out):
        raise InputError("--animate and --out draw a clip: name it with --clip")
    ending = ".gif" if args.animate else ".png"
    if args.out and args.out.suffix.lower() != ending:
        raise InputError(f"--out {args.out}: name a file that ends in {ending}")
    dataset = ArrowDataset(args.dataset)  # checks sizes, digests, columns, labels
    _check_values(dataset)
    if args.clip is None:
        print(f"{dataset.name}: every byte is as it was written")
        for label, value in [
            ("clips", f"{len(dataset):,}"),
            ("skeleton", f"{dataset.skeleton.name}, {dataset.skeleton.num_joints} joints"),
            ("recipe", dataset.recipe),
            *describe(dataset),
            ("source", ", ".join(f"{k} {v}" for k, v in dataset.source.items())),
            ("digest", dataset.digest),
        ]:
            print(f"  {label:<10}{value}")
        return
    row = find_clip(dataset, args.clip)
    out = args.out or Path(f"{printable(args.clip).replace('/', '_')}{ending}")
    columns = {column: int(values[row]) for column, values in dataset.columns.items()}
    title = f"{args.clip}: {dataset.classes[columns['label']]}"
    from fgst.evaluation.plots import clip_animation, clip_frames

    with writing_to(out):
        (clip_animation if args.animate else clip_frames)(dataset.clip(row), dataset.skeleton, title, out)
    print(title)
    for column, number in columns.items():
        known = number or column == "label"  # 0 stands for "not recorded"
        print(f"  {column:<12}{number if known else '-'}")
    print(f"  drawn to    {out}")


def _check_values(dataset: ArrowDataset) -> None:
    """What digests cannot tell: a writer that was wrong."""
    names, counts = np.unique(dataset.clip_ids.astype(str), return_counts=True)
    if (counts > 1).any():
        raise InputError(f"{dataset.path}: clip {names[counts > 1][0]} is there twice; prepare the data set again")
    for row in range(len(dataset)):
        if not np.isfinite(dataset.clip(row)).all():
            raise InputError(f"{dataset.path}: clip {dataset.clip_ids[row]} holds a number that is not finite")


if __name__ == "__main__":
    main()
