"""Evaluation of a run by its id: score a split with the run's networks, and log a report to the run."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mlflow.exceptions import MlflowException

from fgst.data.dataset import ArrowDataset, open_recorded
from fgst.data.loader import ClipLoader, choose_device
from fgst.data.writer import writing_to
from fgst.errors import InputError
from fgst.evaluation import analysis
from fgst.evaluation.ensemble import EnsembleCard, fuse
from fgst.evaluation.metrics import Scores
from fgst.evaluation.report import make_report, write_comparison, write_report
from fgst.evaluation.scoring import score
from fgst.model.card import ModelCard, load_model
from fgst.tracking.queries import finite_or_none
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags

LOGGED_METRICS = ("top1", "top5", "mean_class", "loss", "ece", "clips_per_second")


@dataclass(frozen=True)
class ScoredRun:
    """A run's scores of a split.

    Attributes:
        scores: scores of all clips of the split.
        card: description of the network; for an ensemble, of its first network.
        dataset: name of the data set.
        digest: digest of the data set.
        modalities: modalities of the networks, in order.
        seconds: time that scoring took.
    """

    scores: Scores
    card: ModelCard
    dataset: str
    digest: str
    modalities: tuple[str, ...]
    seconds: float

    @property
    def digest_matches(self) -> bool:
        """Whether the data set is the one that the network was trained on."""
        return self.digest == self.card.dataset_digest


def evaluate(
    run_id: str,
    dataset: str | None = None,
    split: str = "test",
    *,
    compare: str | None = None,
    log: bool = False,
    out: Path | None = None,
    figure_format: str = "png",
    on_report: Callable[[dict[str, Any]], None] = lambda report: None,
    device: str = "auto",
    tracking_uri: str | None = None,
) -> dict[str, Any]:
    """Evaluate a run's network, or its fused networks, on a split.

    Args:
        run_id: a training or an ensemble; the first digits are enough.
        dataset: path or URI of the data set; ``None`` for the location that the run recorded.
        split: "train", "val" or "test" of the run's benchmark and protocol.
        compare: another run, which is scored on the same clips.
        log: log the report to the run: metrics ``eval/…`` and artifacts under ``eval/``.
        out: a folder for the same files as those that are logged, created if it does not exist.
        figure_format: format of the figures: png, svg or pdf.
        on_report: called with the report before it is logged, so that a failure to log it does not lose it.
        device: "auto", "cpu", "cuda" …
        tracking_uri: the tracking store; see :func:`fgst.tracking.uris.resolve_uri` for the default.

    Returns:
        JSON values: those of :func:`fgst.evaluation.report.make_report`, and ``run_id``, ``kind``, ``modalities``,
        ``split``, ``dataset``, ``benchmark``, ``digest_matches``, ``clips_per_second``, ``logged_top1`` (top-1 in %
        that the run logged, or ``None``) and, if requested, ``compare`` (see :func:`fgst.evaluation.analysis.compare`).

    Raises:
        InputError: if the run, its artifacts or the data set are missing or do not fit together, or if the report
            cannot be logged or written to ``out``.
    """
    torch_device = choose_device(device)
    store = TrackingStore.existing(tracking_uri)
    run_id = store.full_run_id(run_id)
    compare = None if compare is None else store.full_run_id(compare)
    run = store.run(run_id)
    scored = score_run(store, run_id, dataset, split, torch_device)
    classes = scored.card.classes
    report: dict[str, Any] = {
        "run_id": run_id,
        "kind": run.data.tags.get(Tags.KIND, "trial"),
        "modalities": list(scored.modalities),
        "split": split,
        "dataset": scored.dataset,
        "benchmark": scored.card.config.data.benchmark,
        "digest_matches": scored.digest_matches,
        "clips_per_second": scored.scores.num_clips / scored.seconds,
        # The logged accuracy of training clips is not comparable: it was measured on augmented clips while training.
        "logged_top1": None if split == "train" else finite_or_none(run.data.metrics.get(f"{split}/top1")),
        **make_report(scored.scores, classes),
    }
    if compare is not None:
        # Both runs are scored on the same data, even if the other one recorded another location of its data set.
        other = score_run(store, compare, dataset or scored.card.config.data.dataset, split, torch_device).scores
        report["compare"] = {"run_id": compare, **analysis.compare(scored.scores, other, classes)}
    on_report(report)
    if out is not None:
        with writing_to(out):
            _write(out, report, scored, figure_format)
    if log:
        try:
            _log(store, report, scored, figure_format)
        except (OSError, MlflowException, InputError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"the results were not stored with run {run_id} ({reason}); --no-log omits this") from None
    return report


def score_run(store: TrackingStore, run_id: str, dataset: str | None, split: str, device: torch.device) -> ScoredRun:
    """Score a split with a run's network, or with an ensemble's networks, fused by its weights.

    Raises:
        InputError: if the run, its artifacts or the data set are missing or do not fit together.
    """
    run = store.run(run_id)
    kind = run.data.tags.get(Tags.KIND)
    if kind == "sweep":
        candidates = [(Tags.ENSEMBLE, "its ensemble"), (Tags.BEST_RUN, "its best trial")]
        hints = [f"{what} is --run-id {run.data.tags[tag]}" for tag, what in candidates if tag in run.data.tags]
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


def _score_network(
    store: TrackingStore, run_id: str, dataset: str | None, split: str, device: torch.device
) -> ScoredRun:
    with store.artifacts(store.run(run_id).info.run_id, "checkpoint") as folder:
        model, card = load_model(folder)
    data = ArrowDataset(dataset) if dataset else open_recorded(card.config.data.dataset, f"run {run_id}")
    if data.skeleton != card.skeleton or data.classes != card.classes:
        raise InputError(f"{data.path}: the skeleton or the classes differ from those that run {run_id} was trained on")
    if data.digest != card.dataset_digest:
        if dataset is None:
            raise InputError(
                f"{data.path}: the data set has changed since run {run_id} was trained on it (digest "
                f"{data.digest[:12]}… instead of {card.dataset_digest[:12]}…); to evaluate on it anyway, pass "
                f"--dataset {shlex.quote(str(data.path))}"
            )
        print(f"note: {data.path} is not the data set that run {run_id} was trained on", file=sys.stderr)
    settings = card.config.data
    # Another data set may have too little to hold out; its test clips do not depend on that.
    splits = data.splits(settings.benchmark or "", validation=0) if split == "test" else data.splits_for(settings)
    rows = getattr(splits, split)
    if not len(rows):
        raise InputError(f"run {run_id} was trained with --protocol paper, which holds out no validation clips")
    loader = ClipLoader(data, rows, dataclasses.replace(settings, dataset=str(data.path)), device, split=split)
    start = time.perf_counter()
    scores = score(model.to(device), loader)
    return ScoredRun(scores, card, data.name, data.digest, (settings.modality,), time.perf_counter() - start)


def _write(folder: Path, report: dict[str, Any], scored: ScoredRun, figure_format: str) -> None:
    """Write a report, and the comparison with another run if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    write_report(folder, report, scored.scores, scored.card.classes, figure_format)
    if "compare" in report:
        other = report["compare"]["run_id"][:8]
        first, second = f"run {report['run_id'][:8]}", f"run {other}"
        per_class = report["compare"]["per_class"]
        write_comparison(folder / f"compare-{other}", per_class, first, second, figure_format)


def _log(store: TrackingStore, report: dict[str, Any], scored: ScoredRun, figure_format: str) -> None:
    """Log a report: artifacts always, metrics only if the data set is the one that the run was trained on."""
    run, split = store.open_run(report["run_id"]), report["split"]
    folder_name = split
    if report["digest_matches"]:
        run.log_metrics({f"eval/{split}/{name}": report[name] for name in LOGGED_METRICS}, step=0)
    else:
        folder_name = f"{split}-on-{scored.dataset}-{scored.digest[:8]}".replace("/", "-")
    with tempfile.TemporaryDirectory(prefix="fgst-evaluation-") as name:
        folder = Path(name) / "eval" / folder_name
        _write(folder, report, scored, figure_format)
        run.log_artifacts(Path(name))
