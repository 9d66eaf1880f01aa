"""Figures of data sets, trainings and evaluations. The palette is safe for colour-blind readers (Okabe and Ito)."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgst.data.skeleton import Skeleton
from fgst.evaluation.analysis import BINS, calibration_bins
from fgst.evaluation.metrics import Scores

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#707070"
TEXT_WIDTH = 7.0
"""Width in inches of a figure over both columns of a paper; its fonts have their size there."""
PAPER_STYLE = {
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e6e8",
    "grid.linewidth": 0.5,
    "text.parse_math": False,  # a dollar sign in a class name is no formula
    "savefig.dpi": 220,
}
MAX_CLASSES = 40  # of a figure with a row per class


def confusion(scores: Scores, classes: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Draw the confusion matrix of test clips: predicted classes (columns) in % of each true class (rows)."""
    matrix = scores.confusion()
    counts = matrix.sum(axis=1, keepdims=True)
    share = 100 * matrix / np.maximum(counts, 1)
    size = max(4.5, 0.45 * len(classes) + 2.5)
    figure, axes = new_figure(size, size)
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
    save_figure(figure, path)


def learning_curves(curves: Mapping[str, Mapping[int, float]], path: str | os.PathLike[str]) -> None:
    """Draw loss and top-1 by epoch.

    Args:
        curves: values by epoch of ``train/loss``, ``val/top1`` and so on; metrics may be missing or empty.
        path: the file to write.
    """
    from matplotlib.ticker import MaxNLocator  # lazy: matplotlib takes a second to import

    figure, (left, right) = new_figure(9, 3.6, columns=2)
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
    save_figure(figure, path)


def clip_frames(joints: np.ndarray, skeleton: Skeleton, title: str, path: str | os.PathLike[str]) -> None:
    """Draw frames of a clip side by side, seen from the front (upper row) and from the side (lower row).

    Each person has a colour.

    Args:
        joints: positions ``(M, T, N, 3)``; joints that were not seen, i.e. are zero, are not drawn.
        skeleton: the bones to draw.
        title: title above the frames.
        path: the file to write.
    """
    count = min(8, joints.shape[1])
    chosen = np.linspace(0, joints.shape[1] - 1, count).round().astype(int)
    figure, _ = new_figure(1.6 * count + 0.6, 4.6)
    figure.clear()
    axes = figure.subplots(2, count, squeeze=False)
    for row, view in enumerate(("front", "side")):
        for column, frame in enumerate(chosen):
            _draw_skeleton(axes[row, column], joints, int(frame), skeleton, view)
            axes[0, column].set_title(f"frame {frame + 1}", fontsize=8)
        axes[row, 0].set_ylabel(view, fontsize=9)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def clip_animation(
    joints: np.ndarray, skeleton: Skeleton, title: str, path: str | os.PathLike[str], *, frames_per_second: int = 30
) -> None:
    """Draw a clip as an animated GIF, seen from the front (left) and from the side (right).

    Args:
        joints: positions ``(M, T, N, 3)``; joints that were not seen, i.e. are zero, are not drawn.
        skeleton: the bones to draw.
        title: title above the frames.
        path: the file to write.
        frames_per_second: speed of the animation.
    """
    from matplotlib.animation import FuncAnimation, PillowWriter  # lazy: matplotlib takes a second to import

    figure, axes = new_figure(6.4, 3.8, columns=2)

    def draw(frame: int) -> list[Any]:
        for view_axes, view in zip(axes, ("front", "side"), strict=True):
            view_axes.clear()
            _draw_skeleton(view_axes, joints, frame, skeleton, view)
            view_axes.set_title(view, fontsize=9)
        figure.suptitle(f"{title}, frame {frame + 1} of {joints.shape[1]}", fontsize=10)
        return []

    animation = FuncAnimation(figure, draw, frames=joints.shape[1], blit=False)
    animation.save(Path(path), writer=PillowWriter(fps=frames_per_second), dpi=80)


