"""The estimate of a winner's accuracy, on simulated configurations."""

from __future__ import annotations

import numpy as np
import pytest

from fgst.sweep.selection import estimate_from_table, estimate_winner


def test_winner_of_equal_configurations_is_estimated_without_bias() -> None:
    generator, raw, honest, contained = np.random.default_rng(0), [], [], []
    for _ in range(150):
        estimate = estimate_from_table(generator.random((30, 150)) < 0.8)
        assert estimate is not None
        raw.append(estimate.reached - 80)
        honest.append(estimate.honest - 80)
        contained.append(abs(estimate.honest - 80) <= estimate.half_width)
        assert estimate.bias == pytest.approx(estimate.reached - estimate.honest)
    assert np.mean(raw) > 5
    assert abs(np.mean(honest)) < 0.5
    assert 0.92 <= np.mean(contained)


def test_clear_winner_is_not_corrected() -> None:
    generator = np.random.default_rng(1)
    estimate = estimate_from_table(np.stack([generator.random(300) < 0.9, generator.random(300) < 0.3]))
    assert estimate is not None
    assert estimate.bias == pytest.approx(0, abs=1e-9)
    assert estimate.candidates == 2


def test_configurations_without_the_winners_clips_are_left_out() -> None:
    clips = [f"clip {i}" for i in range(30)]
    best = {clip: float(i % 3 > 0) for i, clip in enumerate(clips)}
    second = {clip: float(i % 3 > 1) for i, clip in enumerate(clips)}
    part = dict.fromkeys(clips[:10], 1.0)  # a single fold, which happens to be easy
    estimate = estimate_winner([part, best, second, {}])
    assert estimate is not None
    assert estimate.candidates == 2
    assert estimate.reached == pytest.approx(100 * 20 / 30)
    assert estimate_winner([best, part]) is None
    assert estimate_winner([]) is None
