"""Simulator of a search on recorded learning curves: what it would have found, when, and at what cost.

The search, its early stopping and its limits are the real ones, with a study in memory. Only the clock is simulated: a
trial reports each epoch at the time at which the recorded trial did, so that a search of days takes seconds. Overhead
outside of training (the start of processes, the pause between two trials) is not modeled. Nothing is started and
nothing is written.
"""

from __future__ import annotations

import heapq
import itertools
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fgst.errors import InputError
from fgst.sweep.definition import OBJECTIVES, Parameter, Trial, TrialFactory
from fgst.sweep.results import TrialResult, best_result
from fgst.sweep.scheduler import TrialScheduler, TrialUpdate
from fgst.sweep.search import Search
from fgst.sweep.simulation.curves import VAL, LearningCurve
from fgst.sweep.spec import SweepSpec
from fgst.sweep.status import TrialExit, TrialStatus
from fgst.sweep.stopping import Budget

PROGRESS_SECONDS = 10.0  # between two progress messages
TIE_TOLERANCE = 1e-12  # of distances that count as equal, for rounding errors of their sums
_ParamsKey = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class SimulationLimits:
    """Limits of a simulated search, with the meaning of the command-line options of the same names."""

    max_concurrent: int = 1
    max_hours: float | None = None
    max_trials: int | None = None
    until_top1: float | None = None


@dataclass(frozen=True)
class SimulationResult:
    """Result of one simulated search.

    Attributes:
        best: the recorded curve of the best trial by validation; ``None`` if no trial ran to its last epoch.
        val: validation top-1 of its configuration in %, the mean over the seeds that the search trained.
        rank: rank of its point among all recorded points by validation, from 1; tied points share the best rank.
        regret: percentage points by which its point is below the best recorded point.
        hours: simulated wall time.
        device_hours: simulated time of GPUs, or of cores on the CPU.
        started: number of started trials.
        exact: started trials that were recorded with the same seed.
        other_seed: started trials that were recorded with another seed only.
        distances: distances to the nearest recorded points, for the started trials that were not recorded.
        epochs: number of trained epochs.
        planned_epochs: epochs that all started trials would have needed without early stopping.
        lost_best: whether early stopping stopped the trial that would have ended best of those started.
        improvements: (hours, regret) at each time at which a new best trial finished.
        stop_reason: the limit that ended the search, for printing; empty if it was exhausted.
    """

    best: LearningCurve | None
    val: float
    rank: int
    regret: float
    hours: float
    device_hours: float
    started: int
    exact: int
    other_seed: int
    distances: tuple[float, ...]
    epochs: int
    planned_epochs: int
    lost_best: bool
    improvements: tuple[tuple[float, float], ...]
    stop_reason: str = ""

    @property
    def approximated(self) -> int:
        """Number of started trials that used the curve of the nearest recorded point."""
        return len(self.distances)


