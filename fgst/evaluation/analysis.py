"""Statistics of scores beyond accuracy, and paired comparisons of two networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fgst.evaluation.ensemble import align, softmax
from fgst.evaluation.metrics import Scores

BINS = 15
"""Number of equally wide confidence bins, as usual in the literature."""
RESAMPLES = 10_000
Z95 = 1.959964
SIGNIFICANT = 0.05
"""Adjusted p-values below this are called beyond noise, or beyond chance."""


def calibration_bins(scores: Scores, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort clips into equally wide bins by confidence, the probability of the predicted class.

    Returns:
        For each bin the number of clips, the sum of their confidences, and the number of correct predictions:
        three arrays ``(bins,)``.
    """
    confidence = softmax(scores.scores).max(axis=1)
    correct = scores.predictions == scores.labels
    bin_of_clip = np.minimum((confidence * bins).astype(int), bins - 1)
    return (
        np.bincount(bin_of_clip, minlength=bins),
        np.bincount(bin_of_clip, confidence, bins),
        np.bincount(bin_of_clip, correct, bins),
    )


def calibration_error(scores: Scores, bins: int = BINS) -> float:
    """Expected calibration error in %: the mean gap between confidence and accuracy over all clips; 0 is perfect."""
    counts, confidence, correct = calibration_bins(scores, bins)
    gaps = np.abs(confidence - correct)
    return 100 * float(gaps[counts > 0].sum()) / scores.num_clips


def bootstrap_interval(scores: Scores, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of top-1 in %, from resampling the clips with replacement.

    The number of correct predictions among ``n`` resampled clips has a binomial distribution, from which it is sampled
    directly. Clips of the same person are correlated, so with few subjects the true uncertainty is larger.
    """
    n = scores.num_clips
    correct = int((scores.predictions == scores.labels).sum())
    samples = np.random.default_rng(seed).binomial(n, correct / n, resamples)
    low, high = np.percentile(samples, [2.5, 97.5])
    return 100 * float(low) / n, 100 * float(high) / n


def confused_pairs(scores: Scores, classes: Sequence[str], most: int = 5) -> list[dict[str, Any]]:
    """Find the pairs of classes that are confused most often.

    Args:
        scores: the scores.
        classes: class names.
        most: maximum number of pairs.

    Returns:
        Rows with ``true``, ``predicted``, ``count``, ``share`` (of the true class, in %) and ``clips`` (their ids).
    """
    matrix = scores.confusion()
    sizes = matrix.sum(axis=1)
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:most]
    pairs = []
    for true, predicted in zip(*np.unravel_index(order, matrix.shape), strict=True):
        count = int(matrix[true, predicted])
        if count:
            confused = (scores.labels == true) & (scores.predictions == predicted)
            pairs.append(
                {
                    "true": classes[true],
                    "predicted": classes[predicted],
                    "count": count,
                    "share": 100 * count / int(sizes[true]),
                    "clips": [str(clip) for clip in scores.clip_ids[confused]],
                }
            )
    return pairs


def mcnemar(only_first: int, only_second: int) -> float:
    """p-value of McNemar's exact test that two networks have the same accuracy (two-sided, binomial).

    Args:
        only_first: number of clips that only the first network classifies correctly.
        only_second: number of clips that only the second network classifies correctly.

    Returns:
        The p-value; 1 if there are no such clips.
    """
    from scipy.stats import binomtest  # lazy: importing scipy.stats takes a second

    n = only_first + only_second
    return float(binomtest(only_first, n).pvalue) if n else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for the number of tests (Holm–Bonferroni): the share of families with any false finding.

    Returns:
        The adjusted p-values in the order of the given ones, at most 1.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def accuracy_interval(correct: int, n: int) -> tuple[float, float]:
    """95 % Wilson interval of an accuracy in %, of ``correct`` of ``n`` clips."""
    from scipy.stats import binomtest  # lazy: importing scipy.stats takes a second

    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def paired_interval(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """95 % interval of the difference of two accuracies on the same clips in percentage points (Bonett and Price).

    Unlike an interval from the sample variance, it is not empty if the networks differ on no clip.

    Args:
        only_first: number of clips that only the first network classifies correctly.
        only_second: number of clips that only the second network classifies correctly.
        n: number of clips.
    """
    first, second = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    half_width = Z95 * math.sqrt((first + second - (first - second) ** 2) / (n + 2))
    low, high = first - second - half_width, first - second + half_width
    return 100 * max(-1.0, low), 100 * min(1.0, high)


def compare(first: Scores, second: Scores, classes: Sequence[str]) -> dict[str, Any]:
    """Compare two networks on the same clips (per class as in Figure 6 of the paper).

    Returns:
        JSON values: ``num_clips``; ``first_top1`` and ``second_top1`` in %; their ``difference`` with its 95 %
        ``interval``; ``only_first`` and ``only_second``, the numbers of clips that only one classifies correctly;
        ``p_value`` of McNemar's exact test; and ``per_class``, rows with ``class``, ``num_clips``; ``first``,
        ``second`` and ``difference`` in %; their 95 % intervals ``first_interval``, ``second_interval`` and
        ``interval``; ``p_value`` of McNemar's exact test, ``adjusted_p_value`` for the number of classes (Holm), and
        ``beyond_noise``, whether that is below 0.05; sorted by difference in descending order.

    Raises:
        InputError: if the scores are not of the same clips.
    """
    aligned = align({"this run": first, "the other": second})
    first, second = aligned["this run"], aligned["the other"]
    first_correct, second_correct = first.predictions == first.labels, second.predictions == second.labels
    only_first, only_second = int((first_correct & ~second_correct).sum()), int((second_correct & ~first_correct).sum())
    n = first.num_clips
    difference = (only_first - only_second) / n
    half_width = Z95 * math.sqrt(max(0.0, (only_first + only_second) / n - difference**2) / n)
    rows: list[dict[str, Any]] = []
    for label, name in enumerate(classes):
        of_class = first.labels == label
        if of_class.any():
            count = int(of_class.sum())
            corrects = [int(correct[of_class].sum()) for correct in (first_correct, second_correct)]
            both = int((first_correct & second_correct)[of_class].sum())
            only_of_class = corrects[0] - both, corrects[1] - both
            first_top1, second_top1 = (100 * correct / count for correct in corrects)
            first_interval, second_interval = (list(accuracy_interval(correct, count)) for correct in corrects)
            rows.append(
                {
                    "class": name,
                    "num_clips": count,
                    "first": first_top1,
                    "second": second_top1,
                    "difference": first_top1 - second_top1,
                    "first_interval": first_interval,
                    "second_interval": second_interval,
                    "interval": list(paired_interval(*only_of_class, count)),
                    "p_value": mcnemar(*only_of_class),
                }
            )
    for row, adjusted in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row |= {"adjusted_p_value": adjusted, "beyond_noise": adjusted < SIGNIFICANT}
    rows.sort(key=lambda row: -row["difference"])
    return {
        "num_clips": n,
        "first_top1": first.top(1),
        "second_top1": second.top(1),
        "difference": 100 * difference,
        "interval": [100 * (difference - half_width), 100 * (difference + half_width)],
        "only_first": only_first,
        "only_second": only_second,
        "p_value": mcnemar(only_first, only_second),
        "per_class": rows,
    }
