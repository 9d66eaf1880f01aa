"""The map of focal joints by class: means and intervals over clips, and contrast with a selection at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import ttest_1samp

from fgst.evaluation.focal_map import draw_focal_map, focal_map

JOINTS = tuple(f"joint {n}" for n in range(10))
CLASSES = ("wave", "sit", "without clips", "throw")


def random_selection(rng: np.random.Generator, clips: int, focal_joints: int = 4, frames: int = 8) -> np.ndarray:
    """Shares of frames in which each joint is focal, if a clip has a random preference, and a class has none."""
    scores = rng.normal(size=(clips, 1, len(JOINTS))) + rng.normal(size=(clips, frames, len(JOINTS)))
    ranks = (-scores).argsort(axis=2).argsort(axis=2)
    return np.asarray((ranks < focal_joints).mean(axis=1))


def test_values_are_means_over_clips_with_their_intervals() -> None:
    rng = np.random.default_rng(0)
    shares, labels = random_selection(rng, 60), np.repeat([0, 1, 3], 20)
    content = focal_map(shares, labels, CLASSES, JOINTS, 4)
    assert content.classes == ("wave", "sit", "throw")
    assert content.chance == 40
    assert content.num_clips.tolist() == [20, 20, 20]
    for row, label in enumerate((0, 1, 3)):
        for joint in range(10):
            percent = 100 * shares[labels == label, joint]
            interval = ttest_1samp(percent, 0).confidence_interval()
            assert content.values[row, joint] == pytest.approx(percent.mean())
            assert content.low[row, joint] == pytest.approx(max(0, interval.low))
            assert content.high[row, joint] == pytest.approx(min(100, interval.high))
    records = content.records()
    assert len(records) == 30
    assert records[11]["class"] == "sit"
    assert records[11]["joint"] == "joint 1"
    assert records[11]["value"] == content.values[1, 1]


def test_selection_at_random_is_rarely_beyond_chance() -> None:
    """Of 100 maps, about 5 have a false finding; clips with 80 frames each give no more than clips with 8."""
    for frames in (8, 80):
        rng = np.random.default_rng(1)
        labels = np.repeat([0, 1, 3], 20)
        maps = [focal_map(random_selection(rng, 60, frames=frames), labels, CLASSES, JOINTS, 4) for _ in range(100)]
        assert sum(content.beyond_chance.any() for content in maps) <= 12  # more than 12 with probability 0.1 %


def test_preferred_joint_of_one_class_is_found() -> None:
    rng = np.random.default_rng(2)
    shares, labels = random_selection(rng, 90), np.repeat([0, 1, 3], 30)
    shares[labels == 1, 7] = rng.uniform(0.8, 1, 30)
    shares[labels == 3, 2] = 0  # never, in all clips
    found = focal_map(shares, labels, CLASSES, JOINTS, 4).beyond_chance
    assert sorted(zip(*np.nonzero(found), strict=True)) == [(1, 7), (2, 2)]


def test_few_clips_are_never_beyond_chance() -> None:
    """Five clips cannot have a p-value below 1/16, even if they all agree."""
    shares = np.zeros((5, 10))
    shares[:, :4] = 1
    content = focal_map(shares, np.zeros(5, int), CLASSES, JOINTS, 4)
    assert content.p_values is not None
    assert content.p_values.min() >= 1 / 16
    assert not content.beyond_chance.any()
    single = focal_map(shares[:1], np.zeros(1, int), CLASSES, JOINTS, 4)
    assert (single.low.tolist(), single.high.tolist()) == ([[0.0] * 10], [[100.0] * 10])


def test_all_joints_have_no_chance(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).uniform(0.2, 0.8, (12, 10))
    content = focal_map(scores, np.arange(12) % 2, CLASSES, JOINTS, 10)
    assert content.chance is None
    assert content.p_values is None
    assert content.adjusted is None
    np.testing.assert_allclose(content.values, [scores[::2].mean(axis=0), scores[1::2].mean(axis=0)])
    assert "p_value" not in content.records()[0]
    draw_focal_map(content, tmp_path / "map.svg")
    assert "all 10 joints are selected" in (tmp_path / "map.svg").read_text()


def test_height_grows_with_number_of_classes_and_width_is_that_of_a_page(tmp_path: Path) -> None:
    sizes = []
    for classes in (4, 120):
        shares = random_selection(np.random.default_rng(0), 4 * classes)
        content = focal_map(shares, np.repeat(np.arange(classes), 4), [f"c{n}" for n in range(classes)], JOINTS, 4)
        draw_focal_map(content, tmp_path / "map.png")
        with Image.open(tmp_path / "map.png") as picture:
            sizes.append(picture.size)
    assert sizes[0][0] == sizes[1][0] == 7 * 220
    assert sizes[1][1] > sizes[0][1] + 116 * 30


def test_svg_has_text_and_is_reproducible(tmp_path: Path) -> None:
    content = focal_map(random_selection(np.random.default_rng(0), 40), np.arange(40) % 2, CLASSES, JOINTS, 4)
    for name in ("a.svg", "b.svg", "a.pdf", "b.pdf"):
        draw_focal_map(content, tmp_path / name)
    svg = (tmp_path / "a.svg").read_text()
    assert svg == (tmp_path / "b.svg").read_text()
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    for text in ("wave (20)", "joint 7", "chance: 40 %", "mean over classes"):
        assert f">{text}" in svg or text in svg