def _draw_skeleton(axes: Any, joints: np.ndarray, frame: int, skeleton: Skeleton, view: str) -> None:
    """Draw the bones and joints of all persons in a frame; the axis limits are the same for all frames of the clip."""
    horizontal = 0 if view == "front" else 2
    seen = seen_joints(joints, skeleton.centre)
    points = joints[seen][:, [horizontal, 1]]
    for person in range(len(joints)):
        positions, colour = joints[person, frame][:, [horizontal, 1]], (BLUE, ORANGE, GREEN, GREY)[person % 4]
        for joint, parent in enumerate(skeleton.parents):
            if seen[person, frame, [joint, parent]].all():
                axes.plot(*positions[[joint, parent]].T, color=colour, linewidth=1.2)
        axes.scatter(*positions[seen[person, frame]].T, s=5, color=colour)
    fix_view(axes, points, margin=1.1)


def seen_joints(joints: np.ndarray, centre: int) -> np.ndarray:
    """Return which joints were seen, ``(M, T, N)``: those not at the origin, and the centre within a body around it."""
    seen = np.asarray(joints.any(axis=-1))
    low = np.where(seen[..., None], joints, np.inf).min(axis=2)
    high = np.where(seen[..., None], joints, -np.inf).max(axis=2)
    seen[..., centre] |= ((low <= 0) & (high >= 0)).all(axis=-1)
    return seen


