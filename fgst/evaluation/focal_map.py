"""How often each joint is focal in each class, compared with chance. Clips are the unit: frames of a clip are not
independent. Clips of the same person are not quite independent either, so with few subjects intervals are too narrow.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fgst.evaluation.analysis import SIGNIFICANT, holm
from fgst.evaluation.plots import PAPER_STYLE, TEXT_WIDTH, new_figure, save_figure

MAX_NUMBERS = 1_600  # cells; more have no numbers
_LIGHT_CELL = 0.45  # relative luminance above which a cell's number is black


@dataclass(frozen=True)
class FocalMap:
    """A value for each of C classes and N joints.

    If K of the joints are focal, it is the share of frames in which a joint is focal, in %, which is ``chance`` = K / N
    for a selection at random. If all joints are, it is the mean of their scores (S of Eq. 2), and no chance exists.

    Attributes:
        classes, joints: their names.
        num_clips: number of clips of each class, ``(C,)``.
        values: means over the clips of a class, ``(C, N)``.
        low, high: their 95 % intervals, ``(C, N)``.
        chance: in %; ``None`` if all joints are focal.
        p_values: of Wilcoxon's signed-rank test over the clips that the selection is at random, ``(C, N)``; ``None``
            if all joints are focal.
        adjusted: these, adjusted for the number of cells (Holm); ``None`` if all joints are focal.
    """

    classes: tuple[str, ...]
    joints: tuple[str, ...]
    num_clips: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    chance: float | None
    p_values: np.ndarray | None
    adjusted: np.ndarray | None

    @property
    def beyond_chance(self) -> np.ndarray:
        """Where the selection is not at random, ``(C, N)``, bool; everywhere if all joints are focal."""
        return np.ones(self.values.shape, bool) if self.adjusted is None else self.adjusted < SIGNIFICANT

    def records(self) -> list[dict[str, Any]]:
        """A row per cell, for tables."""
        rows = []
        for (c, j), value in np.ndenumerate(self.values):
            row = {"class": self.classes[c], "joint": self.joints[j], "clips": int(self.num_clips[c])}
            row |= {"value": float(value), "low": float(self.low[c, j]), "high": float(self.high[c, j])}
            if self.p_values is not None and self.adjusted is not None:
                row |= {"chance": self.chance, "p_value": float(self.p_values[c, j])}
                row |= {"adjusted_p_value": float(self.adjusted[c, j])}
                row |= {"beyond_chance": bool(self.adjusted[c, j] < SIGNIFICANT)}
            rows.append(row)
        return rows


def focal_map(
    values: np.ndarray, labels: np.ndarray, classes: Sequence[str], joints: Sequence[str], focal_joints: int
) -> FocalMap:
    """Compute the map.

    Args:
        values: of each clip, ``(n, N)``: shares of frames in which a joint is focal, 0 to 1, or scores if all are.
        labels: true classes, ``(n,)``.
        classes: names of all classes; those without clips are left out.
        joints: names of the joints.
        focal_joints: number K of joints that are focal in a frame.
    """
    from scipy.stats import t  # lazy: importing scipy.stats takes a second

    all_focal = focal_joints >= len(joints)
    present = [label for label in range(len(classes)) if (labels == label).any()]
    groups = [values[labels == label] * (1 if all_focal else 100) for label in present]
    counts = np.array([len(group) for group in groups])
    means = np.stack([group.mean(axis=0) for group in groups])
    # A single clip says nothing about the spread.
    errors = np.stack([
        t.ppf(0.975, len(group) - 1) * group.std(axis=0, ddof=1) / np.sqrt(len(group))
        if len(group) > 1 else np.full(len(joints), np.inf)
        for group in groups
    ])  # fmt: skip
    top = 1 if all_focal else 100
    chance = p_values = adjusted = None
    if not all_focal:
        chance = 100 * focal_joints / len(joints)
        p_values = np.array([[_p_value(column - chance) for column in group.T] for group in groups])
        adjusted = np.reshape(holm(p_values.ravel().tolist()), p_values.shape)
    return FocalMap(
        tuple(classes[label] for label in present), tuple(joints), counts, means, np.clip(means - errors, 0, top),
        np.clip(means + errors, 0, top), chance, p_values, adjusted,
    )  # fmt: skip


def _p_value(differences: np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test, at least the smallest one that so few clips can give."""
    from scipy.stats import wilcoxon  # lazy: importing scipy.stats takes a second

    differences = differences[np.abs(differences) > 1e-9]
    if not len(differences):
        return 1.0
    # The normal approximation, which ties require, is too small for few clips.
    return max(float(wilcoxon(differences, method="approx").pvalue), min(1.0, 2.0 ** (1 - len(differences))))


