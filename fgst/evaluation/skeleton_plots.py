"""Figures of skeletons: joints with numbers and names, bones, sides, and partitions into body parts."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from fgst.data.skeleton import Skeleton
from fgst.errors import InputError
from fgst.evaluation.plots import BLUE, GREY, ORANGE, new_figure, save_figure

# A person with lowered arms, seen from the front: x to the person's left and y upwards, in metres. Head, hands and feet
# are drawn larger than they are. Joints of the right side mirror those of the left.
_PERSON = {
    "head": (0, 1.76), "nose": (0, 1.66), "eye_inner": (0.055, 1.77), "eye": (0.115, 1.785), "eye_outer": (0.175, 1.77),
    "ear": (0.235, 1.71), "mouth": (0.105, 1.615), "neck": (0, 1.48), "shoulder_centre": (0, 1.43),
    "spine_at_shoulders": (0, 1.36), "thorax": (0, 1.38), "spine_chest": (0, 1.28), "mid_spine": (0, 1.14),
    "spine": (0, 1.14), "spine_navel": (0, 1.10), "base_of_spine": (0, 0.93), "hip_centre": (0, 0.93),
    "mid_hip": (0, 0.93), "pelvis": (0, 0.93),
    "clavicle": (0.09, 1.37), "shoulder": (0.23, 1.38), "elbow": (0.42, 1.11), "wrist": (0.59, 0.87),
    "hand": (0.66, 0.77), "hand_tip": (0.76, 0.63), "thumb": (0.60, 0.70), "index": (0.70, 0.66), "pinky": (0.77, 0.72),
    "hip": (0.13, 0.87), "knee": (0.18, 0.48), "ankle": (0.22, 0.10), "heel": (0.16, 0.03), "foot": (0.30, -0.02),
    "big_toe": (0.26, -0.06), "small_toe": (0.37, -0.04), "foot_index": (0.31, -0.07),
}  # fmt: skip
# The back of an open right hand.
_HAND = {
    "wrist": (0, 0), "palm": (0, 0.45),
    "thumb_base": (-0.28, 0.22), "thumb_first_joint": (-0.50, 0.42), "thumb_second_joint": (-0.64, 0.60),
    "thumb_tip": (-0.75, 0.76),
    "index_base": (-0.25, 0.84), "index_first_joint": (-0.33, 1.13), "index_second_joint": (-0.38, 1.32),
    "index_tip": (-0.42, 1.49),
    "middle_base": (-0.07, 0.90), "middle_first_joint": (-0.09, 1.24), "middle_second_joint": (-0.10, 1.46),
    "middle_tip": (-0.11, 1.64),
    "ring_base": (0.12, 0.86), "ring_first_joint": (0.17, 1.17), "ring_second_joint": (0.20, 1.38),
    "ring_tip": (0.22, 1.55),
    "little_base": (0.29, 0.77), "little_first_joint": (0.39, 0.99), "little_second_joint": (0.46, 1.14),
    "little_tip": (0.52, 1.28),
}  # fmt: skip
_HEAD = (0, 1.71), 0.43, 0.44  # centre, width and height of its outline
_SIDES = {"left": BLUE, "right": ORANGE, "": GREY}


def reference_pose(skeleton: Skeleton) -> np.ndarray:
    """Return positions of the joints in a drawing, ``(N, 2)``: of a person from the front, or of a right hand's back.

    Raises:
        InputError: if the skeleton has a joint that no skeleton that ships has.
    """
    if _is_hand(skeleton):
        return np.array([_HAND[joint] for joint in skeleton.joints])
    names = [joint.removeprefix(f"{side}_") for joint, side in zip(skeleton.joints, skeleton.sides, strict=True)]
    unknown = [joint for joint, name in zip(skeleton.joints, names, strict=True) if name not in _PERSON]
    if unknown:
        raise InputError(
            f"skeleton {skeleton.name} cannot be drawn: there is no position for its joint {unknown[0]!r}; only joints "
            "with the names of a skeleton that ships have one"
        )
    pose = np.array([_PERSON[name] for name in names])
    pose[[side == "right" for side in skeleton.sides], 0] *= -1
    return pose


def _is_hand(skeleton: Skeleton) -> bool:
    return set(skeleton.joints) <= set(_HAND)


def skeleton_figure(skeleton: Skeleton, name: str, path: str | os.PathLike[str]) -> None:
    """Draw a skeleton's joints, numbered from 1, its bones, and its partitions into more than one part.

    Args:
        skeleton: the skeleton.
        name: its name in the title.
        path: the PNG file to write.

    Raises:
        InputError: if there is no position for a joint.
    """
    pose = reference_pose(skeleton)
    partitions = [parts for parts in skeleton.known_parts if 1 < parts < skeleton.num_joints]
    rows = math.ceil(len(partitions) / 2)
    figure, _ = new_figure(8.6 if rows else 5.8, 4.0)
    figure.clear()
    grid = figure.add_gridspec(max(rows, 1), 3 if rows else 1, width_ratios=(5.6, 1.5, 1.5) if rows else None)
    axes = figure.add_subplot(grid[:, 0])
    _draw_joints(axes, skeleton, pose)
    axes.set_title(f"{name}: {skeleton.num_joints} joints", fontsize=10)
    for number, parts in enumerate(partitions):
        _draw_parts(figure.add_subplot(grid[number // 2, 1 + number % 2]), skeleton, pose, parts)
    save_figure(figure, path)
    _reduce_colours(path)


def _reduce_colours(path: str | os.PathLike[str]) -> None:
    """Store a picture with a palette of 256 colours, which takes a third of the space."""
    from PIL import Image  # lazy: only pictures of skeletons need it

    with Image.open(path) as picture:
        picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            path, format="PNG", optimize=True
        )


def _draw_joints(axes: Any, skeleton: Skeleton, pose: np.ndarray) -> None:
    """Draw bones and joints in the colours of their sides, and the joints' names in a column on either side."""
    colours = [_SIDES[side] for side in skeleton.sides]
    _draw_outline(axes, skeleton)
    for joint, parent in enumerate(skeleton.parents):
        axes.plot(*pose[[joint, parent]].T, color=colours[joint], linewidth=2, solid_capstyle="round", zorder=2)
    axes.scatter(*pose.T, s=18, color=colours, zorder=3)
    axes.scatter(*pose[skeleton.centre], s=80, facecolors="none", edgecolors="black", linewidths=1.2, zorder=4)
    (left, low), (right, high) = pose.min(axis=0), pose.max(axis=0)
    unit = 0.01 * max(high - low, right - left, 0.1)
    for column, edge, direction in zip(_columns(pose), (left, right), (-1, 1), strict=True):
        x, heights = edge + 14 * direction * unit, np.linspace(high, low, len(column))
        for joint, y in zip(_without_crossings(column, pose, x, heights), heights, strict=True):
            axes.plot([x, pose[joint, 0]], [y, pose[joint, 1]], color="#c0c0c0", linewidth=0.5, zorder=1)
            words = (skeleton.joints[joint], str(joint + 1))[::-direction]
            align = "left" if direction > 0 else "right"
            axes.text(
                x + direction * unit, y, "  ".join(words), ha=align, va="center", fontsize=7.5, color=colours[joint]
            )
    axes.set_xlim(left - 66 * unit, right + 66 * unit)
    view = "back of a right hand" if _is_hand(skeleton) else "front view: the person's left is blue"
    axes.set_xlabel(f"{view}; ring: centre", fontsize=8, color=GREY)
    _hide_frame(axes)