def lengths(frames: np.ndarray, path: str | os.PathLike[str]) -> None:
    """Draw a histogram of the lengths of a data set's clips.

    Args:
        frames: number of frames of each clip, ``(n,)``.
        path: the file to write.
    """
    figure, axes = new_figure(6, 3.2)
    # Bins of whole frames, all equally wide, including the last one.
    width = max(1, -(-(int(np.ptp(frames)) + 1) // 60))
    axes.hist(frames, bins=np.arange(frames.min(), frames.max() + width + 1, width) - 0.5, color=BLUE)
    axes.set_xlabel("frames")
    axes.set_ylabel("clips")
    axes.set_title(f"{len(frames):,} clips, median {np.median(frames):g} frames", fontsize=10)
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def reliability(scores: Scores, path: str | os.PathLike[str], bins: int = BINS) -> None:
    """Draw a reliability diagram: accuracy by confidence, and the distribution of the confidences.

    Args:
        scores: the scores.
        path: the file to write.
        bins: number of confidence bins.
    """
    counts, _, correct = calibration_bins(scores, bins)
    figure, (upper, lower) = new_figure(4.6, 4.8, rows=2, heights=(3, 1))
    centres = (np.arange(bins) + 0.5) / bins * 100
    occupied = counts > 0
    accuracy = 100 * correct[occupied] / counts[occupied]
    upper.bar(centres[occupied], accuracy, width=92 / bins, color=BLUE, label="accuracy")
    upper.plot([0, 100], [0, 100], color=ORANGE, lw=1.2, ls="--", label="perfect calibration")
    upper.set_ylabel("accuracy [%]")
    upper.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    lower.bar(centres, counts, width=92 / bins, color=GREY)
    lower.set_ylabel("clips")
    lower.set_xlabel("confidence: probability of the predicted class [%]")
    for axes in (upper, lower):
        axes.set_xlim(0, 100)
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def class_changes(rows: Sequence[Mapping[str, Any]], first: str, second: str, path: str | os.PathLike[str]) -> None:
    """Draw the per-class accuracies of two networks and their differences (Figure 6 of the paper), with 95 % intervals.

    Filled squares are differences beyond noise. With many classes, only the largest gains and losses are shown.

    Args:
        rows: rows of :func:`fgst.evaluation.analysis.compare`, from top to bottom.
        first: name of the first network.
        second: name of the second network.
        path: the file to write.
    """
    from matplotlib import rc_context  # lazy: matplotlib takes a second to import

    left_out = max(0, len(rows) - MAX_CLASSES)
    shown = [*rows[: MAX_CLASSES // 2], *rows[-(MAX_CLASSES // 2) :]] if left_out else rows
    with rc_context(PAPER_STYLE):
        count = len(shown) + bool(left_out)
        figure, (left, right) = new_figure(TEXT_WIDTH, 0.19 * count + 0.85, columns=2, widths=(1, 1))
        heights = np.arange(count, dtype=float)[::-1]
        names = [f"{row['class']} ({row['num_clips']})" for row in shown]
        if left_out:  # a row without a class
            left.set_yticks(
                [heights[len(shown) // 2]], [f"… {left_out} classes left out …"], minor=True, style="italic"
            )
            left.tick_params(axis="y", which="minor", length=0)
            heights = np.delete(heights, len(shown) // 2)
        for key, shift, colour, marker, name in (
            ("first", 0.16, BLUE, "o", first),
            ("second", -0.16, ORANGE, "D", second),
        ):
            values = np.array([row[key] for row in shown])
            low, high = np.array([row[f"{key}_interval"] for row in shown]).T
            error = np.clip([values - low, high - values], 0, None)
            left.errorbar(
                values, heights + shift, xerr=error, fmt=marker, color=colour, ms=3, lw=0.8, label=name, clip_on=False
            )
        left.set_xlim(right=100)
        left.set_xlabel("top-1 of the class [%]")
        left.set_yticks(heights, names)
        gains, intervals = (np.array([row[key] for row in shown]) for key in ("difference", "interval"))
        right.hlines(heights, *intervals.T, color=GREY, lw=0.8)
        is_beyond = np.array([row["beyond_noise"] for row in shown])
        for chosen, face, label in ((is_beyond, "black", "beyond noise"), (~is_beyond, "white", "within noise")):
            if chosen.any():
                right.plot(
                    gains[chosen], heights[chosen], ls="", marker="s", ms=3.5, color="black", mfc=face, mew=0.7,
                    label=label,
                )  # fmt: skip
        right.axvline(0, color="black", lw=0.6)
        right.set_yticks(heights, [])
        right.set_xlabel(textwrap.fill(f"difference to {second} [points]", 42))
        for axes in (left, right):
            axes.set_ylim(-0.7, count - 0.3)
            axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, borderaxespad=0.2)
        save_figure(figure, path)


def subsets(
    labels: Sequence[str],
    val: Sequence[tuple[float, float] | None],
    test: Sequence[tuple[float, float] | None],
    path: str | os.PathLike[str],
) -> None:
    """Draw the accuracies of ensembles of different members.

    Args:
        labels: name of each ensemble, from top to bottom.
        val: mean and standard deviation of each ensemble's validation top-1 in %, or ``None``.
        test: the same for test top-1.
        path: the file to write.
    """
    figure, axes = new_figure(8.5, 0.32 * len(labels) + 1.4)
    heights = np.arange(len(labels))[::-1]
    for values, colour, marker, name in ((val, ORANGE, "s", "validation"), (test, BLUE, "o", "test")):
        points = [(height, *pair) for height, pair in zip(heights, values, strict=True) if pair is not None]
        if points:
            y, mean, std = np.array(points).T
            std = np.nan_to_num(std)
            axes.errorbar(
                mean, y, xerr=std if std.any() else None, fmt=marker, color=colour, ms=5, capsize=3, label=name
            )
    axes.set_yticks(heights, labels, fontsize=8)
    axes.set_ylim(-0.7, len(labels) - 0.3)
    axes.set_xlabel("top-1 [%]")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    save_figure(figure, path)


def new_figure(
    width: float,
    height: float,
    columns: int = 1,
    rows: int = 1,
    heights: Sequence[float] | None = None,
    widths: Sequence[float] | None = None,
) -> tuple[Any, Any]:
    """Create a figure without a display or global state.

    Args:
        width: width in inches.
        height: height in inches.
        columns: number of columns of axes.
        rows: number of rows of axes.
        heights: relative heights of the rows.
        widths: relative widths of the columns.

    Returns:
        The figure, and its axes as ``Figure.subplots`` returns them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # lazy: matplotlib takes a second to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, height_ratios=heights, width_ratios=widths)


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure in the format that the file's suffix names; text in SVG and PDF stays text."""
    from matplotlib import rc_context  # lazy: matplotlib takes a second to import

    # Without dates and random ids, equal figures are equal files.
    no_date = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(Path(path).suffix)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fgst", "pdf.fonttype": 42}):
        figure.savefig(Path(path), metadata=no_date)


def fix_view(axes: Any, points: np.ndarray, margin: float) -> None:
    """Set square axis limits around points ``(n, 2)``, and hide the ticks.

    Args:
        axes: the axes.
        points: points that must be visible.
        margin: factor by which the limits exceed the points' extent.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    centre, reach = (low + high) / 2, max(float((high - low).max()) / 2, 1e-6) * margin
    axes.set_xlim(centre[0] - reach, centre[0] + reach)
    axes.set_ylim(centre[1] - reach, centre[1] + reach)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
