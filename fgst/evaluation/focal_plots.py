"""What the network looks at, as pictures (Figure 5 of the paper): focal joints, and what they take from the parts."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fgst.data.skeleton import Partition, Skeleton
from fgst.evaluation.plots import GREY, ORANGE, _new, _save

STILLS = 6  # frames of a clip side by side
LINES = 3  # attentions drawn in a frame
_DARK = 0.35, 1.0  # of the colour map, for the lowest and the highest score


@dataclass(frozen=True)
class FocalClip:
    """What a network saw in a clip. T frames at the entrance of stage 2, one person a row of M.

    Attributes:
        clip_id, title: which clip, and what is said of it.
        joints: positions ``(M, T, N, 3)``.
        present: ``(M,)``.
        focal: which joints are focal, ``(M, T, N)``, bool.
        scores: S of Eq. 2, ``(M, T, N)``.
        attention: what each joint takes from each part (A_jp of Eq. 4), the mean of the heads and of the layers at
            the entrance's frame rate, ``(M, T, N, P)``; zero for joints that are not focal; ``None`` without JP-CA.
        parts: the partition; empty without a part branch.
    """

    clip_id: str
    title: str
    joints: np.ndarray
    person_mask: np.ndarray
    focal: np.ndarray
    scores: np.ndarray
    attention: np.ndarray | None
    parts: Partition

    def strongest(self, person: int, frame: int, count: int = LINES) -> list[tuple[int, int, float]]:
        """The ``count`` strongest attentions of a frame: joint, part, weight; the strongest first."""
        if self.attention is None:
            return []
        weights = self.attention[person, frame]
        best = np.argsort(-weights, axis=None, kind="stable")[:count]
        found = zip(*np.unravel_index(best, weights.shape), strict=True)
        return [(int(j), int(p), float(weights[j, p])) for j, p in found if weights[j, p] > 0]

    def shade(self) -> np.ndarray:
        """How dark each score is drawn, 0 to 1: from the lowest to the highest score of the clip's focal joints."""
        seen = self.scores[self.focal & self.person_mask[:, None, None]]
        low, high = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 1.0)
        return np.clip((self.scores - low) / max(high - low, 1e-12), 0, 1)


def focal_stills(clip: FocalClip, skeleton: Skeleton, path: str | os.PathLike[str]) -> None:
    """Some frames of a clip side by side: focal joints, darker for higher scores; lines to the parts they listen to."""
    frames = np.linspace(0, clip.joints.shape[1] - 1, min(STILLS, clip.joints.shape[1])).round().astype(int)
    figure, _ = _new(1.9 * len(frames) + 0.8, 3.0)
    figure.clear()
    axes = figure.subplots(1, len(frames), squeeze=False)[0]
    for place, frame in zip(axes, frames, strict=True):
        _draw(place, clip, int(frame), skeleton)
        place.set_title(f"frame {frame + 1} of {clip.joints.shape[1]}", fontsize=8)
    figure.suptitle(clip.title, fontsize=10)
    _legend(figure, clip)
    _save(figure, path)


def focal_animation(clip: FocalClip, skeleton: Skeleton, path: str | os.PathLike[str], *, fps: int = 10) -> None:
    """The same as a GIF, frame by frame."""
    from matplotlib.animation import FuncAnimation, PillowWriter

    figure, axes = _new(4.4, 4.8)
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
    """How often each joint is focal, by class: ``shares`` ``(classes, joints)`` in %."""
    figure, axes = _new(max(5.0, 0.36 * len(joints) + 3.2), max(3.2, 0.3 * len(classes) + 1.9))
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
    _save(figure, path)


def _draw(axes: Any, clip: FocalClip, frame: int, skeleton: Skeleton) -> None:
    from matplotlib import colormaps

    colours, dark = colormaps["Blues"], clip.shade()
    points = clip.joints[clip.person_mask][..., :2].reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    centre, reach = (low + high) / 2, max(float((high - low).max()) / 2, 1e-6) * 1.12
    for person in np.flatnonzero(clip.person_mask):
        place = clip.joints[person, frame][:, :2]
        for joint, parent in enumerate(skeleton.parents):
            axes.plot(*place[[joint, parent]].T, color="#b8b8b8", linewidth=1.1, zorder=1)
        axes.scatter(*place.T, s=5, color="#b8b8b8", zorder=2)
        for joint, part, weight in clip.strongest(int(person), frame):
            middle = place[list(clip.parts[part])].mean(axis=0)
            axes.plot(
                *np.stack([middle, place[joint]]).T, color=ORANGE, linewidth=0.6 + 3 * weight, alpha=0.75, zorder=3
            )
            axes.scatter(*middle, marker="s", s=16, color=ORANGE, zorder=6)
        chosen = np.flatnonzero(clip.focal[person, frame])
        shades = _DARK[0] + (_DARK[1] - _DARK[0]) * dark[person, frame, chosen]
        axes.scatter(*place[chosen].T, s=34, color=colours(shades), edgecolors="black", linewidths=0.4, zorder=5)
    axes.set_xlim(centre[0] - reach, centre[0] + reach)
    axes.set_ylim(centre[1] - reach, centre[1] + reach)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])


def _legend(figure: Any, clip: FocalClip) -> None:
    from matplotlib import colormaps
    from matplotlib.lines import Line2D

    colours = colormaps["Blues"]
    dots = [
        Line2D([], [], ls="", marker="o", ms=6, mec="black", mew=0.4, color=colours(shade), label=words)
        for shade, words in ((_DARK[1], "focal, high score"), (_DARK[0], "focal, low score"))
    ]
    others = [Line2D([], [], ls="", marker="o", ms=3, color="#b8b8b8", label="other joint")]
    if clip.attention is not None:
        others.append(
            Line2D([], [], color=ORANGE, marker="s", ms=4, lw=1.5, label=f"the {LINES} strongest: joint ← part")
        )
    figure.legend(handles=dots + others, loc="outside lower center", ncols=2 if figure.get_figwidth() < 6 else 4,
                  fontsize=8, frameon=False, labelcolor=GREY)  # fmt: skip
