"""Every picture (matplotlib). Colours are told apart by the colour-blind too (Okabe and Ito)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgst.data.skeleton import Skeleton
from fgst.evaluation.metrics import Scores

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


def clip_frames(joints: np.ndarray, skeleton: Skeleton, title: str, path: str | os.PathLike[str]) -> None:
    """A clip as a row of skeletons over time, from the front above and from the side below; a colour a person.

    Args:
        joints: ``(M, T, N, 3)``; a person whose frame is all zero is not drawn there.
    """
    count = min(8, joints.shape[1])
    chosen = np.linspace(0, joints.shape[1] - 1, count).round().astype(int)
    figure, _ = _new(1.6 * count + 0.6, 4.6)
    figure.clear()
    axes = figure.subplots(2, count, squeeze=False)
    for row, view in enumerate(("front", "side")):
        for column, frame in enumerate(chosen):
            _draw_skeleton(axes[row, column], joints, int(frame), skeleton, view)
            axes[0, column].set_title(f"frame {frame + 1}", fontsize=8)
        axes[row, 0].set_ylabel(view, fontsize=9)
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def clip_animation(
    joints: np.ndarray, skeleton: Skeleton, title: str, path: str | os.PathLike[str], *, frames_per_second: int = 30
) -> None:
    """The same as a GIF, frame by frame, front and side beside each other."""
    from matplotlib.animation import FuncAnimation, PillowWriter

    figure, axes = _new(6.4, 3.8, columns=2)

    def draw(frame: int) -> list[Any]:
        for side, view in zip(axes, ("front", "side"), strict=True):
            side.clear()
            _draw_skeleton(side, joints, frame, skeleton, view)
            side.set_title(view, fontsize=9)
        figure.suptitle(f"{title}, frame {frame + 1} of {joints.shape[1]}", fontsize=10)
        return []

    animation = FuncAnimation(figure, draw, frames=joints.shape[1], blit=False)
    animation.save(Path(path), writer=PillowWriter(fps=frames_per_second), dpi=80)


def _draw_skeleton(axes: Any, joints: np.ndarray, frame: int, skeleton: Skeleton, view: str) -> None:
    """Bones and joints of every person in a frame; the axes are the same for all frames of the clip."""
    across = 0 if view == "front" else 2
    seen = np.asarray(joints.any(axis=(2, 3)))
    points = joints[seen][..., [across, 1]].reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    centre, reach = (low + high) / 2, max(float((high - low).max()) / 2, 1e-6) * 1.1
    for person in range(len(joints)):
        if not seen[person, frame]:
            continue
        place, colour = joints[person, frame][:, [across, 1]], (BLUE, ORANGE, GREEN, GREY)[person % 4]
        for joint, parent in enumerate(skeleton.parents):
            axes.plot(*place[[joint, parent]].T, color=colour, linewidth=1.2)
        axes.scatter(*place.T, s=5, color=colour)
    axes.set_xlim(centre[0] - reach, centre[0] + reach)
    axes.set_ylim(centre[1] - reach, centre[1] + reach)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])


def lengths(frames: np.ndarray, path: str | os.PathLike[str]) -> None:
    """How long the clips of a data set are: a histogram of their numbers of frames."""
    figure, axes = _new(6, 3.2)
    # Bins of whole frames, all equally wide: the last one holds no more lengths than the others.
    width = max(1, -(-(int(np.ptp(frames)) + 1) // 60))
    axes.hist(frames, bins=np.arange(frames.min(), frames.max() + width + 1, width) - 0.5, color=BLUE)
    axes.set_xlabel("frames")
    axes.set_ylabel("clips")
    axes.set_title(f"{len(frames):,} clips, median {np.median(frames):g} frames", fontsize=10)
    axes.grid(alpha=0.3)
    _save(figure, path)


def reliability(scores: Scores, path: str | os.PathLike[str], bins: int = 15) -> None:
    """How often the network is right when it is that sure: bars on the diagonal are well calibrated."""
    values = scores.scores.astype(np.float64)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    sure = (powers / powers.sum(axis=1, keepdims=True)).max(axis=1)
    place = np.minimum((sure * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    right = np.bincount(place, scores.predictions == scores.labels, bins)
    figure, (upper, lower) = _new(4.6, 4.8, rows=2, heights=(3, 1))
    edges = (np.arange(bins) + 0.5) / bins * 100
    some = counts > 0
    upper.bar(edges[some], 100 * right[some] / counts[some], width=92 / bins, color=BLUE, label="right")
    upper.plot([0, 100], [0, 100], color=ORANGE, lw=1.2, ls="--", label="as sure as right")
    upper.set_ylabel("right [%]")
    upper.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    lower.bar(edges, counts, width=92 / bins, color=GREY)
    lower.set_ylabel("clips")
    lower.set_xlabel("probability of the predicted class [%]")
    for axes in (upper, lower):
        axes.set_xlim(0, 100)
        axes.grid(alpha=0.3)
    _save(figure, path)


def class_changes(rows: Sequence[Mapping[str, Any]], first: str, second: str, path: str | os.PathLike[str]) -> None:
    """Accuracy of two networks by class, as Figure 6 of the paper: where the first gains and loses.

    Args:
        rows: in order from the top, each with ``class``, ``first``, ``second`` and ``difference`` in %.
        first, second: what the networks are called.
    """
    figure, (left, right) = _new(9.5, 0.26 * len(rows) + 1.6, columns=2, widths=(3, 2))
    places = np.arange(len(rows))[::-1]
    mine, theirs, gains = (np.array([row[key] for row in rows]) for key in ("first", "second", "difference"))
    left.hlines(places, np.minimum(mine, theirs), np.maximum(mine, theirs), color="#c8c8c8", lw=2, zorder=1)
    left.scatter(theirs, places, color=ORANGE, marker="s", s=22, label=second, zorder=2)
    left.scatter(mine, places, color=BLUE, marker="o", s=22, label=first, zorder=3)
    left.set_yticks(places, [str(row["class"]) for row in rows], fontsize=8)
    left.set_xlabel("top-1 of the class [%]")
    left.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    right.barh(places, gains, color=np.where(gains >= 0, BLUE, ORANGE), height=0.7)
    right.axvline(0, color="black", lw=0.8)
    right.set_yticks(places, [])
    right.set_xlabel("difference [points]")
    for axes in (left, right):
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.grid(alpha=0.3, axis="x")
    _save(figure, path)


def subsets(
    labels: Sequence[str],
    val: Sequence[tuple[float, float] | None],
    test: Sequence[tuple[float, float] | None],
    path: str | os.PathLike[str],
) -> None:
    """What ensembles reach, a row each: mean and standard deviation of top-1 in %, on validation and test clips."""
    figure, axes = _new(8.5, 0.32 * len(labels) + 1.4)
    places = np.arange(len(labels))[::-1]
    for figures, colour, marker, name in ((val, ORANGE, "s", "validation"), (test, BLUE, "o", "test")):
        there = [(place, *pair) for place, pair in zip(places, figures, strict=True) if pair is not None]
        if there:
            y, mean, std = np.array(there).T
            std = np.nan_to_num(std)
            axes.errorbar(
                mean, y, xerr=std if std.any() else None, fmt=marker, color=colour, ms=5, capsize=3, label=name
            )
    axes.set_yticks(places, labels, fontsize=8)
    axes.set_ylim(-0.7, len(labels) - 0.3)
    axes.set_xlabel("top-1 [%]")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    _save(figure, path)


def _new(
    width: float,
    height: float,
    columns: int = 1,
    rows: int = 1,
    heights: Sequence[float] | None = None,
    widths: Sequence[float] | None = None,
) -> tuple[Any, Any]:
    # The object interface: it needs no display and touches no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, height_ratios=heights, width_ratios=widths)


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    figure.savefig(Path(path))
