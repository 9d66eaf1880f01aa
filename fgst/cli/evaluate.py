"""Evaluate the network of a run, or an ensemble. Settings, weights and split are taken from the run.

Examples:
  python -m fgst.evaluate --run-id 0123456789abcdef0123456789abcdef
  python -m fgst.evaluate --model champion                       the registered ensemble
  python -m fgst.evaluate --run-id … --json | jq .top1
  python -m fgst.evaluate --run-id … --compare OTHER_RUN_ID      paired comparison on the same clips
  python -m fgst.evaluate --run-id … --compare OTHER_RUN_ID --out figures --format pdf --latex tables.tex
  python -m fgst.evaluate --run-id … --split val
  python -m fgst.evaluate --run-id … --dataset /elsewhere/nw-ucla

The accuracy that the training logged is reproduced exactly. The results are stored with the run: metrics eval/… and
artifacts under eval/. Exit code 0: success; 2: the arguments, the run or the data set are invalid.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fgst import terminal
from fgst.cli.command import CommandParser
from fgst.cli.options import (
    add_cache_option,
    add_device_options,
    add_figure_option,
    add_table_options,
    add_tracking_option,
)
from fgst.table_files import check_files, write_tables

SPLITS = ("train", "val", "test")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``fgst evaluate``."""
    parser = CommandParser("python -m fgst.evaluate", __doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--run-id",
        metavar="RUN_ID",
        help="a training or an ensemble: 32 hexadecimal digits, as printed by trainings and sweeps",
    )
    which.add_argument(
        "--model",
        metavar="NAME",
        help="a registered model: champion (if there is only one model), NAME@champion or NAME/3",
    )
    parser.add_argument(
        "--dataset", metavar="DIR", help="directory or URI of the data set (default: the one that the run recorded)"
    )
    add_cache_option(parser)
    parser.add_argument("--split", choices=SPLITS, default="test", help="the clips to evaluate (default: test)")
    parser.add_argument("--compare", metavar="RUN_ID", help="another run, for a paired comparison on the same clips")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--no-log", action="store_true", help="do not store the results with the run")
    add_table_options(parser)
    add_figure_option(parser)
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="write the report and its figures to this folder as well"
    )
    add_device_options(parser)
    add_tracking_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``fgst evaluate``."""
    args = build_parser().parse_args(argv)
    check_files(args.latex, args.csv)
    # lazy: torch and MLflow take seconds to import, and --help and invalid arguments need neither
    import torch

    from fgst.tracking.evaluation import evaluate
    from fgst.tracking.registry import resolve_model
    from fgst.tracking.store import TrackingStore

    if args.threads:
        torch.set_num_threads(args.threads)
    evaluate(
        args.run_id or resolve_model(TrackingStore.existing(args.tracking_uri), args.model),
        args.dataset,
        args.split,
        compare=args.compare,
        log=not args.no_log,
        out=args.out,
        figure_format=args.format,
        on_report=functools.partial(_print, args=args),
        device=args.device,
        tracking_uri=args.tracking_uri,
    )


def _print(report: dict[str, Any], args: argparse.Namespace) -> None:
    """Write the files of ``--latex`` and ``--csv``, and print the report."""
    if args.latex is not None or args.csv is not None:
        from fgst.cli import evaluate_tables  # lazy: not needed without files

        write_tables(evaluate_tables.report_tables(report), args.latex, args.csv)
    if args.json:
        _print_json(report)
    else:
        _print_report(report)


def _print_json(report: dict[str, Any]) -> None:
    print(json.dumps(report, allow_nan=False), flush=True)


def _print_report(report: dict[str, Any]) -> None:
    # lazy: not needed with --json
    from rich.console import Console

    from fgst.cli import evaluate_tables

    console = Console(highlight=False)
    kind = "ensemble" if report["kind"] == "ensemble" else "run"
    console.print(
        f"{kind} {report['run_id']} ({', '.join(report['modalities'])}): {report['num_clips']} {report['split']} clips "
        f"of {report['dataset']} {report['benchmark']}",
        soft_wrap=True,
    )
    terminal.print_table(console, evaluate_tables.per_class_table(report))
    if report["confused"]:
        console.print("most confused:")
    for pair in report["confused"]:
        clips = ", ".join(pair["clips"][:3]) + (", …" if len(pair["clips"]) > 3 else "")
        console.print(
            f"  {pair['true']} classified as {pair['predicted']}: {pair['count']} clips ({pair['share']:.0f} %): "
            f"{clips}",
            soft_wrap=True,
        )
    for line in _summary_lines(report):
        console.print(line, soft_wrap=True)


def _summary_lines(report: dict[str, Any]) -> list[str]:
    logged = ""
    if report["logged_top1"] is not None:
        by = "when it was built" if report["kind"] == "ensemble" else "by the training"
        logged = f" (logged {by}: {report['logged_top1']:.2f} %)"
    low, high = report["top1_interval"]
    lines = [
        f"top-1 {report['top1']:.2f} %{logged}, 95 % interval {low:.1f} to {high:.1f} %",
        f"top-5 {report['top5']:.2f} %, mean over classes {report['mean_class']:.2f} %, "
        f"calibration error {report['ece']:.1f} %, {report['clips_per_second']:,.0f} clips/s",
    ]
    return lines + _comparison_lines(report["compare"]) if "compare" in report else lines


def _comparison_lines(comparison: dict[str, Any]) -> list[str]:
    low, high = comparison["interval"]
    lines = [
        f"compared with {comparison['run_id']} ({comparison['second_top1']:.2f} %): {comparison['difference']:+.2f} % "
        f"({low:+.1f} to {high:+.1f}); only this run is correct on {comparison['only_first']} clips, only the other on "
        f"{comparison['only_second']}; McNemar p = {comparison['p_value']:.2g}"
    ]
    gains = [row for row in comparison["per_class"] if row["difference"] > 0][:3]
    losses = [row for row in reversed(comparison["per_class"]) if row["difference"] < 0][:3]
    for title, rows in (("largest gains", gains), ("largest losses", losses)):
        if rows:
            lines.append(f"  {title}: " + ", ".join(f"{row['class']} {row['difference']:+.1f}" for row in rows))
    return lines
