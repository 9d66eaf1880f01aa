"""Evaluate a run by its id: the settings, the weights and the split come from the run itself.

Examples:
  python -m fgst.evaluate --run-id 0123456789abcdef0123456789abcdef
  python -m fgst.evaluate --run-id … --json | jq .top1
  python -m fgst.evaluate --run-id … --split val
  python -m fgst.evaluate --run-id … --dataset /elsewhere/nw-ucla

It repeats the accuracy that the training logged. Exit code 0: evaluated; 2: something is wrong with the input.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from fgst.errors import CommandParser, InputError, run_command
from fgst.options import add_cache_option, add_device_options, add_tracking_option


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser("python -m fgst.evaluate", __doc__)
    parser.add_argument(
        "--run-id", required=True, metavar="RUN_ID", help="32 hexadecimal digits, as a training or a sweep prints"
    )
    parser.add_argument("--dataset", metavar="DIR", help="a directory or URI; default: where the run found it")
    add_cache_option(parser)
    parser.add_argument("--split", choices=("train", "val", "test"), default="test", help="default: test")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of a table")
    add_device_options(parser)
    add_tracking_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    # Late: `--help` and a typing error should not wait for these.
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    report = evaluate(args.run_id, args.dataset, args.split, device=args.device, tracking_uri=args.tracking_uri)
    if args.json:
        print(json.dumps(report))
    else:
        _print(report)


def evaluate(
    run_id: str,
    dataset: str | None = None,
    split: str = "test",
    *,
    device: str = "auto",
    tracking_uri: str | None = None,
) -> dict[str, Any]:
    """Score a split with a run's network.

    Args:
        run_id: of a single training.
        dataset: another place of the same data; ``None`` means the one that the run recorded.
        split: "train", "val" or "test", of the run's own benchmark and protocol.

    Returns:
        JSON values: ``run_id``, ``split``, ``num_clips``, ``top1``, ``top5``, ``mean_class``, ``loss``,
        ``per_class`` (a row per class), ``logged_top1`` (what the training logged of this split, or ``None``),
        ``dataset``, ``digest_matches``. Accuracies in %.

    Raises:
        InputError: if the run, its artifacts or the data set are missing or do not fit together.
    """
    from fgst.batches import ClipStore, choose_device
    from fgst.checkpoint import load_model
    from fgst.dataset import ArrowDataset
    from fgst.tracking import KIND, Tracking
    from fgst.training import score

    where = choose_device(device)
    store = Tracking(tracking_uri)
    run = store.run(run_id)
    if run.data.tags.get(KIND) == "sweep":
        best = run.data.tags.get("fgst.best_run")
        hint = f"its best trial is --run-id {best}" if best else "name one of its trials"
        raise InputError(f"run {run_id} is a sweep, not a training; {hint}")
    with store.artifacts(run_id, "checkpoint") as folder:
        model, card = load_model(folder)

    data = ArrowDataset(dataset or card.config.data.dataset)
    matches = data.digest == card.dataset_digest
    if data.skeleton != card.skeleton or data.classes != card.classes:
        raise InputError(f"{data.path}: has another skeleton or other classes than the data run {run_id} learned from")
    if not matches and dataset is None:
        raise InputError(
            f"{data.path}: has changed since run {run_id} was trained on it (digest {data.digest[:12]}… instead of "
            f"{card.dataset_digest[:12]}…); --dataset {data.path} evaluates on it all the same"
        )
    if not matches:
        print(f"note: {data.path} holds other clips than run {run_id} was trained with", file=sys.stderr)

    settings = card.config.data
    splits = data.splits(
        settings.benchmark or "",
        validation=settings.validation if settings.protocol == "validation" else 0,
        seed=settings.validation_seed,
    )
    rows = getattr(splits, split)
    if not len(rows):
        raise InputError(f"run {run_id} was trained with protocol paper, which holds no validation clips out")
    clips = ClipStore(data, rows, dataclasses.replace(settings, dataset=str(data.path)), where, split=split)
    scores = score(model.to(where), clips)
    per_class = scores.per_class(data.classes)
    recalls = [row["top1"] for row in per_class if isinstance(row["top1"], float)]
    return {
        "run_id": run_id,
        "split": split,
        "dataset": data.name,
        "benchmark": settings.benchmark,
        "digest_matches": matches,
        "num_clips": scores.num_clips,
        "top1": scores.top(1),
        "top5": scores.top(5),
        "mean_class": sum(recalls) / len(recalls),
        "loss": scores.loss(),
        # Of the training clips the log has the accuracy while learning, on augmented clips: another figure.
        "logged_top1": None if split == "train" else run.data.metrics.get(f"{split}/top1"),
        "per_class": per_class,
    }


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"run {report['run_id']}: {report['num_clips']} {report['split']} clips of {report['dataset']}")
    table = Table("class", "clips", "correct", "top-1 %")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in report["per_class"]:
        top1 = "-" if row["top1"] is None else f"{row['top1']:.1f}"
        table.add_row(row["class"], str(row["num_clips"]), str(row["correct"]), top1)
    console.print(table)
    logged = report["logged_top1"]
    told = "" if logged is None else f" (logged by the training: {logged:.2f} %)"
    figures = f"top-1 {report['top1']:.2f} %{told}, top-5 {report['top5']:.2f} %"
    console.print(f"{figures}, mean over classes {report['mean_class']:.2f} %", soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
