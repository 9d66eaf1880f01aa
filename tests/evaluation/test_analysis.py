"""What is said about scores, against slow readings of the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgst.errors import InputError
from fgst.evaluation.analysis import bootstrap_interval, calibration_error, compare, confused_pairs, mcnemar
from tests.evaluation.test_ensemble import scores, shuffled

CLASSES = ("wave", "sit", "stand", "throw")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 8))
def test_calibration_error_is_the_mean_gap(seed: int, scale: float) -> None:
    found = scores(seed, 60, right=scale)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(found.scores.astype(np.float64).tolist(), found.labels.tolist(), strict=True):
        powers = [math.exp(value) for value in row]
        sure = max(powers) / sum(powers)
        bins.setdefault(min(int(sure * 15), 14), []).append((sure, row.index(max(row)) == label))
    gap = 0.0
    for clips in bins.values():
        confidence = sum(sure for sure, _ in clips) / len(clips)
        accuracy = sum(right for _, right in clips) / len(clips)
        gap += len(clips) / 60 * abs(confidence - accuracy)
    assert calibration_error(found) == pytest.approx(100 * gap, abs=1e-6)


def test_bootstrap_interval_holds_the_accuracy_and_is_as_wide_as_drawing_clips() -> None:
    found = scores(3, 200, right=1.5)
    low, high = bootstrap_interval(found)
    assert low < found.top(1) < high
    right = found.predictions == found.labels
    rng = np.random.default_rng(7)
    drawn = [100 * right[rng.integers(0, 200, 200)].mean() for _ in range(4000)]
    assert (low, high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])), abs=1.0)
    assert bootstrap_interval(found) == (low, high)
    assert bootstrap_interval(scores(3, 20, right=100.0)) == (100.0, 100.0)


def test_confused_pairs_name_their_clips() -> None:
    found = scores(5, 80, right=0.5)
    pairs = confused_pairs(found, CLASSES)
    counted: dict[tuple[int, int], list[str]] = {}
    for clip, label, predicted in zip(found.clip_ids, found.labels, found.predictions, strict=True):
        if label != predicted:
            counted.setdefault((int(label), int(predicted)), []).append(clip)
    assert [pair["count"] for pair in pairs] == sorted((len(clips) for clips in counted.values()), reverse=True)[:5]
    for pair in pairs:
        clips = counted[CLASSES.index(pair["true"]), CLASSES.index(pair["predicted"])]
        assert pair["clips"] == clips
        assert pair["share"] == pytest.approx(100 * len(clips) / 20)
    assert confused_pairs(scores(5, 20, right=100.0), CLASSES) == []


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 5), (12, 3), (3, 12), (40, 22)])
def test_mcnemar_is_the_two_sided_binomial(b: int, c: int) -> None:
    n = b + c
    chances = [math.comb(n, k) / 2**n for k in range(n + 1)]
    expected = sum(chance for chance in chances if chance <= chances[b] * (1 + 1e-9)) if n else 1.0
    assert mcnemar(b, c) == pytest.approx(expected)


def test_comparison_pairs_clips_whatever_their_order() -> None:
    first, second = scores(1, 80, right=1.6), scores(2, 80, right=0.8)
    found = compare(first, shuffled(second), CLASSES)
    mine, theirs = first.predictions == first.labels, second.predictions == second.labels
    assert (found["only_first"], found["only_second"]) == ((mine & ~theirs).sum(), (theirs & ~mine).sum())
    assert found["difference"] == pytest.approx(first.top(1) - second.top(1))
    low, high = found["interval"]
    assert low < found["difference"] < high
    paired = (mine.astype(float) - theirs) * 100
    assert (high - low) / 2 == pytest.approx(1.96 * paired.std() / math.sqrt(80), rel=1e-3)
    assert [row["difference"] for row in found["per_class"]] == sorted(
        (row["difference"] for row in found["per_class"]), reverse=True
    )
    for row in found["per_class"]:
        here = first.labels == CLASSES.index(row["class"])
        assert row["first"] == pytest.approx(100 * mine[here].mean())
        assert row["second"] == pytest.approx(100 * theirs[here].mean())
        assert row["num_clips"] == 20


def test_comparison_of_other_clips_is_refused() -> None:
    with pytest.raises(InputError, match="the scores of this run and the other are not of the same clips"):
        compare(scores(1, 80), scores(2, 76), CLASSES)
