"""Figures of focal joints and of their attention to body parts (Figure 5 of the paper)."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fgst.data.skeleton import Partition, Skeleton
from fgst.evaluation.plots import GREY, ORANGE, fix_view, new_figure, save_figure

NUM_STILLS = 6
"""Number of frames of a clip that are drawn side by side."""
NUM_LINES = 3
"""Number of attention weights that are drawn in a frame."""
_SHADES = 0.35, 1.0  # positions in the colour map of the lowest and the highest score


@dataclass(frozen=True)
class FocalClip:
    """A clip with the network's focal joints and attention, for M persons and T frames at the input of stage 2.

    Attributes:
        clip_id: the clip.
        title: title of its figures.
        joints: positions ``(M, T, N, 3)``.
        person_mask: which persons are present, ``(M,)``, bool.
        focal: which joints are focal, ``(M, T, N)``, bool.
        scores: joint scores S of Eq. 2, ``(M, T, N)``.
        attention: attention of each joint to each part (A_jp of Eq. 4), the mean over heads and layers,
            ``(M, T, N, P)``; zero for joints that are not focal; ``None`` for a network without JP-CA.
        parts: the partition of the joints; empty for a network without part branch.
    """

    clip_id: str
    title: str
    joints: np.ndarray
    person_mask: np.ndarray
    focal: np.ndarray
    scores: np.ndarray
    attention: np.ndarray | None
    parts: Partition

    def strongest(self, person: int, frame: int, count: int = NUM_LINES) -> list[tuple[int, int, float]]:
        """Return the strongest attention weights of a person in a frame as (joint, part, weight), strongest first."""
        if self.attention is None:
            return []
        weights = self.attention[person, frame]
        order = np.argsort(-weights, axis=None, kind="stable")[:count]
        pairs = zip(*np.unravel_index(order, weights.shape), strict=True)
        return [(int(j), int(p), float(weights[j, p])) for j, p in pairs if weights[j, p] > 0]

    def shade(self) -> np.ndarray:
        """Scale the scores to 0…1, the range of the clip's focal joints: ``(M, T, N)``."""
        drawn = self.scores[self.focal & self.person_mask[:, None, None]]
        low, high = (float(drawn.min()), float(drawn.max())) if drawn.size else (0.0, 1.0)
        return np.clip((self.scores - low) / max(high - low, 1e-12), 0, 1)


def focal_stills(clip: FocalClip, skeleton: Skeleton, path: str | os.PathLike[str]) -> None:
    """Draw frames of a clip side by side.

    Focal joints are dots, darker for higher scores; lines connect them to the parts with the highest attention weights.

    Args:
        clip: the clip.
        skeleton: the bones to draw.
        path: the file to write.
    """
    frames = np.linspace(0, clip.joints.shape[1] - 1, min(NUM_STILLS, clip.joints.shape[1])).round().astype(int)
    figure, _ = new_figure(1.9 * len(frames) + 0.8, 3.0)
    figure.clear()
    for axes, frame in zip(figure.subplots(1, len(frames), squeeze=False)[0], frames, strict=True):
        _draw(axes, clip, int(frame), skeleton)
        axes.set_title(f"frame {frame + 1} of {clip.joints.shape[1]}", fontsize=8)
    figure.suptitle(clip.title, fontsize=10)
    _legend(figure, clip)
    save_figure(figure, path)


def focal_animation(clip: FocalClip, skeleton: Skeleton, path: str | os.PathLike[str], *, fps: int = 10) -> None:
    """Draw a clip like :func:`focal_stills`, as an animated GIF.

    Args:
        clip: the clip.
        skeleton: the bones to draw.
        path: the file to write.
        fps: frames per second.
    """
    from matplotlib.animation import FuncAnimation, PillowWriter  # lazy: matplotlib takes a second to import

    figure, axes = new_figure(4.4, 4.8)
    _legend(figure, clip)

    def draw(frame: int) -> list[Any]:
        axes.clear()
        _draw(axes, clip, frame, skeleton)
        axes.set_title(f"{textwrap.fill(clip.title, 56)}\nframe {frame + 1} of {clip.joints.shape[1]}", fontsize=9)
        return []

    animation = FuncAnimation(figure, draw, frames=clip.joints.shape[1], blit=False)
    animation.save(Path(path), writer=PillowWriter(fps=fps), dpi=80)