def draw_focal_map(content: FocalMap, path: str | os.PathLike[str]) -> None:
    """Draw the map: a row per class, and above them the mean over the classes.

    Cells that cannot be distinguished from chance are white, with grey numbers.

    Args:
        content: the map.
        path: the file to write.
    """
    from matplotlib import colormaps, rc_context  # lazy: matplotlib takes a second to import
    from matplotlib.colors import Normalize, TwoSlopeNorm

    C, N = content.values.shape
    if content.chance is None:
        colours, scale = colormaps["Blues"], Normalize(float(content.values.min()), float(content.values.max()))
        label, digits = f"mean score S of a joint (all {N} joints are selected)", 2
    else:
        colours, scale = colormaps["PuOr_r"], TwoSlopeNorm(content.chance, 0, 100)
        label = f"frames in which the joint is focal [%]; chance: {content.chance:.0f} %"
        label += "\nwhite: not distinguishable from chance (Wilcoxon over clips, Holm over cells)"
        digits = 0
    with rc_context(PAPER_STYLE | {"axes.grid": False}):
        height = 0.145 * (C + 1) + 1.6
        figure, (upper, lower, below) = new_figure(TEXT_WIDTH, height, rows=3, heights=(1, C, 0.55))
        overall = content.values.mean(axis=0, keepdims=True)
        for axes, values, coloured in (
            (upper, overall, np.ones((1, N), bool)),
            (lower, content.values, content.beyond_chance),
        ):
            image = axes.imshow(np.where(coloured, values, np.nan), cmap=colours, norm=scale, aspect="auto")
            if C * N <= MAX_NUMBERS:
                for (row, column), value in np.ndenumerate(values):
                    red, green, blue, _ = colours(scale(value))
                    is_light = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > _LIGHT_CELL**2.2
                    colour = "#777777" if not coloured[row, column] else "black" if is_light else "white"
                    text = f"{value:.{digits}f}".replace("0.", ".") if digits else f"{value:.0f}"
                    axes.text(column, row, text, ha="center", va="center", fontsize=5, color=colour)
            axes.set_xticks(np.arange(N + 1) - 0.5, minor=True)
            axes.set_yticks(np.arange(len(values) + 1) - 0.5, minor=True)
            axes.grid(which="minor", color="white", lw=0.6)
            axes.tick_params(which="both", length=0)
            axes.spines[:].set_visible(False)
        upper.set_yticks([0], ["mean over classes"])
        upper.set_xticks([])
        clips = [f"{name} ({count})" for name, count in zip(content.classes, content.num_clips, strict=True)]
        lower.set_yticks(range(C), clips)
        lower.set_xticks(range(N), [name.replace("_", " ") for name in content.joints], rotation=60, ha="right",
                         rotation_mode="anchor")  # fmt: skip
        bar = figure.colorbar(image, cax=below, orientation="horizontal", label=label)
        bar.outline.set_visible(False)
        if content.chance is not None:
            bar.set_ticks(sorted({0, 25, 50, 75, 100} - {round(content.chance / 25) * 25} | {round(content.chance)}))
            bar.ax.tick_params(length=2, which="major")
        save_figure(figure, path)
