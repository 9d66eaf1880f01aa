"""Differences between configurations, separated from the noise of seeds and of clips; all in percentage points.

*Seed noise*: would a difference repeat with other seeds, on the same clips? *Clip noise*: would it also repeat on other
clips of the same kind? See "What a difference means" in docs/sweeps.md for the methods.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

ALPHA = 0.05  # two-sided error probability of intervals and of all comparisons of a table together
_SMALLEST_P = 1e-15


@dataclass(frozen=True)
class Difference:
    """A mean difference in points and half the width of its 95 % interval.

    Attributes:
        mean: the mean of the paired differences (same seeds on both sides).
        half_width: half the width of the interval, not corrected for other comparisons.
        pairs: number of seeds (of folds, if each seed has other clips).
        p_value: probability of so large a difference by chance; corrected if the table has several rows.
    """

    mean: float
    half_width: float
    pairs: int
    p_value: float | None = None

    @property
    def beyond_noise(self) -> bool:
        """Whether noise is an implausible explanation: by the p-value, or without one by the interval."""
        if self.p_value is not None:
            return self.p_value <= ALPHA
        return abs(self.mean) > self.half_width


def student(
    differences: Sequence[float], weights: Sequence[float] | None = None, resolution: float = 0.0
) -> Difference:
    """The mean of at least two paired differences, with Student's t.

    Args:
        weights: weight of each pair in the mean; by default all are equal.
        resolution: what one clip contributes, in points. Two or three accuracies on few clips are often equal by
            chance; its variance within a step (1/12) keeps the interval from having no width then.
    """
    from scipy.stats import t  # lazy: scipy.stats takes half a second to import

    n = len(differences)
    weights = [1.0] * n if weights is None else weights
    mean = statistics.fmean(differences, weights)
    # The standard error of a weighted mean; with equal weights, the standard deviation divided by the root of n.
    deviations = [w * (difference - mean) for w, difference in zip(weights, differences, strict=True)]
    error = math.hypot(*deviations) / sum(weights) * math.sqrt(n / (n - 1))
    error = math.hypot(error, resolution / math.sqrt(12 * n))
    ratio = abs(mean) / error if error else math.inf * abs(mean) if mean else 0.0
    return Difference(mean, float(t.ppf(1 - ALPHA / 2, n - 1)) * error, n, float(2 * t.sf(ratio, n - 1)))


@dataclass(frozen=True)
class Variances:
    """Variances of the difference of two configurations on a clip, in squared points.

    Attributes:
        seeds: of the accuracies' difference over seeds, apart from what the finite number of clips contributes.
        clips: of what is the same with all seeds: how much one configuration suits a clip better than the other.
        rest: of what differs with both.
        num_seeds, num_clips: size of the table that they were estimated from.
    """

    seeds: float
    clips: float
    rest: float
    num_seeds: int
    num_clips: int


def variances(differences: np.ndarray) -> Variances:
    """Estimate the variances from a table ``(seeds, clips)`` by the analysis of variance without replication.

    Args:
        differences: +1 where only the first network is correct, -1 where only the second is, else 0; two or more seeds.
    """
    table = 100 * np.asarray(differences, dtype=float)
    seeds, clips = table.shape
    mean, of_seed, of_clip = table.mean(), table.mean(axis=1), table.mean(axis=0)
    between_seeds = clips * float(((of_seed - mean) ** 2).sum()) / (seeds - 1)
    between_clips = seeds * float(((of_clip - mean) ** 2).sum()) / (clips - 1)
    residuals = table - of_seed[:, None] - of_clip + mean
    rest = float((residuals**2).sum()) / ((seeds - 1) * (clips - 1))
    return Variances(max(0.0, between_seeds - rest) / clips, max(0.0, between_clips - rest) / seeds, rest, seeds, clips)


def crossed(differences: np.ndarray) -> Difference:
    """The mean difference and its interval for other seeds and other clips, from a table ``(seeds, clips)``.

    The variance of the mean has two parts: that of the seeds' means (Student's t over seeds), and that of what the
    clips contribute with every seed. Their squared half widths are added (MOVER), so that the interval is never
    narrower than that of the seeds alone. With one seed, it is that of these two networks.

    Args:
        differences: as for :func:`variances`; two or more clips.
    """
    from scipy.optimize import brentq  # lazy: SciPy takes half a second to import
    from scipy.stats import t

    seeds, clips = differences.shape
    mean = 100 * float(differences.mean())
    if seeds > 1:
        of_seeds = (float(np.var(100 * differences.mean(axis=1), ddof=1)) + (100 / clips) ** 2 / 12) / seeds
        of_clips = variances(differences).clips / clips
    else:  # half a clip more in either direction (Agresti and Min), because few clips differ
        extended = np.append(differences[0], (math.sqrt(0.5), -math.sqrt(0.5)))
        of_seeds, of_clips = 0.0, float(np.var(100 * extended, ddof=1)) / clips

    def squared_half_width(alpha: float) -> float:
        by_seeds = float(t.isf(alpha / 2, seeds - 1)) ** 2 * of_seeds if seeds > 1 else 0.0
        return by_seeds + float(t.isf(alpha / 2, clips - 1)) ** 2 * of_clips

    half_width = math.sqrt(squared_half_width(ALPHA))
    if squared_half_width(_SMALLEST_P) <= mean**2:
        p_value = _SMALLEST_P if mean else 1.0
    else:
        p_value = float(brentq(lambda alpha: squared_half_width(alpha) - mean**2, _SMALLEST_P, 1.0))
    return Difference(mean, half_width, seeds, p_value)


def residual_variance(table: Mapping[str, Mapping[int, float]]) -> tuple[float, int]:
    """The variance of accuracies by label and seed that an additive model (label + seed) leaves.

    The paired difference of two labels has twice this variance.

    Returns:
        The variance and its degrees of freedom; 0 and 0 if there are too few accuracies.
    """
    cells = [(label, seed, value) for label, row in table.items() for seed, value in row.items()]
    labels = {label: i for i, label in enumerate(dict.fromkeys(label for label, _, _ in cells))}
    seeds = {seed: i for i, seed in enumerate(dict.fromkeys(seed for _, seed, _ in cells))}
    if not cells:
        return 0.0, 0
    design = np.zeros((len(cells), len(labels) + len(seeds)))
    for row, (label, seed, _) in enumerate(cells):
        design[row, labels[label]] = design[row, len(labels) + seeds[seed]] = 1
    values = np.array([value for _, _, value in cells])
    values -= values.mean()
    solution, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    freedom = len(cells) - int(rank)  # labels without a common seed have an offset of their own
    residuals = values - design @ solution
    return (float(residuals @ residuals) / freedom, freedom) if freedom else (0.0, 0)
