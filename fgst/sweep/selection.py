"""An honest estimate of the accuracy of a sweep's best configuration.

The configuration with the best validation accuracy is partly the one that these clips happen to favour, so its own
validation accuracy is too high: the more so, the more configurations there are and the fewer clips. Therefore the
choice is repeated without a third of the clips, and the chosen configuration is evaluated on that third: each clip is
judged by a choice that did not use it. This is averaged over divisions into thirds. A choice by fewer clips is slightly
worse, so the estimate is slightly too low; with smaller parts it would be less so, but vary more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

PARTS = 3
DIVISIONS = 50
MIN_CLIPS = 20


@dataclass(frozen=True)
class WinnerEstimate:
    """What the best configuration's validation accuracy is worth; all in % or points.

    Attributes:
        reached: its validation accuracy.
        honest: the estimate for other clips of the same kind.
        half_width: half the width of the 95 % interval of ``honest``, from the sampling of clips and the correction.
        candidates: number of configurations among which it was chosen.
    """

    reached: float
    honest: float
    half_width: float
    candidates: int

    @property
    def bias(self) -> float:
        """By how much choosing it flatters it."""
        return self.reached - self.honest


def estimate_winner(candidates: Sequence[Mapping[str, float]], seed: int = 0) -> WinnerEstimate | None:
    """Estimate the accuracy of the best of several configurations.

    Args:
        candidates: for each configuration, how often each clip was classified correctly, from 0 to 1, by clip id. Those
            that lack clips of the best one are left out.
        seed: of the random divisions.

    Returns:
        The estimate; ``None`` for fewer than two configurations or ``MIN_CLIPS`` clips.
    """
    known = [candidate for candidate in candidates if candidate]
    if not known:
        return None
    best = max(known, key=lambda candidate: (len(candidate), sum(candidate.values())))
    clips = sorted(best)
    table = np.array([[c[clip] for clip in clips] for c in known if c.keys() == best.keys()])
    return estimate_from_table(table, seed)


def estimate_from_table(table: np.ndarray, seed: int = 0) -> WinnerEstimate | None:
    """:func:`estimate_winner` for a table ``(configurations, clips)``."""
    number, clips = table.shape
    if number < 2 or clips < MIN_CLIPS:
        return None
    generator, judged = np.random.default_rng(seed), np.zeros(clips)
    for _ in range(DIVISIONS):
        part = generator.permutation(clips) % PARTS
        sums = np.stack([table[:, part == p].sum(axis=1) for p in range(PARTS)])
        counts = np.bincount(part, minlength=PARTS)
        chosen = ((table.sum(axis=1) - sums) / (clips - counts)[:, None]).argmax(axis=1)
        judged += table[chosen[part], np.arange(clips)]
    honest = float(judged.mean()) / DIVISIONS
    reached = float(table.mean(axis=1).max())
    # Agresti and Coull: two clips more of either kind, because few are wrong at high accuracies. The correction itself
    # is uncertain by about a half.
    sampling = (clips * honest * (1 - honest) + 2) / (clips + 4) / clips
    half_width = 1.96 * math.sqrt(sampling + ((reached - honest) / 2) ** 2)
    return WinnerEstimate(100 * reached, 100 * honest, 100 * half_width, number)