def focal_heat_map(
    shares: np.ndarray, classes: Sequence[str], joints: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Draw how often each joint is focal, by class.

    Args:
        shares: share of frames in %, ``(classes, joints)``.
        classes: class names.
        joints: joint names.
        path: the file to write.
    """
    figure, axes = new_figure(max(5.0, 0.36 * len(joints) + 3.2), max(3.2, 0.3 * len(classes) + 1.9))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    if shares.size <= 600:
        for row, column in np.ndindex(*shares.shape):
            value = shares[row, column]
            colour = "white" if value > 65 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
    axes.set_xticks(
        range(len(joints)), [name.replace("_", " ") for name in joints], rotation=60, ha="right", fontsize=8
    )
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set_xlabel("joint")
    axes.set_ylabel("class")
    figure.colorbar(image, ax=axes, fraction=0.03, label="frames in which the joint is focal [%]")
    save_figure(figure, path)


def _draw(axes: Any, clip: FocalClip, frame: int, skeleton: Skeleton) -> None:
    """Draw a frame; the axis limits are the same for all frames of the clip."""
    from matplotlib import colormaps  # lazy: matplotlib takes a second to import

    colours, shades = colormaps["Blues"], clip.shade()
    for person in np.flatnonzero(clip.person_mask):
        positions = clip.joints[person, frame][:, :2]
        for joint, parent in enumerate(skeleton.parents):
            axes.plot(*positions[[joint, parent]].T, color="#b8b8b8", linewidth=1.1, zorder=1)
        axes.scatter(*positions.T, s=5, color="#b8b8b8", zorder=2)
        for joint, part, weight in clip.strongest(int(person), frame):
            centre = positions[list(clip.parts[part])].mean(axis=0)
            line = np.stack([centre, positions[joint]]).T
            axes.plot(*line, color=ORANGE, linewidth=0.6 + 3 * weight, alpha=0.75, zorder=3)
            axes.scatter(*centre, marker="s", s=16, color=ORANGE, zorder=6)
        focal = np.flatnonzero(clip.focal[person, frame])
        colour = colours(_SHADES[0] + (_SHADES[1] - _SHADES[0]) * shades[person, frame, focal])
        axes.scatter(*positions[focal].T, s=34, color=colour, edgecolors="black", linewidths=0.4, zorder=5)
    fix_view(axes, clip.joints[clip.person_mask][..., :2].reshape(-1, 2), margin=1.12)


def _legend(figure: Any, clip: FocalClip) -> None:
    from matplotlib import colormaps  # lazy: matplotlib takes a second to import
    from matplotlib.lines import Line2D

    colours = colormaps["Blues"]
    dots = [
        Line2D([], [], ls="", marker="o", ms=6, mec="black", mew=0.4, color=colours(shade), label=words)
        for shade, words in ((_SHADES[1], "focal, high score"), (_SHADES[0], "focal, low score"))
    ]
    others = [Line2D([], [], ls="", marker="o", ms=3, color="#b8b8b8", label="other joint")]
    if clip.attention is not None:
        others.append(
            Line2D([], [], color=ORANGE, marker="s", ms=4, lw=1.5, label=f"{NUM_LINES} highest weights: joint ← part")
        )
    figure.legend(handles=dots + others, loc="outside lower center", ncols=2 if figure.get_figwidth() < 6 else 4,
                  fontsize=8, frameon=False, labelcolor=GREY)  # fmt: skip