def _columns(pose: np.ndarray) -> tuple[list[int], list[int]]:
    """Divide the joints into those named left and right of the drawing, both from top to bottom."""
    order = sorted(range(len(pose)), key=lambda joint: (-pose[joint, 1], abs(pose[joint, 0])))
    left, right = ([joint for joint in order if direction * pose[joint, 0] > 0] for direction in (-1, 1))
    for joint in order:
        if pose[joint, 0] == 0:
            (left if len(left) < len(right) else right).append(joint)
    return sorted(left, key=order.index), sorted(right, key=order.index)


def _without_crossings(column: list[int], pose: np.ndarray, x: float, heights: np.ndarray) -> list[int]:
    """Reorder a column of joints so that the lines from their names, at ``x`` and ``heights``, do not cross."""
    column = list(column)
    pairs = [(upper, lower) for lower in range(len(column)) for upper in range(lower)]
    # Each exchange shortens the lines, so this ends.
    while crossing := next((p for p in pairs if _cross(*(((x, heights[i]), pose[column[i]]) for i in p))), None):
        upper, lower = crossing
        column[upper], column[lower] = column[lower], column[upper]
    return column


def _cross(first: Any, second: Any) -> bool:
    """Return whether two line segments, each given by its ends, cross."""

    def turns(ends: Any, point: Any) -> float:
        (x0, y0), (x1, y1) = ends
        return float(np.sign((x1 - x0) * (point[1] - y0) - (y1 - y0) * (point[0] - x0)))

    return all(turns(a, b[0]) * turns(a, b[1]) < 0 for a, b in ((first, second), (second, first)))


def _draw_parts(axes: Any, skeleton: Skeleton, pose: np.ndarray, parts: int) -> None:
    """Draw a partition: each part in a colour, which differs from those of the sides for up to eight parts."""
    from matplotlib import colormaps  # lazy: matplotlib takes a second to import

    palette = np.roll(colormaps["tab10"](range(10)), -2, axis=0)
    part_of = {joint: number for number, part in enumerate(skeleton.partition(parts)) for joint in part}
    colours = [palette[part_of[joint] % len(palette)] for joint in range(len(pose))]
    _draw_outline(axes, skeleton)
    for joint, parent in enumerate(skeleton.parents):
        is_inside = part_of[joint] == part_of[parent]
        style = {"color": colours[joint], "linewidth": 2.6} if is_inside else {"color": "#c8c8c8", "linewidth": 0.8}
        axes.plot(*pose[[joint, parent]].T, **style, solid_capstyle="round", zorder=2)
    axes.scatter(*pose.T, s=12, color=colours, zorder=3)
    axes.set_title(f"P = {parts}", fontsize=9)
    axes.margins(0.06)
    _hide_frame(axes)


def _draw_outline(axes: Any, skeleton: Skeleton) -> None:
    """Draw the outline of a person's head."""
    from matplotlib.patches import Ellipse  # lazy: matplotlib takes a second to import

    if not _is_hand(skeleton):
        axes.add_patch(Ellipse(*_HEAD, facecolor="none", edgecolor="#d0d0d0", linewidth=0.8, zorder=0))


def _hide_frame(axes: Any) -> None:
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
