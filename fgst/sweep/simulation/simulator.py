"""A search tried on recorded learning curves: what it would have found, when, and at what cost.

The search, its early stopping and its limits are the real ones, on a study in memory. The clock is not: a trial's
epochs come when they came in the recording, so a search of days takes seconds. What is left out is what a real one pays
beside training: the start of processes, and the pause between two trials. Nothing is started, and nothing is written.
"""

from __future__ import annotations

import heapq
import itertools
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fgst.errors import InputError
from fgst.sweep.definition import OBJECTIVES, Parameter, Trial, TrialFactory
from fgst.sweep.results import TrialResult, best_result
from fgst.sweep.scheduler import TrialScheduler, TrialUpdate
from fgst.sweep.search import Search
from fgst.sweep.simulation.curves import VAL, Curve
from fgst.sweep.spec import SweepSpec
from fgst.sweep.status import TrialExit, TrialStatus
from fgst.sweep.stopping import Budget

SAID = 10.0  # seconds between two words of progress
_Identity = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Limits:
    """What a simulated search may use: as the options of the same names."""

    max_concurrent: int = 1
    max_hours: float | None = None
    max_trials: int | None = None
    until_top1: float | None = None


@dataclass(frozen=True)
class Simulated:
    """What came of one simulated search.

    Attributes:
        chosen: the recorded trial behind its best by validation; ``None`` if none ran to its end.
        val: that one's validation top-1 in % (over the seeds that the search gave it, where several).
        rank: of its point among all recorded ones by validation, from 1 on; of equals the best.
        regret: points of validation top-1 that its point lies behind the best recorded one.
        hours, device_hours: simulated.
        begun, exact, other_seed: trials; of those, recorded with that seed; recorded with another. The rest took the
            nearest recorded point, at the ``distances``.
        epochs, planned: that were trained; that all begun trials would have taken to their end.
        lost: the trial that would have ended best of those begun was stopped early.
        growth: (hours, regret) each time that a new best was found.
        stopped: the limit that ended it, in words.
    """

    chosen: Curve | None
    val: float
    rank: int
    regret: float
    hours: float
    device_hours: float
    begun: int
    exact: int
    other_seed: int
    distances: tuple[float, ...]
    epochs: int
    planned: int
    lost: bool
    growth: tuple[tuple[float, float], ...]
    stopped: str = ""

    @property
    def neighbours(self) -> int:
        return len(self.distances)


