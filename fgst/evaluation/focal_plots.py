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
from fgst.evaluation.plots import ORANGE, PAPER_STYLE, TEXT_WIDTH, fix_view, new_figure, save_figure

NUM_STILLS = 6
"""Number of frames of a clip that are drawn side by side."""
NUM_LINES = 3
"""Number of attention weights that are drawn in a frame."""
MAX_PANELS = 6  # of an overview, side by side
_DOT_SIZE = 16  # pt²
_SHADES = 0.35, 1.0  # positions in the colour map of the lowest and the highest score


@dataclass(frozen=True)
class FocalClip:
    """A clip with the network's focal joints and attention, for M persons and T frames at the input of stage 2.

    Attributes:
        clip_id: the clip.
        class_name: its true class.
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
    class_name: str
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

    @property
    def all_focal(self) -> bool:
        """Whether all joints are focal, so that the selection selects nothing."""
        return bool(self.focal[self.person_mask].all())

    def key_frame(self) -> int:
        """The frame whose pose differs most from the clip's mean pose."""
        poses = self.joints[self.person_mask]
        return int(np.linalg.norm(poses - poses.mean(axis=1, keepdims=True), axis=3).sum(axis=(0, 2)).argmax())

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
    from matplotlib import rc_context  # lazy: matplotlib takes a second to import

    frames = np.linspace(0, clip.joints.shape[1] - 1, min(NUM_STILLS, clip.joints.shape[1])).round().astype(int)
    with rc_context(PAPER_STYLE):
        figure, _ = new_figure(TEXT_WIDTH, 1.95)
        figure.clear()
        for axes, frame in zip(figure.subplots(1, len(frames), squeeze=False)[0], frames, strict=True):
            _draw(axes, clip, int(frame), skeleton)
            axes.set_title(f"frame {frame + 1} of {clip.joints.shape[1]}", fontsize=7)
        figure.suptitle(textwrap.fill(clip.title, 110), fontsize=8)
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


def focal_overview(clips: Sequence[FocalClip], skeleton: Skeleton, path: str | os.PathLike[str]) -> None:
    """Draw a frame of each clip as in Figure 5 of the paper: the focal joints, and next to them the attention.

    The frame is the one whose pose differs most from the mean pose of the clip.

    Args:
        clips: the clips.
        skeleton: the bones to draw.
        path: the file to write.
    """
    from matplotlib import rc_context  # lazy: matplotlib takes a second to import

    layers = ["joints", "attention"] if clips[0].attention is not None else ["joints"]
    columns = MAX_PANELS // len(layers)
    rows = -(-len(clips) // columns)
    columns = min(columns, len(clips))
    with rc_context(PAPER_STYLE):
        size = TEXT_WIDTH / MAX_PANELS
        figure, _ = new_figure(size * columns * len(layers), (size + 0.2) * rows + 0.35)
        figure.clear()
        groups = figure.subfigures(rows, columns, squeeze=False).ravel()
        for group, clip in zip(groups, clips, strict=False):
            for axes, layer in zip(group.subplots(1, len(layers), squeeze=False)[0], layers, strict=True):
                frame = clip.key_frame()
                _draw(axes, clip, frame, skeleton, attention=layer == "attention")
                fix_view(axes, clip.joints[clip.person_mask, frame][..., :2].reshape(-1, 2), margin=1.15)
            group.suptitle(textwrap.fill(clip.class_name, 15 * len(layers)), fontsize=7.5)
        _legend(figure, clips[0])
        save_figure(figure, path)


def _draw(axes: Any, clip: FocalClip, frame: int, skeleton: Skeleton, *, attention: bool = True) -> None:
    """Draw a frame, with or without attention; the axis limits are the same for all frames of the clip."""
    from matplotlib import colormaps  # lazy: matplotlib takes a second to import

    colours, shades = colormaps["Blues"], clip.shade()
    for person in np.flatnonzero(clip.person_mask):
        positions = clip.joints[person, frame][:, :2]
        for joint, parent in enumerate(skeleton.parents):
            axes.plot(*positions[[joint, parent]].T, color="#b8b8b8", linewidth=1.1, zorder=1)
        axes.scatter(*positions.T, s=5, color="#b8b8b8", zorder=2)
        for joint, part, weight in clip.strongest(int(person), frame) if attention else ():
            centre = positions[list(clip.parts[part])].mean(axis=0)
            line = np.stack([centre, positions[joint]]).T
            axes.plot(*line, color=ORANGE, linewidth=0.5 + 2 * weight, alpha=0.75, zorder=3)
            axes.scatter(*centre, marker="s", s=10, color=ORANGE, zorder=6)
        focal = np.flatnonzero(clip.focal[person, frame])
        colour = colours(_SHADES[0] + (_SHADES[1] - _SHADES[0]) * shades[person, frame, focal])
        axes.scatter(*positions[focal].T, s=_DOT_SIZE, color=colour, edgecolors="black", linewidths=0.4, zorder=5)
    axes.spines[:].set_visible(False)
    fix_view(axes, clip.joints[clip.person_mask][..., :2].reshape(-1, 2), margin=1.12)


def _legend(figure: Any, clip: FocalClip) -> None:
    from matplotlib import colormaps  # lazy: matplotlib takes a second to import
    from matplotlib.lines import Line2D

    colours = colormaps["Blues"]
    kind = f"all {clip.focal.shape[2]} joints selected" if clip.all_focal else "focal"
    dots = [
        Line2D([], [], ls="", marker="o", ms=4, mec="black", mew=0.4, color=colours(shade), label=words)
        for shade, words in ((_SHADES[1], f"{kind}, high score"), (_SHADES[0], f"{kind}, low score"))
    ]
    others = [Line2D([], [], ls="", marker="o", ms=2, color="#b8b8b8", label="other joint")] * (not clip.all_focal)
    if clip.attention is not None:
        others.append(
            Line2D([], [], color=ORANGE, marker="s", ms=4, lw=1.5, label=f"{NUM_LINES} highest weights: joint ← part")
        )
    figure.legend(handles=dots + others, loc="outside lower center", ncols=2 if figure.get_figwidth() < 6 else 4,
                  fontsize=7, frameon=False, labelcolor="#404040")  # fmt: skip
