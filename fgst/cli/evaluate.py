"""Evaluate a run by its id, a single training or an ensemble: settings, weights and split come from the run itself.

Examples:
  python -m fgst.evaluate --run-id 0123456789abcdef0123456789abcdef
  python -m fgst.evaluate --model champion                       the registered ensemble
  python -m fgst.evaluate --run-id … --json | jq .top1
  python -m fgst.evaluate --run-id … --compare OTHER_RUN_ID      paired, clip by clip
  python -m fgst.evaluate --run-id … --split val
  python -m fgst.evaluate --run-id … --dataset /elsewhere/nw-ucla

It repeats the accuracy that the training logged, and writes what it found into the run: metrics eval/…, and artifacts
under eval/. Exit code 0: evaluated; 2: something is wrong with the input.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgst.cli.command import CommandParser
from fgst.cli.options import add_cache_option, add_device_options, add_tracking_option
from fgst.errors import InputError
from fgst.tracking.tags import Tags

if TYPE_CHECKING:
    import torch

    from fgst.evaluation.metrics import Scores
    from fgst.model.card import ModelCard
    from fgst.tracking.store import TrackingStore

SPLITS = ("train", "val", "test")


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser("python -m fgst.evaluate", __doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--run-id", metavar="RUN_ID", help="32 hexadecimal digits, as a training or a sweep prints: one, or an ensemble"
    )
    which.add_argument(
        "--model", metavar="NAME", help="a registered model: champion (where there is one), NAME@champion or NAME/3"
    )
    parser.add_argument("--dataset", metavar="DIR", help="a directory or URI; default: where the run found it")
    add_cache_option(parser)
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: test")
    parser.add_argument("--compare", metavar="RUN_ID", help="another run: the paired difference on the same clips")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of a table")
    parser.add_argument("--no-log", action="store_true", help="leave the run as it is")
    add_device_options(parser)
    add_tracking_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    # Late: `--help` and a typing error should not wait for these.
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    run_id = args.run_id
    if args.model:
        from fgst.tracking.registry import run_of
        from fgst.tracking.store import TrackingStore

        run_id = run_of(TrackingStore(args.tracking_uri), args.model)
    report = evaluate(
        run_id, args.dataset, args.split,
        compare=args.compare, log=not args.no_log, device=args.device, tracking_uri=args.tracking_uri,
    )  # fmt: skip
    if args.json:
        print(json.dumps(report))
    else:
        _print(report)


@dataclass(frozen=True)
class Scored:
    """A run's scores of a split, and what they belong to."""

    scores: Scores
    card: ModelCard  # of its network, or of the first of its networks
    dataset: str
    digest: str
    modalities: tuple[str, ...]
    seconds: float

    @property
    def digest_matches(self) -> bool:
        return self.digest == self.card.dataset_digest


