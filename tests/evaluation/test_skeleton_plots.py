"""Figures of skeletons: positions of joints, and labels that are legible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgst.data.skeletons import SKELETONS
from fgst.evaluation import skeleton_plots


@pytest.mark.parametrize("name", SKELETONS)
def test_positions_are_symmetric_and_distinct(name: str) -> None:
    skeleton = SKELETONS[name]
    pose = skeleton_plots.reference_pose(skeleton)
    distances = np.linalg.norm(pose[:, None] - pose[None], axis=2)
    assert (distances[~np.eye(len(pose), dtype=bool)] > 0.03).all()
    if name != "shrec-22":
        np.testing.assert_array_equal(pose[list(skeleton.mirror)], pose * [-1, 1])
        assert all(pose[joint, 0] > 0 for joint, side in enumerate(skeleton.sides) if side == "left")
        heights = dict(zip(skeleton.joints, pose[:, 1], strict=True))
        assert heights["left_shoulder"] > heights["left_wrist"] > heights["left_knee"]


@pytest.mark.parametrize("name", SKELETONS)
def test_labels_do_not_overlap(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(skeleton_plots, "save_figure", lambda figure, path: figures.append(figure))
    monkeypatch.setattr(skeleton_plots, "_reduce_colours", lambda path: None)
    skeleton_plots.skeleton_figure(SKELETONS[name], name, tmp_path / "unused.png")
    (figure,) = figures
    figure.canvas.draw()
    labels = [text for text in figure.axes[0].texts if text.get_text()]
    names = {word for label in labels for word in label.get_text().split()}
    assert names == {*SKELETONS[name].joints, *map(str, range(1, len(SKELETONS[name].joints) + 1))}
    boxes = [label.get_window_extent() for label in labels]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert figure.bbox.contains(box.x0, box.y0)
        assert figure.bbox.contains(box.x1, box.y1)
        for panel in figure.axes[1:]:
            assert not box.overlaps(panel.get_window_extent())
    lines = [line.get_xydata() for line in figure.axes[0].lines if line.get_color() == "#c0c0c0"]
    assert len(lines) == len(labels)
    for i, line in enumerate(lines):
        assert not any(skeleton_plots._cross(line, other) for other in lines[:i])
