"""Differences and their noise, compared with SciPy, with examples, and with simulated truths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fgst.evaluation.analysis import holm
from fgst.sweep.noise import Difference, crossed, residual_variance, student, variances

SEED_STD = 0.05  # in :func:`simulate`


def simulate(
    seeds: int, clips: int, generator: np.random.Generator, difference: float = 0.0, seed_std: float = SEED_STD
) -> np.ndarray:
    """Differences ``(seeds, clips)`` in -1, 0, 1 of two configurations, the first of which is better on average."""
    suits = generator.normal(difference, 0.3, clips)  # the same with every seed
    values = suits + generator.normal(0, seed_std, (seeds, 1)) + generator.normal(0, 0.5, (seeds, clips))
    return np.sign(np.where(np.abs(values) > 0.8, values, 0)).astype(int)


def test_student_matches_scipy() -> None:
    values = np.random.default_rng(0).normal(1, 2, 7)
    expected = stats.ttest_1samp(values, 0)
    found = student(values.tolist())
    assert found.p_value == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(
        (interval.low, interval.high)
    )


def test_equal_accuracies_on_few_clips_have_an_interval() -> None:
    """Two seeds often reach the same number of clips by chance."""
    assert student([2.0, 2.0]).beyond_noise
    found = student([2.0, 2.0], resolution=0.5)
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, 1) * 0.5 / math.sqrt(12 * 2))
    assert found.p_value == pytest.approx(2 * stats.t.sf(2 / (0.5 / math.sqrt(24)), 1))


def test_variances_of_a_large_table_are_those_it_was_made_of() -> None:
    generator = np.random.default_rng(1)
    seeds, clips = 60, 4000
    table = generator.normal(0, 0.02, (seeds, 1)) + generator.normal(0, 0.2, clips)
    found = variances(table + generator.normal(0, 0.3, (seeds, clips)))
    assert math.sqrt(found.seeds) == pytest.approx(2, rel=0.25)
    assert math.sqrt(found.clips) == pytest.approx(20, rel=0.05)
    assert math.sqrt(found.rest) == pytest.approx(30, rel=0.02)


def test_interval_for_other_clips_is_that_of_seeds_and_more() -> None:
    generator = np.random.default_rng(2)
    for seeds in (2, 3, 8):
        table = simulate(seeds, 200, generator, 0.1)
        narrow = student((100 * table.mean(axis=1)).tolist(), resolution=0.5)
        wide = crossed(table)
        assert wide.mean == pytest.approx(narrow.mean)
        assert wide.half_width >= narrow.half_width
        assert wide.p_value is not None
        assert narrow.p_value is not None
        assert wide.p_value >= narrow.p_value * (1 - 1e-9)
        # Interval and p-value decide alike.
        assert (wide.p_value <= 0.05) is (abs(wide.mean) >= wide.half_width)


def test_clips_that_are_the_same_with_every_seed_remain_noise() -> None:
    """100 seeds that agree on every clip say no more about other clips than a single one."""
    one = np.repeat([1, -1, 0], (30, 20, 150))[None]
    many = np.repeat(one, 100, axis=0)
    assert student((100 * many.mean(axis=1)).tolist(), resolution=0.5).half_width < 0.1
    expected = 100 * 1.97 * math.sqrt((50 / 200 - 0.05**2) / 200)
    assert crossed(many).half_width == pytest.approx(expected, rel=0.02)
    assert crossed(one).half_width == pytest.approx(expected, rel=0.03)


def test_without_any_difference_nothing_is_beyond_noise() -> None:
    none = crossed(np.zeros((3, 50), dtype=int))
    assert none.mean == 0
    assert none.p_value == pytest.approx(1, abs=0.01)
    assert not none.beyond_noise


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_for_other_clips_contain_the_truth(seeds: int) -> None:
    """In 95 % of the tables, within what 400 tables can show; with one seed, the truth is that of its networks."""
    generator, contained = np.random.default_rng(3), []
    seed_std = SEED_STD if seeds > 1 else 0.0
    spread = math.hypot(0.3, 0.5, seed_std)
    truth = 100 * (stats.norm.sf(0.8, 0.1, spread) - stats.norm.cdf(-0.8, 0.1, spread))
    for _ in range(400):
        found = crossed(simulate(seeds, 200, generator, 0.1, seed_std))
        contained.append(abs(found.mean - truth) <= found.half_width)
    assert 0.92 <= np.mean(contained) <= 0.99


def test_holms_correction() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    assert Difference(1.0, 0.5, 3).beyond_noise  # without a p-value, the interval decides
    assert not Difference(1.0, 0.5, 3, p_value=0.06).beyond_noise


def test_residual_variance_is_half_of_that_of_pairs() -> None:
    generator = np.random.default_rng(4)
    one, other = generator.normal(0, 1, (2, 6))
    table = {"a": dict(enumerate(one.tolist())), "b": dict(enumerate(other.tolist()))}
    variance, freedom = residual_variance(table)
    assert 2 * variance == pytest.approx(np.var(one - other, ddof=1))
    assert freedom == 5
    # What all labels share with a seed is no noise of a difference.
    shifted = {label: {seed: value + 10 * seed for seed, value in row.items()} for label, row in table.items()}
    assert residual_variance(shifted)[0] == pytest.approx(variance)
    # Missing cells are allowed.
    table["c"] = {0: 1.0, 3: 2.0}
    assert residual_variance(table)[1] == 14 - 3 - 6 + 1
    assert residual_variance({"a": {0: 1.0}}) == residual_variance({}) == (0.0, 0)
    # Labels without a common seed are not compared.
    apart = {"a": {0: 1.0, 1: 2.0}, "b": {0: 1.0, 1: 4.0}, "c": {7: 50.0, 8: 60.0}}
    variance, freedom = residual_variance(apart)
    assert variance == pytest.approx(2**2 / 4)
    assert freedom == 1