def evaluate(
    run_id: str,
    dataset: str | None = None,
    split: str = "test",
    *,
    compare: str | None = None,
    log: bool = False,
    device: str = "auto",
    tracking_uri: str | None = None,
) -> dict[str, Any]:
    """Score a split with a run's network, or with its networks fused.

    Args:
        run_id: of a single training or of an ensemble.
        dataset: another place of the same data; ``None`` means the one that the run recorded.
        split: "train", "val" or "test", of the run's own benchmark and protocol.
        compare: another run, scored on the same clips.
        log: write the figures into the run as metrics ``eval/…`` and artifacts ``eval/…``.

    Returns:
        JSON values: ``run_id``, ``kind``, ``modalities``, ``split``, ``num_clips``, ``top1`` with ``top1_interval``
        (95 %, bootstrap), ``top5``, ``mean_class``, ``loss``, ``ece``, ``clips_per_second``, ``per_class`` (a row per
        class), ``confused`` (the most confused pairs), ``logged_top1`` (what the training logged of this split, or
        ``None``), ``dataset``, ``digest_matches``, ``compare`` (see :func:`fgst.evaluation.analysis.compare`). Accuracies in %.

    Raises:
        InputError: if the run, its artifacts or the data set are missing or do not fit together.
    """
    from fgst.data.loader import choose_device
    from fgst.evaluation import analysis
    from fgst.tracking.store import TrackingStore

    where = choose_device(device)
    store = TrackingStore(tracking_uri)
    run = store.run(run_id)
    done = score_run(store, run_id, dataset, split, where)
    scores, classes = done.scores, done.card.classes
    per_class = scores.per_class(classes)
    recalls = [row["top1"] for row in per_class if isinstance(row["top1"], float)]
    report: dict[str, Any] = {
        "run_id": run_id,
        "kind": run.data.tags.get(Tags.KIND, "trial"),
        "modalities": list(done.modalities),
        "split": split,
        "dataset": done.dataset,
        "benchmark": done.card.config.data.benchmark,
        "digest_matches": done.digest_matches,
        "num_clips": scores.num_clips,
        "top1": scores.top(1),
        "top1_interval": list(analysis.bootstrap_interval(scores)),
        "top5": scores.top(5),
        "mean_class": sum(recalls) / len(recalls),
        "loss": scores.loss(),
        "ece": analysis.calibration_error(scores),
        "clips_per_second": scores.num_clips / done.seconds,
        # Of the training clips the log has the accuracy while learning, on augmented clips: another figure.
        "logged_top1": None if split == "train" else run.data.metrics.get(f"{split}/top1"),
        "per_class": per_class,
        "confused": analysis.confused_pairs(scores, classes),
    }
    other = None
    if compare is not None:
        # On the data of this run, whatever the other one found where: they are compared clip by clip.
        place = dataset or done.card.config.data.dataset
        other = score_run(store, compare, place, split, where).scores
        report["compare"] = {"run_id": compare, **analysis.compare(scores, other, classes)}
    if log:
        _log(store, report, done, other)
    return report


def score_run(store: TrackingStore, run_id: str, dataset: str | None, split: str, device: torch.device) -> Scored:
    """Score a split with the network of a run, or with those of an ensemble, fused by its weights.

    Raises:
        InputError: if the run, its artifacts or the data set are missing or do not fit together.
    """
    from fgst.evaluation.ensemble import EnsembleCard, fuse

    run = store.run(run_id)
    kind = run.data.tags.get(Tags.KIND)
    if kind == "sweep":
        named = [(Tags.ENSEMBLE, "its ensemble"), (Tags.BEST_RUN, "its best trial")]
        hints = [f"{what} is --run-id {run.data.tags[tag]}" for tag, what in named if tag in run.data.tags]
        raise InputError(f"run {run_id} is a sweep, not a training; {', '.join(hints) or 'name one of its trials'}")
    if kind != "ensemble":
        return _score_network(store, run_id, dataset, split, device)
    with store.artifacts(run_id, "ensemble.json") as file:
        card = EnsembleCard.read(file)
    parts = {m.modality: _score_network(store, m.run_id, dataset, split, device) for m in card.members}
    first = next(iter(parts.values()))
    fused = fuse({name: part.scores for name, part in parts.items()}, card.weights, card.sharpness)
    return dataclasses.replace(
        first, scores=fused, modalities=tuple(parts), seconds=sum(part.seconds for part in parts.values())
    )


def _score_network(store: TrackingStore, run_id: str, dataset: str | None, split: str, device: torch.device) -> Scored:
    from fgst.data.dataset import ArrowDataset
    from fgst.data.loader import ClipLoader
    from fgst.evaluation.scoring import score
    from fgst.model.card import load_model

    with store.artifacts(store.run(run_id).info.run_id, "checkpoint") as folder:
        model, card = load_model(folder)
    data = ArrowDataset(dataset or card.config.data.dataset)
    if data.skeleton != card.skeleton or data.classes != card.classes:
        raise InputError(f"{data.path}: has another skeleton or other classes than the data run {run_id} learned from")
    if data.digest != card.dataset_digest:
        if dataset is None:
            raise InputError(
                f"{data.path}: has changed since run {run_id} was trained on it (digest {data.digest[:12]}… instead of "
                f"{card.dataset_digest[:12]}…); --dataset {data.path} evaluates on it all the same"
            )
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
    clips = ClipLoader(data, rows, dataclasses.replace(settings, dataset=str(data.path)), device, split=split)
    began = time.perf_counter()
    scores = score(model.to(device), clips)
    return Scored(scores, card, data.name, data.digest, (settings.modality,), time.perf_counter() - began)


