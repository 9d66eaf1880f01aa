"""Races: a grid that gives further seeds only to the values that may still be the best (successive elimination).

All values are trained with the first seed, then all that are left with the second one, and so on. After each round from
the second on, a value is dropped if it is worse than the leading one beyond noise. The state of a race follows from the
finished trials alone, so that a resumed race makes the same decisions.

The probability that the best value is ever dropped is at most ``ALPHA``, by Bonferroni's inequality over the rounds and
over the values that might lead: for accuracies on these clips, if the noise of seeds is normal and of similar size for
all values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fgst.sweep.definition import Trial
from fgst.sweep.noise import ALPHA, residual_variance

DEFAULT_ROUNDS = 10
Table = Mapping[str, Mapping[int, float]]  # accuracy in % by label and seed


@dataclass(frozen=True)
class Drop:
    """Why a value is trained with no further seeds.

    Attributes:
        after: number of seeds, counted from 1.
        leader: label of the value that was ahead.
        behind: points by which it was ahead.
        needed: points that were needed.
    """

    after: int
    leader: str
    behind: float
    needed: float


@dataclass(frozen=True)
class RaceState:
    """A race as far as its trials have finished.

    Attributes:
        rounds: number of complete rounds.
        dropped: by label.
        due: trials of the current round without a result, in order; empty at the end of the race.
        possible: trials that later rounds may add at most.
    """

    rounds: int
    dropped: Mapping[str, Drop]
    due: tuple[Trial, ...]
    possible: int


def race_state(
    trials: Sequence[Trial], accuracies: Mapping[str, float], failed: frozenset[str] | set[str] = frozenset(),
    weights: Mapping[int, float] | None = None,
) -> RaceState:  # fmt: skip
    """Derive the state of a race.

    Args:
        trials: all trials that the race may train.
        accuracies: validation top-1 in % of the finished trials, by trial id.
        failed: ids of trials that ended without a result. A value whose first two trainings failed gets no
            further seeds.
        weights: weight of each seed in the means, for folds of different sizes; by default all are equal.
    """
    labels = list(dict.fromkeys(trial.label for trial in trials))
    seeds = sorted({trial.config.train.seed for trial in trials})
    by_cell = {(trial.label, trial.config.train.seed): trial for trial in trials}
    table: dict[str, dict[int, float]] = {label: {} for label in labels}
    left, dropped = list(labels), dict[str, Drop]()
    for number, seed in enumerate(seeds, 1):
        cells = [by_cell[label, seed] for label in left]
        due = tuple(trial for trial in cells if trial.trial_id not in accuracies and trial.trial_id not in failed)
        if due:
            return RaceState(number - 1, dropped, due, len(left) * (len(seeds) - number))
        for trial in cells:
            if trial.trial_id in accuracies:
                table[trial.label][seed] = accuracies[trial.trial_id]
        left = [label for label in left if table[label] or number < 2]
        drops = eliminate(table, left, number, len(labels), len(seeds), weights)
        dropped |= drops
        left = [label for label in left if label not in drops]
        if len(left) < 2:
            return RaceState(number, dropped, (), 0)
    return RaceState(len(seeds), dropped, (), 0)


def eliminate(
    table: Table, left: Sequence[str], number: int, values: int, rounds: int,
    weights: Mapping[int, float] | None = None,
) -> dict[str, Drop]:  # fmt: skip
    """The values to drop after a round.

    The variance of a training is that of the residuals of an additive model (value + seed) of all results so far,
    dropped values included: with few seeds, the variance of a single pair would be too uncertain to decide anything.

    Args:
        table: accuracies by label and seed.
        left: the labels that are compared.
        number: of the round, from 1.
        values, rounds: of the whole race.
        weights: as for :func:`race_state`.
    """
    variance, freedom = residual_variance(table)
    if number < 2 or len(left) < 2 or freedom < 1:
        return {}
    level = ALPHA / ((values - 1) * (rounds - 1))
    threshold = _quantile(level, freedom) * math.sqrt(variance)
    common = sorted(set.intersection(*(set(table[label]) for label in left)))
    if not common:  # every seed failed for some value
        return {}
    shares = np.array([1.0 if weights is None else weights[seed] for seed in common])
    shares /= shares.sum()
    means = {label: float(shares @ [table[label][seed] for seed in common]) for label in left}
    leader = max(left, key=lambda label: means[label])
    needed = threshold * math.sqrt(2 * float((shares**2).sum()))
    gaps = {label: means[leader] - means[label] for label in left}
    return {label: Drop(number, leader, gap, needed) for label, gap in gaps.items() if gap > needed}


@lru_cache(maxsize=1024)
def _quantile(level: float, freedom: int) -> float:
    from scipy.stats import t  # lazy: scipy.stats takes half a second to import

    return float(t.isf(level, freedom))
