"""What the scores of a split say beyond their accuracy, and how two networks differ on the same clips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fgst.evaluation.ensemble import align, softmax
from fgst.evaluation.metrics import Scores

BINS = 15  # of confidence, equally wide: the field's usual number
RESAMPLES = 10_000
Z95 = 1.959964


def calibration_error(scores: Scores, bins: int = BINS) -> float:
    """Expected calibration error in %: how far confidence and accuracy are apart, on average over the clips.

    The clips are put into ``bins`` by the probability of their predicted class; 0 is perfect.
    """
    sure = softmax(scores.scores).max(axis=1)
    right = scores.predictions == scores.labels
    place = np.minimum((sure * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    gaps = np.abs(np.bincount(place, sure, bins) - np.bincount(place, right, bins))
    return 100 * float(gaps[counts > 0].sum()) / scores.num_clips


def bootstrap_interval(scores: Scores, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """95 % interval of top-1 in %, from clips drawn again with replacement.

    The number of right ones among ``n`` clips so drawn is binomial: it is drawn as such, not clip by clip. Clips of
    one person are alike, so with few subjects the truth is wider.
    """
    n = scores.num_clips
    right = int((scores.predictions == scores.labels).sum())
    drawn = np.random.default_rng(seed).binomial(n, right / n, resamples)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return 100 * float(low) / n, 100 * float(high) / n


def confused_pairs(scores: Scores, classes: Sequence[str], most: int = 5) -> list[dict[str, Any]]:
    """The classes taken for another most often: ``true``, ``predicted``, ``count``, ``share`` in %, ``clips`` by id."""
    matrix = scores.confusion()
    sizes = matrix.sum(axis=1)
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:most]
    pairs = []
    for true, predicted in zip(*np.unravel_index(order, matrix.shape), strict=True):
        count = int(matrix[true, predicted])
        if count:
            here = (scores.labels == true) & (scores.predictions == predicted)
            pairs.append(
                {
                    "true": classes[true],
                    "predicted": classes[predicted],
                    "count": count,
                    "share": 100 * count / int(sizes[true]),
                    "clips": [str(clip) for clip in scores.clip_ids[here]],
                }
            )
    return pairs


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact test: how likely so uneven a split of the clips that one alone got right is by chance.

    Two-sided, binomial with one half; 1 if there is no such clip.
    """
    from scipy.stats import binomtest

    n = only_first + only_second
    return float(binomtest(only_first, n).pvalue) if n else 1.0


def compare(first: Scores, second: Scores, classes: Sequence[str]) -> dict[str, Any]:
    """How ``first`` differs from ``second`` on the same clips (Figure 6 of the paper, per class).

    Returns:
        JSON values: ``difference`` of top-1 in % with its 95 % ``interval``, ``only_first`` and ``only_second`` (clips
        that one alone got right), ``p_value`` of McNemar's exact test, and ``per_class`` rows ``class``, ``num_clips``,
        ``first``, ``second``, ``difference`` in %, the largest gain first.

    Raises:
        InputError: if they are not of the same clips.
    """
    both = align({"this run": first, "the other": second})
    first, second = both["this run"], both["the other"]
    right, theirs = first.predictions == first.labels, second.predictions == second.labels
    gained, lost, n = int((right & ~theirs).sum()), int((theirs & ~right).sum()), first.num_clips
    difference = (gained - lost) / n
    half = Z95 * math.sqrt(max(0.0, (gained + lost) / n - difference**2) / n)
    rows: list[dict[str, Any]] = []
    for label, name in enumerate(classes):
        here = first.labels == label
        if here.any():
            mine, other = 100 * float(right[here].mean()), 100 * float(theirs[here].mean())
            rows.append(
                {
                    "class": name,
                    "num_clips": int(here.sum()),
                    "first": mine,
                    "second": other,
                    "difference": mine - other,
                }
            )
    rows.sort(key=lambda row: -row["difference"])
    return {
        "num_clips": n,
        "first_top1": first.top(1),
        "second_top1": second.top(1),
        "difference": 100 * difference,
        "interval": [100 * (difference - half), 100 * (difference + half)],
        "only_first": gained,
        "only_second": lost,
        "p_value": mcnemar(gained, lost),
        "per_class": rows,
    }