class RecordedCurves:
    """Recorded curves within the space of a sweep, with a search for the nearest one.

    The distance of two points is a sum over parameters: the difference as a share of the parameter's range (of its
    logarithms for logarithmic ranges), 0 or 1 between strings, and 1 if only one of the points has the parameter.

    Args:
        spec: the sweep.
        curves: curves from a file.
        source: name of the file, for error messages.

    Attributes:
        curves: the curves that are within the space and have enough epochs.
        outside: number of curves outside of the space.
        short: number of curves inside the space that have too few epochs.
        epochs: epochs of a trial of the sweep.
        best_val: the best point's validation top-1 in %, the mean over its recorded seeds.

    Raises:
        InputError: if the curves have other parameters or lack an objective, or none of them remains.
    """

    def __init__(self, spec: SweepSpec, curves: Sequence[LearningCurve], source: str) -> None:
        self._parameters = spec.parameters
        self._check_names(spec, curves, source)
        self.epochs = epochs = spec.base.train.epochs
        inside = [c for c in curves if all(p.allows(c.params[p.name]) for p in spec.parameters if p.name in c.params)]
        self.curves = [curve for curve in inside if len(curve.val) >= epochs]
        self.outside, self.short = len(curves) - len(inside), len(inside) - len(self.curves)
        if not inside:
            space = "; ".join(f"{p.name}: {p.describe()}" for p in spec.parameters)
            raise InputError(f"{source}: none of its {len(curves)} trials is within the searched space ({space})")
        if not self.curves:
            longest = max(len(curve.val) for curve in inside)
            raise InputError(
                f"{source}: its trials have at most {longest} epochs, and the sweep has {epochs}; "
                f"use --epochs {longest}"
            )
        for name in spec.objectives:
            metric = OBJECTIVES[name][1]
            if name in ("val_top1", "test_top1"):
                continue
            if missing := sum(metric not in curve.final for curve in self.curves):
                raise InputError(f"{source}: {missing} of its trials have no {metric}, which --objectives requires")
        self._positions = [
            np.array([_position(parameter, curve.params.get(parameter.name)) for curve in self.curves])
            for parameter in spec.parameters
        ]
        self._nearest: dict[tuple[_ParamsKey, int], tuple[LearningCurve, float]] = {}
        by_point: dict[_ParamsKey, list[float]] = {}
        for curve in self.curves:
            by_point.setdefault(_params_key(curve.params), []).append(curve.val[epochs - 1])
        self._mean_val = {point: statistics.fmean(values) for point, values in by_point.items()}
        self.best_val = max(self._mean_val.values())

    @staticmethod
    def _check_names(spec: SweepSpec, curves: Sequence[LearningCurve], source: str) -> None:
        names = ", ".join(parameter.name for parameter in spec.parameters)
        for curve in curves:
            if set(curve.params) != {p.name for p in spec.parameters if p.applies(curve.params)}:
                raise InputError(
                    f"{source}: a trial varies {', '.join(curve.params) or 'nothing'}, and this sweep varies {names}; "
                    "use the script and the --also option with which the curves were recorded"
                )

    @property
    def num_points(self) -> int:
        """Number of different points, regardless of their seeds."""
        return len(self._mean_val)

    def mean_val(self, params: Mapping[str, Any]) -> float:
        """Return a recorded point's validation top-1 in %, the mean over its recorded seeds."""
        return self._mean_val[_params_key(params)]

    def nearest(self, params: Mapping[str, Any], seed: int) -> tuple[LearningCurve, float]:
        """Find the curve of the nearest point and its distance; of several curves, prefer this seed, then the first."""
        key = _params_key(params), seed
        if key not in self._nearest:
            distances = np.zeros(len(self.curves))
            for parameter, positions in zip(self._parameters, self._positions, strict=True):
                position = _position(parameter, params.get(parameter.name))
                exists_in_one = np.isnan(positions) != math.isnan(position)
                difference = np.minimum(1.0, np.nan_to_num(np.abs(positions - position)))
                distances += np.where(exists_in_one, 1.0, difference)
            nearest = np.flatnonzero(distances <= distances.min() + TIE_TOLERANCE)
            same_seed = [index for index in nearest if self.curves[index].seed == seed]
            index = int((same_seed or list(nearest))[0])
            self._nearest[key] = self.curves[index], float(distances[index])
        return self._nearest[key]

    def rank(self, curve: LearningCurve) -> int:
        """Rank a curve's point among all recorded points, from 1; tied points share the best rank."""
        return 1 + sum(val > self.mean_val(curve.params) for val in self._mean_val.values())

    def regret(self, curve: LearningCurve) -> float:
        """Return the percentage points by which a curve's point is below the best recorded point."""
        return self.best_val - self.mean_val(curve.params)

    def hours(self, concurrency: int) -> tuple[float, float]:
        """Return wall hours and device hours of training all recorded trials, ``concurrency`` at a time."""
        ends = [0.0] * concurrency
        for curve in self.curves:
            heapq.heapreplace(ends, ends[0] + curve.minutes[self.epochs - 1])
        device_minutes = sum(curve.minutes[self.epochs - 1] * curve.devices for curve in self.curves)
        return max(ends) / 60, device_minutes / 60


def _position(parameter: Parameter, value: Any) -> float:
    """Return the position of a value in its parameter's range, from 0 to 1; NaN without a value."""
    if value is None:
        return math.nan
    if parameter.values and any(isinstance(v, str) for v in parameter.values):
        return 2.0 * parameter.values.index(value)  # differences are clipped to 1, so any two strings are 1 apart
    low, high = parameter.low, parameter.high
    if parameter.values:
        low, high = min(parameter.values), max(parameter.values)
    assert low is not None
    assert high is not None
    if parameter.log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return float((value - low) / (high - low)) if high > low else 0.0


def _params_key(params: Mapping[str, Any]) -> _ParamsKey:
    return tuple(sorted(params.items()))