class Records:
    """Recorded curves within a sweep's space, and the nearest of them to any point.

    Nearness is the sum over parameters of how far two values are apart: as a share of the parameter's range (by ratios
    where it is searched by ratios), 0 or 1 between texts, and 1 where only one of two points has the parameter.

    Attributes:
        curves: those that lie in the space, and are as long as a trial of the sweep.
        outside, short: how many more there are that do not, or are not.

    Raises:
        InputError: if they are of other parameters, or none of them is left.
    """

    def __init__(self, spec: SweepSpec, curves: Sequence[Curve], what: str) -> None:
        self._parameters = spec.parameters
        self._check_names(spec, curves, what)
        epochs = spec.base.train.epochs
        inside = [c for c in curves if all(p.allows(c.params[p.name]) for p in spec.parameters if p.name in c.params)]
        self.curves = [curve for curve in inside if len(curve.val) >= epochs]
        self.outside, self.short = len(curves) - len(inside), len(inside) - len(self.curves)
        if not inside:
            space = "; ".join(f"{p.name}: {p.describe()}" for p in spec.parameters)
            raise InputError(f"{what}: none of its {len(curves)} trials lies in what is searched ({space})")
        if not self.curves:
            longest = max(len(curve.val) for curve in inside)
            raise InputError(
                f"{what}: its trials have up to {longest} epochs, and {epochs} are asked; give --epochs {longest}"
            )
        needed = [OBJECTIVES[name] for name in spec.objectives if name not in ("val_top1", "test_top1")]
        for _, metric in needed:
            if lacking := sum(metric not in curve.end for curve in self.curves):
                raise InputError(f"{what}: {lacking} of its trials have no {metric}, which --objectives needs")
        self.epochs = epochs
        self._columns = [self._column(parameter) for parameter in spec.parameters]
        self._known: dict[tuple[_Identity, int], tuple[Curve, float]] = {}
        of_point: dict[_Identity, list[float]] = {}
        for curve in self.curves:
            of_point.setdefault(identity(curve.params), []).append(curve.val[epochs - 1])
        self.worth = {params: statistics.fmean(values) for params, values in of_point.items()}
        self.best = max(self.worth.values())

    def _check_names(self, spec: SweepSpec, curves: Sequence[Curve], what: str) -> None:
        mine = [parameter.name for parameter in spec.parameters]
        for curve in curves:
            expected = [p.name for p in spec.parameters if p.applies(curve.params)]
            if set(expected) != set(curve.params):
                has, wants = ", ".join(curve.params) or "nothing", ", ".join(mine)
                raise InputError(
                    f"{what}: has a trial that varies {has}, and this sweep varies {wants}; take the script, and the "
                    "--also, that the curves were recorded with"
                )

    def _column(self, parameter: Parameter) -> np.ndarray:
        """Where each curve lies on a parameter, in shares of its range; NaN where it has none."""
        return np.array([self._place(parameter, curve.params.get(parameter.name)) for curve in self.curves])

    @staticmethod
    def _place(parameter: Parameter, value: Any) -> float:
        if value is None:
            return math.nan
        if parameter.values and any(isinstance(v, str) for v in parameter.values):
            return 2.0 * parameter.values.index(value)  # any two are a whole range apart, or more
        low, high = parameter.low, parameter.high
        if parameter.values:
            low, high = min(parameter.values), max(parameter.values)
        assert low is not None
        assert high is not None
        if parameter.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return float((value - low) / (high - low)) if high > low else 0.0

    def nearest(self, params: Mapping[str, Any], seed: int) -> tuple[Curve, float]:
        """The nearest curve, of equals one of that seed or else the first, and how far it is."""
        sought = identity(params), seed
        if sought not in self._known:
            apart = np.zeros(len(self.curves))
            for parameter, column in zip(self._parameters, self._columns, strict=True):
                place = self._place(parameter, params.get(parameter.name))
                one_has_none = np.isnan(column) != math.isnan(place)
                difference = np.minimum(1.0, np.nan_to_num(np.abs(column - place)))
                apart += np.where(one_has_none, 1.0, difference)
            near = np.flatnonzero(apart <= apart.min() + 1e-12)
            same = [index for index in near if self.curves[index].seed == seed]
            index = int((same or list(near))[0])
            self._known[sought] = self.curves[index], float(apart[index])
        return self._known[sought]

    def rank(self, curve: Curve) -> int:
        mine = self.worth[identity(curve.params)]
        return 1 + sum(worth > mine for worth in self.worth.values())

    def regret(self, curve: Curve) -> float:
        return self.best - self.worth[identity(curve.params)]

    def hours(self, concurrency: int) -> tuple[float, float]:
        """Of all recorded trials, to their end, so many at a time: on the wall, and of devices."""
        free = [0.0] * concurrency
        for curve in self.curves:
            heapq.heapreplace(free, free[0] + curve.minutes[self.epochs - 1])
        devices = sum(curve.minutes[self.epochs - 1] * curve.devices for curve in self.curves)
        return max(free) / 60, devices / 60


def identity(params: Mapping[str, Any]) -> _Identity:
    return tuple(sorted(params.items()))


@dataclass
class _Clock:
    now: float = 0.0  # seconds

    def __call__(self) -> float:
        return self.now


@dataclass
class _Notes:
    """What a search does, as it is told."""

    records: Records
    clock: _Clock
    behind: dict[str, Curve] = field(default_factory=dict)  # by key, the curve that a trial follows
    finished: list[TrialResult] = field(default_factory=list)
    growth: list[tuple[float, float]] = field(default_factory=list)
    stopped_early: list[str] = field(default_factory=list)

    def listen(self, progress: TrialUpdate) -> None:
        trial, metrics = progress.trial, progress.metrics
        if progress.status is TrialStatus.PRUNED:
            self.stopped_early.append(trial.trial_id)
        if progress.status is not TrialStatus.FINISHED:
            return
        best = max((result.metrics[VAL] for result in self.finished), default=-math.inf)
        self.finished.append(
            TrialResult(
                trial.trial_id,
                trial.label,
                trial.config.train.seed,
                dict(trial.params),
                "",
                TrialStatus.FINISHED,
                metrics,
            )
        )
        if metrics[VAL] > best:
            self.growth.append((self.clock.now / 3600, self.records.regret(self.behind[trial.trial_id])))


