"""Statistics of scores, compared with direct implementations of their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgst.errors import InputError
from fgst.evaluation.analysis import (
    accuracy_interval,
    bootstrap_interval,
    calibration_error,
    compare,
    confused_pairs,
    holm,
    mcnemar,
    paired_interval,
)
from tests.evaluation.helpers import make_scores, shuffled

CLASSES = ("wave", "sit", "stand", "throw")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 8))
def test_calibration_error_is_mean_gap_between_confidence_and_accuracy(seed: int, scale: float) -> None:
    scores = make_scores(seed, 60, margin=scale)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(scores.scores.astype(np.float64).tolist(), scores.labels.tolist(), strict=True):
        powers = [math.exp(value) for value in row]
        confidence = max(powers) / sum(powers)
        bins.setdefault(min(int(confidence * 15), 14), []).append((confidence, row.index(max(row)) == label))
    error = 0.0
    for clips in bins.values():
        mean_confidence = sum(confidence for confidence, _ in clips) / len(clips)
        accuracy = sum(correct for _, correct in clips) / len(clips)
        error += len(clips) / 60 * abs(mean_confidence - accuracy)
    # The gaps are differences of sums of up to 60 values of at most 1, in %.
    assert calibration_error(scores) == pytest.approx(100 * error, rel=1e-12, abs=100 * 60 * 1e-15)


def test_bootstrap_interval_matches_resampled_clips() -> None:
    scores = make_scores(3, 200, margin=1.5)
    low, high = bootstrap_interval(scores)
    assert low < scores.top(1) < high
    correct = scores.predictions == scores.labels
    rng = np.random.default_rng(7)
    resampled = [100 * correct[rng.integers(0, 200, 200)].mean() for _ in range(4000)]
    assert (low, high) == pytest.approx(tuple(np.percentile(resampled, [2.5, 97.5])), abs=1.0)  # two of 200 clips
    assert bootstrap_interval(scores) == (low, high)
    assert bootstrap_interval(make_scores(3, 20, margin=100.0)) == (100.0, 100.0)


def test_confused_pairs_list_misclassified_clips() -> None:
    scores = make_scores(5, 80, margin=0.5)
    pairs = confused_pairs(scores, CLASSES)
    expected: dict[tuple[int, int], list[str]] = {}
    for clip, label, predicted in zip(scores.clip_ids, scores.labels, scores.predictions, strict=True):
        if label != predicted:
            expected.setdefault((int(label), int(predicted)), []).append(clip)
    assert [pair["count"] for pair in pairs] == sorted((len(clips) for clips in expected.values()), reverse=True)[:5]
    for pair in pairs:
        clips = expected[CLASSES.index(pair["true"]), CLASSES.index(pair["predicted"])]
        assert pair["clips"] == clips
        assert pair["share"] == pytest.approx(100 * len(clips) / 20, rel=1e-12)
    assert confused_pairs(make_scores(5, 20, margin=100.0), CLASSES) == []


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 5), (12, 3), (3, 12), (40, 22)])
def test_mcnemar_matches_two_sided_binomial_test(b: int, c: int) -> None:
    n = b + c
    probabilities = [math.comb(n, k) / 2**n for k in range(n + 1)]
    expected = sum(p for p in probabilities if p <= probabilities[b] * (1 + 1e-9)) if n else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9)


def test_compare_does_not_depend_on_clip_order() -> None:
    first, second = make_scores(1, 80, margin=1.6), make_scores(2, 80, margin=0.8)
    comparison = compare(first, shuffled(second), CLASSES)
    first_correct, second_correct = first.predictions == first.labels, second.predictions == second.labels
    assert comparison["only_first"] == (first_correct & ~second_correct).sum()
    assert comparison["only_second"] == (second_correct & ~first_correct).sum()
    assert comparison["difference"] == pytest.approx(first.top(1) - second.top(1), rel=1e-12)
    low, high = comparison["interval"]
    assert low < comparison["difference"] < high
    differences = (first_correct.astype(float) - second_correct) * 100
    assert (high - low) / 2 == pytest.approx(1.959964 * differences.std() / math.sqrt(80), rel=1e-9)
    rows = comparison["per_class"]
    assert [row["difference"] for row in rows] == sorted((row["difference"] for row in rows), reverse=True)
    for row in rows:
        of_class = first.labels == CLASSES.index(row["class"])
        assert row["first"] == pytest.approx(100 * first_correct[of_class].mean(), rel=1e-12)
        assert row["second"] == pytest.approx(100 * second_correct[of_class].mean(), rel=1e-12)
        assert row["num_clips"] == 20
        only = (
            int((first_correct & ~second_correct)[of_class].sum()),
            int((second_correct & ~first_correct)[of_class].sum()),
        )
        assert row["interval"] == list(paired_interval(*only, 20))
        assert row["p_value"] == mcnemar(*only)
        assert row["beyond_noise"] == (row["adjusted_p_value"] < 0.05)
    assert [row["adjusted_p_value"] for row in rows] == holm([row["p_value"] for row in rows])


def test_holm_adjusts_by_the_number_of_remaining_tests() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 0.04 · 1 is less than 0.03 · 2
    assert holm([0.5, 0.001]) == pytest.approx([0.5, 0.002])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_share_of_false_findings() -> None:
    """With 20 tests without a difference, at most 5 % of the families have a finding; uncorrected, 64 % have one."""
    p_values = np.random.default_rng(0).uniform(size=(2_000, 20))
    found = np.mean([min(holm(list(family))) < 0.05 for family in p_values])
    assert found == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 2_000))


@pytest.mark.parametrize("probabilities", [(0.1, 0.05), (0.02, 0.02), (0.3, 0.05)])
def test_paired_interval_contains_the_difference_of_accuracies(probabilities: tuple[float, float]) -> None:
    """At least 93 % of the intervals of 46 clips contain the true difference, for which they promise 95 %."""
    only_first, only_second = probabilities
    rng = np.random.default_rng(1)
    counts = rng.multinomial(46, [only_first, only_second, 1 - only_first - only_second], size=2_000)
    intervals = np.array([paired_interval(int(a), int(b), 46) for a, b, _ in counts])
    difference = 100 * (only_first - only_second)
    covered = (intervals[:, 0] <= difference) & (difference <= intervals[:, 1])
    assert covered.mean() > 0.93


def test_interval_is_not_empty_without_different_clips() -> None:
    low, high = paired_interval(0, 0, 20)
    assert low < 0 < high
    assert accuracy_interval(20, 20)[0] < 90
    assert accuracy_interval(0, 20) == pytest.approx((0, 16.11), abs=0.01)  # Wilson: z² / (n + z²)


def test_compare_rejects_different_clips() -> None:
    with pytest.raises(InputError, match="the scores of this run and the other are not of the same clips"):
        compare(make_scores(1, 80), make_scores(2, 76), CLASSES)
