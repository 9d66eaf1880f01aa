"""Every picture (matplotlib). Colours are told apart by the colour-blind too (Okabe and Ito)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgst.metrics import Scores

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#707070"


def confusion(scores: Scores, classes: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Confusion matrix: share of each true class (rows) that was taken for each class (columns), in %."""
    matrix = scores.confusion()
    counts = matrix.sum(axis=1, keepdims=True)
    share = 100 * matrix / np.maximum(counts, 1)
    size = max(4.5, 0.45 * len(classes) + 2.5)
    figure, axes = _new(size, size)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    if len(classes) <= 20:
        for row, column in np.argwhere(matrix > 0):
            colour = "white" if share[row, column] > 55 else "black"
            axes.text(column, row, f"{share[row, column]:.0f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(classes)), [f"{c} ({n})" for c, n in zip(classes, counts[:, 0], strict=True)], fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true class (clips)")
    axes.set_title(f"{scores.num_clips} test clips, top-1 {scores.top(1):.1f} %", fontsize=10)
    figure.colorbar(image, ax=axes, fraction=0.045, label="% of the true class")
    _save(figure, path)


def learning_curves(curves: Mapping[str, Mapping[int, float]], path: str | os.PathLike[str]) -> None:
    """Loss and top-1 by epoch; ``curves`` has values by epoch for ``train/loss``, ``val/top1`` …, any may be empty."""
    from matplotlib.ticker import MaxNLocator

    figure, (left, right) = _new(9, 3.6, columns=2)
    for axes, quantity, unit in ((left, "loss", "cross-entropy [nats]"), (right, "top1", "top-1 [%]")):
        for split, colour in (("train", BLUE), ("val", ORANGE), ("test", GREEN)):
            points = curves.get(f"{split}/{quantity}", {})
            if points:
                epochs = sorted(points)
                marker = "o" if len(epochs) <= 25 else None
                label = {"train": "training, augmented", "val": "validation", "test": "test, last epoch"}[split]
                axes.plot(epochs, [points[e] for e in epochs], color=colour, marker=marker, ms=3.5, label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend(fontsize=8)
    _save(figure, path)


def sweep_curve(
    rows: Sequence[Mapping[str, Any]],
    axis: str,
    title: str,
    published: Mapping[str, float],
    source: str,
    path: str | os.PathLike[str],
) -> None:
    """Accuracy against the swept setting, with the paper's figures beside it.

    Args:
        rows: in order, each with ``label``, and ``val`` and ``test`` as (mean, std) in % or ``None``.
        published: the paper's figure of a label, in %, where there is one.
    """
    labels = [str(row["label"]) for row in rows]
    figure, axes = _new(max(6.0, 0.7 * len(labels) + 2), 4)
    places = np.arange(len(labels))
    for key, colour, name in (("val", ORANGE, "validation top-1"), ("test", BLUE, "test top-1")):
        there = [(x, *row[key]) for x, row in zip(places, rows, strict=True) if row[key] is not None]
        if there:
            x, mean, std = (np.array(column, dtype=float) for column in zip(*there, strict=True))
            axes.errorbar(x, mean, yerr=std if std.any() else None, color=colour, marker="o", capsize=3, label=name)
    known = [(x, published[label]) for x, label in zip(places, labels, strict=True) if label in published]
    if known:
        axes.plot(*zip(*known, strict=True), color=GREY, ls="--", marker="s", ms=4, label=f"paper, {source}")
    axes.set_xticks(places, [label.partition("=")[2] or label for label in labels])
    axes.set_xlabel(axis)
    axes.set_ylabel("top-1 [%]")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(fontsize=8)
    _save(figure, path)


def _new(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    # The object interface: it needs no display and touches no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    figure.savefig(Path(path))