def simulate(spec: SweepSpec, trials: TrialFactory, records: Records, limits: Limits, draws: int) -> Simulated:
    """One search over the recorded trials, with the seed of its random draws."""
    clock = _Clock()
    notes = _Notes(records, clock)
    budget = Budget(limits.max_hours, limits.max_trials, limits.until_top1, clock)
    course = TrialScheduler(Search(spec, trials, None, "simulated", sampler_seed=draws), budget, notes.listen)
    coming: list[tuple[float, int, str, int]] = []  # (when, order, trial, epoch)
    began: dict[str, float] = {}
    order, epochs, device_minutes = itertools.count(), 0, 0.0
    exact = other_seed = 0
    distances: list[float] = []

    def begin(trial: Trial) -> None:
        nonlocal exact, other_seed
        seed = trial.config.train.seed
        curve, distance = records.nearest(dict(trial.params), seed)
        if distance > 0:
            distances.append(distance)
        else:
            exact += curve.seed == seed
            other_seed += curve.seed != seed
        notes.behind[trial.trial_id], began[trial.trial_id] = curve, clock.now
        heapq.heappush(coming, (clock.now + 60 * curve.minutes[0], next(order), trial.trial_id, 1))

    while True:
        while len(coming) < limits.max_concurrent and (trial := course.next_trial()) is not None:
            begin(trial)
        if not coming:
            break
        clock.now, _, trial_id, epoch = heapq.heappop(coming)
        curve, last = notes.behind[trial_id], epoch == records.epochs
        metrics = {"epoch": float(epoch), VAL: curve.val[epoch - 1], "minutes": curve.minutes[epoch - 1]}
        metrics |= {name: value for name, value in curve.end.items() if last or name.startswith("model/")}
        epochs += 1
        if (status := course.on_result(trial_id, metrics)) or last:
            device_minutes += curve.minutes[epoch - 1] * curve.devices
            course.on_trial_end(trial_id, TrialExit(status.value) if status else TrialExit.FINISHED)
        else:
            heapq.heappush(coming, (began[trial_id] + 60 * curve.minutes[epoch], next(order), trial_id, epoch + 1))

    best = best_result(spec, notes.finished)
    chosen = notes.behind[best.trial_id] if best is not None else None
    ends = {trial_id: curve.val[records.epochs - 1] for trial_id, curve in notes.behind.items()}
    top = max(ends.values(), default=0.0)
    return Simulated(
        chosen=chosen,
        val=_mean_val(notes.finished, best) if best is not None else math.nan,
        rank=records.rank(chosen) if chosen else 0,
        regret=records.regret(chosen) if chosen else math.nan,
        hours=clock.now / 3600,
        device_hours=device_minutes / 60,
        begun=len(began),
        exact=exact,
        other_seed=other_seed,
        distances=tuple(distances),
        epochs=epochs,
        planned=records.epochs * len(began),
        lost=bool(ends) and all(trial_id in notes.stopped_early for trial_id, end in ends.items() if end == top),
        growth=tuple(notes.growth),
        stopped=budget.details,
    )


def _mean_val(finished: Sequence[TrialResult], best: TrialResult) -> float:
    return statistics.fmean(result.metrics[VAL] for result in finished if result.label == best.label)


def simulate_all(
    spec: SweepSpec, trials: TrialFactory, records: Records, limits: Limits, repeats: int
) -> list[Simulated]:
    """As many searches, the seeds of whose draws follow each other from the sweep's own on; tells how far it is."""
    found, told = [], time.monotonic()
    for number in range(repeats):
        found.append(simulate(spec, trials, records, limits, spec.base.train.seed + number))
        if time.monotonic() - told > SAID:
            told = time.monotonic()
            print(f"{number + 1} of {repeats} searches simulated", file=sys.stderr, flush=True)
    return found