@dataclass
class _Clock:
    """A callable clock in seconds, like ``time.monotonic``."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, order=True)
class _EpochEnd:
    """Event: a trial completes an epoch. Simultaneous events are processed in the order of their creation."""

    time: float
    order: int
    trial_id: str
    epoch: int


class _Simulation:
    """Event loop and bookkeeping of one simulated search."""

    def __init__(
        self,
        spec: SweepSpec,
        trials: TrialFactory,
        records: RecordedCurves,
        limits: SimulationLimits,
        sampler_seed: int,
    ) -> None:
        self._spec, self._records, self._limits = spec, records, limits
        self._clock = _Clock()
        self._budget = Budget(limits.max_hours, limits.max_trials, limits.until_top1, self._clock)
        search = Search(spec, trials, None, "simulated", sampler_seed=sampler_seed)
        self._scheduler = TrialScheduler(search, self._budget, self._listen)
        self._events: list[_EpochEnd] = []
        self._order = itertools.count()
        self._curves: dict[str, LearningCurve] = {}  # by trial id, the curve that a trial follows
        self._start_times: dict[str, float] = {}
        self._finished: list[TrialResult] = []
        self._pruned: set[str] = set()
        self._improvements: list[tuple[float, float]] = []
        self._distances: list[float] = []
        self._exact = self._other_seed = self._epochs = 0
        self._device_minutes = 0.0

    def run(self) -> SimulationResult:
        """Process events until no trial is running and the search starts no further one."""
        while True:
            while (
                len(self._events) < self._limits.max_concurrent and (trial := self._scheduler.next_trial()) is not None
            ):
                self._start(trial)
            if not self._events:
                return self._result()
            self._complete_epoch(heapq.heappop(self._events))

    def _start(self, trial: Trial) -> None:
        seed = trial.config.train.seed
        curve, distance = self._records.nearest(dict(trial.params), seed)
        if distance > 0:
            self._distances.append(distance)
        elif curve.seed == seed:
            self._exact += 1
        else:
            self._other_seed += 1
        self._curves[trial.trial_id], self._start_times[trial.trial_id] = curve, self._clock.now
        self._schedule(trial.trial_id, 1)

    def _schedule(self, trial_id: str, epoch: int) -> None:
        end = self._start_times[trial_id] + 60 * self._curves[trial_id].minutes[epoch - 1]
        heapq.heappush(self._events, _EpochEnd(end, next(self._order), trial_id, epoch))

    def _complete_epoch(self, event: _EpochEnd) -> None:
        self._clock.now = event.time
        self._epochs += 1
        curve, is_last = self._curves[event.trial_id], event.epoch == self._records.epochs
        minutes = curve.minutes[event.epoch - 1]
        metrics = {"epoch": float(event.epoch), VAL: curve.val[event.epoch - 1], "minutes": minutes}
        metrics |= {name: value for name, value in curve.final.items() if is_last or name.startswith("model/")}
        if (status := self._scheduler.on_result(event.trial_id, metrics)) or is_last:
            self._device_minutes += minutes * curve.devices
            self._scheduler.on_trial_end(event.trial_id, TrialExit((status or TrialStatus.FINISHED).value))
        else:
            self._schedule(event.trial_id, event.epoch + 1)

    def _listen(self, progress: TrialUpdate) -> None:
        trial, metrics = progress.trial, progress.metrics
        if progress.status == TrialStatus.PRUNED:
            self._pruned.add(trial.trial_id)
        elif progress.status == TrialStatus.FINISHED:
            best_val = max((result.metrics[VAL] for result in self._finished), default=-math.inf)
            seed, params = trial.config.train.seed, dict(trial.params)
            self._finished.append(
                TrialResult(trial.trial_id, trial.label, seed, params, "", TrialStatus.FINISHED, metrics)
            )
            if metrics[VAL] > best_val:
                regret = self._records.regret(self._curves[trial.trial_id])
                self._improvements.append((self._clock.now / 3600, regret))

    def _result(self) -> SimulationResult:
        best: LearningCurve | None = None
        val = math.nan
        if (result := best_result(self._spec, self._finished)) is not None:
            best = self._curves[result.trial_id]
            val = statistics.fmean(other.metrics[VAL] for other in self._finished if other.label == result.label)
        final_vals = {trial_id: curve.val[self._records.epochs - 1] for trial_id, curve in self._curves.items()}
        highest = max(final_vals.values(), default=0.0)
        winners = {trial_id for trial_id, final_val in final_vals.items() if final_val == highest}
        return SimulationResult(
            best=best,
            val=val,
            rank=self._records.rank(best) if best else 0,
            regret=self._records.regret(best) if best else math.nan,
            hours=self._clock.now / 3600,
            device_hours=self._device_minutes / 60,
            started=len(self._start_times),
            exact=self._exact,
            other_seed=self._other_seed,
            distances=tuple(self._distances),
            epochs=self._epochs,
            planned_epochs=self._records.epochs * len(self._start_times),
            lost_best=bool(winners) and winners <= self._pruned,
            improvements=tuple(self._improvements),
            stop_reason=self._budget.details,
        )


def simulate_search(
    spec: SweepSpec, trials: TrialFactory, records: RecordedCurves, limits: SimulationLimits, sampler_seed: int
) -> SimulationResult:
    """Simulate one search over recorded curves.

    Args:
        spec: the sweep.
        trials: makes the trials that the search suggests.
        records: the recorded curves.
        limits: concurrency and limits of the search.
        sampler_seed: seed of the search's random draws.
    """
    return _Simulation(spec, trials, records, limits, sampler_seed).run()


def simulate_repeatedly(
    spec: SweepSpec, trials: TrialFactory, records: RecordedCurves, limits: SimulationLimits, repeats: int
) -> list[SimulationResult]:
    """Simulate ``repeats`` searches with consecutive sampler seeds from the sweep's seed on; report progress on stderr.

    See :func:`simulate_search` for the arguments.
    """
    results, last_message = [], time.monotonic()
    for number in range(repeats):
        results.append(simulate_search(spec, trials, records, limits, spec.base.train.seed + number))
        if time.monotonic() - last_message > PROGRESS_SECONDS:
            last_message = time.monotonic()
            print(f"{number + 1} of {repeats} searches simulated", file=sys.stderr, flush=True)
    return results