def _log(store: TrackingStore, report: dict[str, Any], done: Scored, other: Scores | None) -> None:
    """Figures into the run: metrics for its own data, artifacts in a folder of their own for any."""
    from fgst.evaluation import plots

    run, split = store.open_run(report["run_id"]), report["split"]
    if report["digest_matches"]:
        names = ("top1", "top5", "mean_class", "loss", "ece", "clips_per_second")
        run.log_metrics({f"eval/{split}/{name}": report[name] for name in names}, step=0)
    place = split if report["digest_matches"] else f"{split}-on-{done.dataset}-{done.digest[:8]}".replace("/", "-")
    with tempfile.TemporaryDirectory(prefix="fgst-evaluation-") as name:
        folder = Path(name) / "eval" / place
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        done.scores.save(folder / "scores.arrow")
        plots.confusion(done.scores, done.card.classes, folder / "confusion.png")
        plots.reliability(done.scores, folder / "calibration.png")
        _to_csv(report["per_class"], folder / "per_class.csv")
        if other is not None:
            against = folder / f"compare-{report['compare']['run_id'][:8]}"
            against.mkdir()
            _to_csv(report["compare"]["per_class"], against / "per_class.csv")
            first, second = (f"run {r['run_id'][:8]}" for r in (report, report["compare"]))
            plots.class_changes(report["compare"]["per_class"], first, second, against / "per_class.png")
        run.log_artifacts(Path(name))


def _to_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    what = "ensemble" if report["kind"] == "ensemble" else "run"
    console.print(
        f"{what} {report['run_id']} ({', '.join(report['modalities'])}): {report['num_clips']} {report['split']} clips "
        f"of {report['dataset']} {report['benchmark']}",
        soft_wrap=True,
    )
    table = Table("class", "clips", "correct", "top-1 %")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in report["per_class"]:
        top1 = "-" if row["top1"] is None else f"{row['top1']:.1f}"
        table.add_row(row["class"], str(row["num_clips"]), str(row["correct"]), top1)
    console.print(table)
    if report["confused"]:
        console.print("most confused:")
    for pair in report["confused"]:
        shown = ", ".join(pair["clips"][:3]) + (", …" if len(pair["clips"]) > 3 else "")
        console.print(
            f"  {pair['true']} taken for {pair['predicted']}: {pair['count']} clips ({pair['share']:.0f} %): {shown}",
            soft_wrap=True,
        )
    logged = report["logged_top1"]
    by = "when it was fused" if report["kind"] == "ensemble" else "by the training"
    told = "" if logged is None else f" (logged {by}: {logged:.2f} %)"
    low, high = report["top1_interval"]
    lines = [
        f"top-1 {report['top1']:.2f} %{told}, 95 % interval {low:.1f} to {high:.1f} %",
        f"top-5 {report['top5']:.2f} %, mean over classes {report['mean_class']:.2f} %, "
        f"calibration error {report['ece']:.1f} %, {report['clips_per_second']:,.0f} clips/s",
    ]
    if "compare" in report:
        lines += _compared(report["compare"])
    for line in lines:
        console.print(line, soft_wrap=True)


def _compared(found: dict[str, Any]) -> list[str]:
    low, high = found["interval"]
    lines = [
        f"against {found['run_id']} ({found['second_top1']:.2f} %): {found['difference']:+.2f} % ({low:+.1f} to "
        f"{high:+.1f}); {found['only_first']} clips right here only, {found['only_second']} there only, McNemar p = "
        f"{found['p_value']:.2g}"
    ]
    changed = [row for row in found["per_class"] if row["difference"]]
    for words, rows in (("gains most", changed[:3]), ("loses most", changed[::-1][:3])):
        rows = [row for row in rows if (row["difference"] > 0) == (words == "gains most")]
        if rows:
            lines.append(f"  {words}: " + ", ".join(f"{row['class']} {row['difference']:+.1f}" for row in rows))
    return lines
