"""The report of an evaluation: metrics and analyses of a split's scores, and the files with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fgst.evaluation import analysis, plots
from fgst.evaluation.metrics import Scores
from fgst.table_files import records_to_csv


def make_report(scores: Scores, classes: Sequence[str]) -> dict[str, Any]:
    """Compute the metrics of a split's scores.

    Args:
        scores: scores of all clips of the split.
        classes: class names.

    Returns:
        JSON values: ``num_clips``; ``top1`` with ``top1_interval`` (95 %, bootstrap), ``top5``, ``mean_class`` (mean
        over the classes' top-1) and ``ece`` (expected calibration error) in %; ``loss`` in nats; ``per_class``, a row
        per class; ``confused``, the most confused pairs of classes; ``confusion``, the number of clips by true class
        and predicted class.
    """
    per_class = scores.per_class(classes)
    recalls = [row["top1"] for row in per_class if isinstance(row["top1"], float)]
    return {
        "num_clips": scores.num_clips,
        "top1": scores.top(1),
        "top1_interval": list(analysis.bootstrap_interval(scores)),
        "top5": scores.top(5),
        "mean_class": sum(recalls) / len(recalls),
        "loss": scores.loss(),
        "ece": analysis.calibration_error(scores),
        "per_class": per_class,
        "confused": analysis.confused_pairs(scores, classes),
        "confusion": scores.confusion().tolist(),
    }


def write_report(
    folder: Path, report: Mapping[str, Any], scores: Scores, classes: Sequence[str], suffix: str = "png"
) -> None:
    """Write a report, its scores and its figures.

    Args:
        folder: an existing folder for the files.
        report: at least the values of :func:`make_report`.
        scores: the scores that it was made from.
        classes: class names.
        suffix: format of the figures: png, svg or pdf.
    """
    (folder / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    scores.save(folder / "scores.arrow")
    plots.confusion(scores, classes, folder / f"confusion.{suffix}")
    plots.reliability(scores, folder / f"calibration.{suffix}")
    (folder / "per_class.csv").write_text(records_to_csv(report["per_class"]))


def write_comparison(
    folder: Path, per_class: Sequence[Mapping[str, Any]], first: str, second: str, suffix: str = "png"
) -> None:
    """Write the per-class comparison of two networks as a table and as a figure.

    Args:
        folder: folder for the files, which is created.
        per_class: rows of :func:`fgst.evaluation.analysis.compare`.
        first: name of the first network.
        second: name of the second network.
        suffix: format of the figure: png, svg or pdf.
    """
    folder.mkdir(exist_ok=True)
    (folder / "per_class.csv").write_text(records_to_csv(flat_rows(per_class)))
    plots.class_changes(per_class, first, second, folder / f"per_class.{suffix}")


def flat_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Replace intervals in rows by two columns, e.g. ``interval`` by ``interval_low`` and ``interval_high``."""
    flat = []
    for row in rows:
        columns: dict[str, Any] = {}
        for name, value in row.items():
            columns |= (
                {f"{name}_low": value[0], f"{name}_high": value[1]} if name.endswith("interval") else {name: value}
            )
        flat.append(columns)
    return flat
