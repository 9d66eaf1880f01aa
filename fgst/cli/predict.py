"""What is done in a raw recording? The five most likely classes, by a run's network or an ensemble's.

Examples:
  python -m fgst.predict --run-id 0123456789abcdef0123456789abcdef a03_s07_e02_v03.json
  python -m fgst.predict --run-id … S001C001P001R001A024.skeleton other.skeleton
  python -m fgst.predict --model champion recordings/            every raw file in a folder, or in a zip
  cat clip.json | python -m fgst.predict --model champion --json -

A raw file is read and cleaned as the run's data set was made: .json of NW-UCLA, .skeleton of NTU RGB+D, .npy of one's
own arrays. Exit code 0: all are predicted; 1: some are no clips, each with its reason; 2: none is, or the input is
wrong.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgst.cli.command import CommandParser
from fgst.cli.options import add_device_options, add_tracking_option, positive
from fgst.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from fgst.evaluation.inference import Predictor

TOGETHER = 64  # clips that go through a network at a time
STDIN = "-"
Read = Callable[[], bytes]


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser("python -m fgst.predict", __doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run-id", metavar="RUN_ID", help="of a training or an ensemble")
    which.add_argument(
        "--model", metavar="NAME", help="a registered model: champion (where there is one), NAME@champion or NAME/3"
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="raw files, folders or zips of them, or - for stdin")
    parser.add_argument("--top", type=positive(int), default=5, metavar="K", help="classes to name (default 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of a table")
    add_device_options(parser)
    add_tracking_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    # Late: `--help` and a typing error should not wait for these.
    import torch

    from fgst.data.loader import choose_device
    from fgst.tracking.registry import collect, run_of
    from fgst.tracking.store import TrackingStore

    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    store = TrackingStore(args.tracking_uri)
    run_id = args.run_id or run_of(store, args.model)
    from fgst.evaluation.inference import Predictor

    with tempfile.TemporaryDirectory(prefix="fgst-networks-") as folder:
        collect(store, run_id, Path(folder))
        networks = Predictor.load(Path(folder))
    found = list(predict(networks, args.files, args.top, device))
    if args.json:
        print(json.dumps({"run_id": run_id, "files": found}))
    else:
        _print(found)
    faults = sum("fault" in row for row in found)
    if faults == len(found):
        raise InputError(
            f"none of the {len(found)} files is a clip; the first: {found[0]['file']}: {found[0]['fault']}"
        )
    if faults:
        sys.exit(1)


def predict(networks: Predictor, files: Sequence[str], top: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """What is done in each file, in order.

    Yields:
        ``{"file": …, "top": [{"class": …, "label": …, "probability": …}, …]}``, the likeliest first, or
        ``{"file": …, "fault": …}`` for one that is no clip.

    Raises:
        InputError: if a file or folder is not there.
    """
    from fgst.data.progress import tracked

    with ExitStack() as stack:
        listed = _list(files, networks.card.preparation, stack)
        waiting: list[tuple[str, np.ndarray | str]] = []
        for name, read in tracked(listed, len(listed), "reading clips"):
            try:
                waiting.append((name, networks.read(read())))
            except (InputError, OSError) as fault:
                waiting.append((name, str(fault)))
            if len(waiting) == TOGETHER:
                yield from _settle(networks, waiting, top, device)
                waiting = []
        yield from _settle(networks, waiting, top, device)


def _settle(
    networks: Predictor, read: Sequence[tuple[str, np.ndarray | str]], top: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    clips = [clip for _, clip in read if not isinstance(clip, str)]
    answers = iter(networks.top(clips, top, device) if clips else [])
    for name, clip in read:
        yield {"file": name, "fault": clip} if isinstance(clip, str) else {"file": name, "top": next(answers)}


def _list(files: Sequence[str], preparation: str, stack: ExitStack) -> list[tuple[str, Read]]:
    """What to read, folders and zips opened: its name, and a function that gives its content."""
    from fgst.data.formats import FORMATS
    from fgst.data.sources import MAX_FILE_BYTES, ClipError, open_source, read_path

    def reading(read: Read) -> Read:
        def content() -> bytes:
            try:
                return read()
            except ClipError as fault:
                raise InputError(str(fault)) from None

        return content

    suffix, found = FORMATS[preparation].suffix, []
    for name in files:
        path = Path(name)
        if name == STDIN:
            found.append(("stdin", reading(lambda: sys.stdin.buffer.read(MAX_FILE_BYTES + 1))))
        elif path.is_dir() or path.suffix.lower() == ".zip":
            hint = f"this network learned from {suffix} files"
            source = stack.enter_context(open_source(path, suffix=suffix, max_bytes=MAX_FILE_BYTES, hint=hint))
            for file in sorted(source.files, key=lambda file: file.path):
                found.append((f"{name.rstrip('/')}/{file.path}", reading(file.read)))
        elif not path.exists():
            raise InputError(f"{name}: no such file or folder")
        else:
            found.append((name, reading(functools.partial(read_path, path, MAX_FILE_BYTES))))
    return found


def _print(found: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("file", "most likely", "%", "then")
    table.columns[0].overflow = "fold"  # whole, on several lines if need be: names differ at their ends
    table.columns[2].justify = "right"
    for row in found:
        if "fault" in row:
            table.add_row(escape(row["file"]), f"[red]no clip:[/red] {escape(row['fault'])}", "", "")
            continue
        first, *others = row["top"]
        then = ", ".join(f"{o['class']} {100 * o['probability']:.1f}" for o in others)
        table.add_row(escape(row["file"]), escape(first["class"]), f"{100 * first['probability']:.1f}", escape(then))
    Console(highlight=False).print(table)
