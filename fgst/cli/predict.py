"""Classify raw recordings with the network of a run or with an ensemble, and show the five most likely classes.

Examples:
  python -m fgst.predict --run-id 0123456789abcdef0123456789abcdef a03_s07_e02_v03.json
  python -m fgst.predict --run-id … S001C001P001R001A024.skeleton other.skeleton
  python -m fgst.predict --model champion recordings/            all raw files in a folder or zip archive
  cat clip.json | python -m fgst.predict --model champion --json -

Raw files are read and prepared like those of the run's data set: .skeleton of NTU RGB+D or a Kinect v2; .json of
NW-UCLA, Kinetics-skeleton or OpenPose (a folder of frames is one clip); .csv of MediaPipe, Kinect and others; .txt of
SHREC'17 and DHG; .pkl annotations of pyskl; or .npy arrays. Exit code 0: all files were classified; 1: some files are
not valid clips (the reasons are shown); 2: no file is a valid clip, or the arguments are invalid.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fgst import terminal
from fgst.cli.command import CommandParser
from fgst.cli.options import add_device_options, add_tracking_option, positive
from fgst.errors import InputError
from fgst.integrity import named_in_errors


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``fgst predict``."""
    parser = CommandParser("python -m fgst.predict", __doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run-id", metavar="RUN_ID", help="a training or an ensemble")
    which.add_argument(
        "--model",
        metavar="NAME",
        help="a registered model: champion (if there is only one model), NAME@champion or NAME/3",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="raw files, folders or zip archives; - for stdin")
    parser.add_argument(
        "--top", type=positive(int), default=5, metavar="K", help="number of most likely classes to show (default: 5)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    add_device_options(parser)
    add_tracking_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``fgst predict``."""
    args = build_parser().parse_args(argv)
    # lazy: torch and MLflow take seconds to import, and --help and invalid arguments need neither
    import torch

    from fgst.data.loader import choose_device
    from fgst.evaluation.inference import Predictor
    from fgst.evaluation.prediction import predict_files
    from fgst.tracking.registry import download_networks, resolve_model
    from fgst.tracking.store import TrackingStore

    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    store = TrackingStore.existing(args.tracking_uri)
    run_id = store.full_run_id(args.run_id) if args.run_id else resolve_model(store, args.model)
    with tempfile.TemporaryDirectory(prefix="fgst-networks-") as folder:
        download_networks(store, run_id, Path(folder))
        with named_in_errors(Path(folder), f"run {run_id}"):
            predictor = Predictor.load(Path(folder))
    rows = list(predict_files(predictor, args.files, args.top, device))
    if args.json:
        print(json.dumps({"run_id": run_id, "files": rows}, allow_nan=False))
    else:
        _print_table(rows)
    invalid = sum("fault" in row for row in rows)
    if invalid == len(rows):
        raise InputError(
            f"none of the {len(rows)} files is a valid clip; the first: {rows[0]['file']}: {rows[0]['fault']}"
        )
    if invalid:
        sys.exit(1)


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    # lazy: not needed with --json
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("file", "most likely", "%", "then")
    table.columns[0].overflow = "fold"  # on several lines if necessary, because file names often differ at the end
    table.columns[2].justify = "right"
    for row in rows:
        if "fault" in row:
            table.add_row(escape(row["file"]), f"[red]not a clip:[/red] {escape(row['fault'])}", "", "")
            continue
        first, *others = row["top"]
        then = ", ".join(f"{o['class']} {100 * o['probability']:.1f}" for o in others)
        table.add_row(escape(row["file"]), escape(first["class"]), f"{100 * first['probability']:.1f}", escape(then))
    terminal.print_table(Console(highlight=False), table)
