"""The search of a sweep, recorded in an Optuna study: which trial runs next and which one stops early.

Every sweep is an Optuna study named after the sweep's run, including grids, so ``optuna-dashboard`` opens all of them.
Each training is one Optuna trial with its trial id and seed as user attributes. Only the driver writes to the study,
and the study contains everything that a resumed sweep needs: the parameters of running trials and the decisions of
early stopping. Random draws are seeded by the sweep's seed and the number of trials so far, so that the state of the
sampler need not be saved.
"""

from __future__ import annotations

import itertools
import logging
import math
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from fgst.errors import InputError
from fgst.sweep.definition import OBJECTIVES, Parameter, Params, Trial, TrialFactory
from fgst.sweep.results import TrialResult, race_of
from fgst.sweep.spec import SweepSpec
from fgst.sweep.status import TrialStatus
from fgst.sweep.study_storage import open_storage

logger = logging.getLogger(__name__)

METRIC = "val/top1"  # the metric that early stopping compares
# User attributes of Optuna trials; part of the storage format.
_TRIAL_ID, _SEED, _LABEL, _SAME_AS, _STOPPED_AT = "key", "seed", "label", "same as", "stopped after epoch"
# After this many consecutive suggestions that are already known or invalid, the space counts as exhausted.
MAX_DUPLICATE_SUGGESTIONS = 200
_ENDED = (TrialStatus.FINISHED, TrialStatus.PRUNED)


class Search:
    """Hands out the trials of a sweep one by one; not thread-safe.

    Args:
        spec: the sweep.
        factory: creates its trials.
        storage: the Optuna storage, or its URL, e.g. ``sqlite:///…``; ``None`` keeps the study in memory.
        name: name of the study: the sweep's run id.
        previous_results: trials from earlier runs of the sweep; those that did not end are handed out first.
        history: run id → val/top1 by epoch, for a resumed sweep. It completes the study if the driver was killed before
            it recorded an epoch. If the study was lost together with the machine that stored it, it is rebuilt from
            the runs.
        sampler_seed: seed of the random draws; ``None`` uses the seed of the trials.

    Raises:
        InputError: if the storage cannot be opened.
        StoreUnavailable: if its database stays locked or unreachable, also raised by all methods.
    """

    def __init__(
        self,
        spec: SweepSpec,
        factory: TrialFactory,
        storage: BaseStorage | str | None,
        name: str,
        previous_results: Sequence[TrialResult] = (),
        history: Callable[[str], Mapping[int, float]] | None = None,
        sampler_seed: int | None = None,
    ) -> None:
        self.spec, self._factory = spec, factory
        self._sampler_seed = spec.base.train.seed if sampler_seed is None else sampler_seed
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Objective names and grouped conditional spaces have been marked experimental for years.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        self.study = self._open(storage, name)
        self._running: dict[str, optuna.Trial] = {}
        self._reported: dict[str, set[int]] = {}  # epochs by trial id
        self._queued: deque[tuple[Params, int]] = deque()  # (params, seed) to train before anything is suggested
        self._queued_seeds: set[str] = set()  # trial ids of further seeds that were queued
        self._unfinished: deque[Trial] = deque()  # started by an earlier run
        self._ended = {result.trial_id: result for result in previous_results if result.status in _ENDED}
        self._recorded = {result.trial_id: result for result in previous_results}
        if history is not None and not self.study.get_trials(deepcopy=False):
            self._rebuild(previous_results, history)
        self._failed: dict[str, TrialResult] = {}
        self._interrupted: set[str] = set()  # running in the study, although this process no longer runs them
        started = self._restore(history)
        self._num_started = len(started)
        self._grid: deque[Trial] = deque()
        self._num_later = 0  # trials of later rounds of a race, at most
        self._dropped: set[str] = set()  # labels that a race has dropped
        if spec.search == "grid":
            started |= self._ended.keys()  # trials reused from other sweeps are not part of this study
            self._grid.extend(trial for trial in spec.trials if trial.trial_id not in started)
            self._update_race()
        else:
            if not started:
                self._queued.extend((dict(params), spec.base.train.seed) for params in spec.initial_points)
            for result in list(self._ended.values()):
                self._queue_seeds(result)
        self.space_exhausted = False

    def _open(self, storage: BaseStorage | str | None, name: str) -> optuna.Study:
        stop = self.spec.early_stop
        pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
        if stop is not None:
            pruner = optuna.pruners.SuccessiveHalvingPruner(stop.grace_period, stop.reduction_factor)
        study = optuna.create_study(
            study_name=name, storage=open_storage(storage) if isinstance(storage, str) else storage,
            load_if_exists=True, pruner=pruner, sampler=self._sampler(0),
            directions=[optuna.study.StudyDirection[OBJECTIVES[name][0].upper()] for name in self.spec.objectives],
        )  # fmt: skip
        if list(study.metric_names or ()) != list(self.spec.objectives):
            study.set_metric_names(list(self.spec.objectives))
        return study

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """The sampler for the draw after ``number`` trials."""
        seed = int(np.random.SeedSequence([self._sampler_seed, number]).generate_state(1)[0])
        if self.spec.search == "nsga2":
            return optuna.samplers.NSGAIISampler(population_size=min(20, max(4, self.spec.total // 4)), seed=seed)
        if self.spec.search == "optuna":
            # "Constant liar": running trials count as bad ones, so that concurrent trials differ.
            return optuna.samplers.TPESampler(
                multivariate=True, group=True, constant_liar=len(self.spec.objectives) == 1, seed=seed,
                n_startup_trials=min(10, max(3, self.spec.total // 4)),
            )  # fmt: skip
        return optuna.samplers.RandomSampler(seed=seed)

    def _rebuild(self, previous_results: Sequence[TrialResult], history: Callable[[str], Mapping[int, float]]) -> None:
        """Recreate a lost study from the runs of its trials."""
        for result in previous_results:
            trial = self._factory.make(result.params, result.seed)
            if trial.trial_id != result.trial_id:  # reused from another sweep
                continue
            self._start(trial)
            for epoch, value in sorted(history(result.run_id).items()):
                self.on_result(trial.trial_id, epoch, {METRIC: value})
            self.tell(trial.trial_id, result.status, result.metrics)

    def _restore(self, history: Callable[[str], Mapping[int, float]] | None) -> set[str]:
        """Resolve the trials that an earlier run left running; returns the ids of all trials that were started."""
        started = set()
        for frozen in self.study.get_trials(deepcopy=False):
            trial_id = frozen.user_attrs.get(_TRIAL_ID)
            if trial_id is None:  # killed between asking and recording the id: the trial never started
                if frozen.state == TrialState.RUNNING:
                    self.study.tell(frozen.number, state=TrialState.FAIL)
                continue
            if _SAME_AS in frozen.user_attrs:
                continue
            started.add(trial_id)
            if frozen.state != TrialState.RUNNING:
                # A trial that ended and has no run any more was deleted in MLflow: it is trained again.
                if trial_id not in (self._ended if frozen.state == TrialState.FAIL else self._recorded):
                    self._retry(frozen)
                continue
            self._running[trial_id] = optuna.Trial(self.study, frozen._trial_id)
            self._reported[trial_id] = set(frozen.intermediate_values)
            if history is not None and trial_id in self._recorded:
                # The driver was killed: trials may have logged epochs that it did not record.
                for epoch, value in sorted(history(self._recorded[trial_id].run_id).items()):
                    self.on_result(trial_id, epoch, {METRIC: value})
            if trial_id in self._ended:  # it ended, and the driver died before recording that
                result = self._ended[trial_id]
                self.tell(trial_id, result.status, result.metrics)
            else:
                self._unfinished.append(self._trial_of(frozen))
        return started

    def _retry(self, frozen: FrozenTrial) -> None:
        """Queue a failed training for another attempt: a new Optuna trial with the same trial id."""
        attempts = [
            t for t in self.study.get_trials(deepcopy=False)
            if t.user_attrs.get(_TRIAL_ID) == frozen.user_attrs[_TRIAL_ID]
        ]  # fmt: skip
        if attempts[-1].number == frozen.number:
            self._unfinished.append(self._trial_of(frozen))

    def ended_labels(self) -> dict[str, str]:
        """Label and seed by trial id of all trials that ended or failed, according to the study."""
        return {
            trial.user_attrs[_TRIAL_ID]: f"{trial.user_attrs[_LABEL]} s{trial.user_attrs[_SEED]}"
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state.is_finished() and _TRIAL_ID in trial.user_attrs and _SAME_AS not in trial.user_attrs
        }

    def ask(self) -> Trial | None:
        """The next trial to run, or ``None`` if there is none now (see :attr:`exhausted`)."""
        if self._unfinished:
            trial = self._unfinished.popleft()
            if trial.trial_id not in self._running:
                self._start(trial)
            return trial
        if self._grid:
            trial = self._grid.popleft()
            self._start(trial)
            self._num_started += 1
            return trial
        if self.spec.search == "grid" or self._num_started >= self.spec.total:
            return None
        while self._queued:
            params, seed = self._queued.popleft()
            trial = self._factory.make(params, seed)
            if trial.trial_id not in self._ended and trial.trial_id not in self._running:
                self._start(trial)
                self._num_started += 1
                return trial
        return None if self.space_exhausted else self._suggest_trial()

    @property
    def exhausted(self) -> bool:
        """Whether :meth:`ask` will never return another trial."""
        is_running = bool(self._running.keys() - self._interrupted)
        if self._unfinished or self._grid or (self.spec.race and is_running):  # its next round depends on the results
            return False
        if self.spec.search == "grid" or self._num_started >= self.spec.total:
            return True
        # Running trials may still add further seeds.
        return self.space_exhausted and not self._queued and not (self.spec.seeds > 1 and is_running)

    @property
    def remaining(self) -> int:
        """How many trials are left at most, running ones excluded."""
        if self.spec.search == "grid":
            return len(self._unfinished) + len(self._grid) + self._num_later
        if self.exhausted:
            return 0
        return len(self._unfinished) + max(0, self.spec.total - self._num_started)

    def _update_race(self) -> None:
        """Of a race, keep only the trials of the current round in the grid, and the number of later ones."""
        race = race_of(self.spec, [*self._ended.values(), *self._failed.values()])
        if race is None:
            return
        unfinished = {trial.trial_id for trial in self._unfinished}
        waiting = [t for t in race.due if t.trial_id not in self._running and t.trial_id not in unfinished]
        self._grid, self._num_later = deque(waiting), race.possible
        for label in race.dropped.keys() - self._dropped:
            drop = race.dropped[label]
            logger.info(
                "%s is dropped after %d seeds: %.1f points behind %s (needed: %.1f)",
                label, drop.after, drop.behind, drop.leader, drop.needed,
            )  # fmt: skip
        self._dropped |= race.dropped.keys()

    def _suggest_trial(self) -> Trial | None:
        for _ in range(MAX_DUPLICATE_SUGGESTIONS):
            number = len(self.study.get_trials(deepcopy=False))
            self.study.sampler = self._sampler(number)
            asked = self.study.ask()
            params = self._suggest_params(asked)
            seed = self.spec.base.train.seed
            try:
                trial = self._factory.make(params, seed)
            except InputError as error:  # an invalid combination does not count as a training
                asked.set_user_attr("impossible", str(error))
                self.study.tell(asked, state=TrialState.FAIL)
                continue
            while trial.trial_id in self._running:  # its result is unknown so far: train the next seed
                seed += 1
                trial = self._factory.make(params, seed)
            known = self._ended.get(trial.trial_id)
            if known is not None:
                # Reuse the result instead of training again.
                for name, value in ((_TRIAL_ID, trial.trial_id), (_SEED, seed), (_SAME_AS, known.label)):
                    asked.set_user_attr(name, value)
                self._running[trial.trial_id] = asked
                self.tell(trial.trial_id, known.status, known.metrics)
                continue
            self._record_start(asked, trial)
            self._num_started += 1
            return trial
        self.space_exhausted = True
        return None

    def _suggest_params(self, asked: optuna.Trial) -> Params:
        params: Params = {}
        for parameter in self.spec.parameters:
            if parameter.applies(params):
                params[parameter.name] = _suggest_value(asked, parameter)
        return params

    def _start(self, trial: Trial) -> None:
        """Record the start of a trial whose parameters are given."""
        self.study.enqueue_trial(dict(trial.params))
        asked = self.study.ask()
        for name, _ in trial.params:
            _suggest_value(asked, next(parameter for parameter in self.spec.parameters if parameter.name == name))
        self._record_start(asked, trial)

    def _record_start(self, asked: optuna.Trial, trial: Trial) -> None:
        asked.set_user_attr(_SEED, trial.config.train.seed)
        asked.set_user_attr(_LABEL, trial.label)
        asked.set_user_attr(_TRIAL_ID, trial.trial_id)  # last: with it, the trial counts as started
        self._running[trial.trial_id] = asked

    def _trial_of(self, frozen: FrozenTrial) -> Trial:
        params = {p.name: frozen.params[p.name] for p in self.spec.parameters if p.name in frozen.params}
        return self._factory.make(params, frozen.user_attrs[_SEED])

    def on_result(self, trial_id: str, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Record the result of an epoch; returns whether the trial should stop early."""
        trial = self._running.get(trial_id)
        if trial is None or len(self.spec.objectives) > 1 or METRIC not in metrics:
            return False
        reported = self._reported.setdefault(trial_id, set())
        if epoch not in reported:  # a resumed training reports its last epoch again
            reported.add(epoch)
            trial.report(metrics[METRIC], epoch)
        if self.spec.early_stop is None or epoch >= self.spec.base.train.epochs:
            return False
        # Optuna decides once per rung; the decision is recorded, so that it is not lost if the process is killed.
        if _STOPPED_AT not in trial.user_attrs and trial.should_prune():
            trial.set_user_attr(_STOPPED_AT, epoch)
        return _STOPPED_AT in trial.user_attrs

    def tell(self, trial_id: str, status: str, metrics: Mapping[str, float], trial: Trial | None = None) -> None:
        """Record how a trial ended. An interrupted trial stays running in the study."""
        asked = self._running.get(trial_id)
        if asked is None:
            return
        if status not in (*_ENDED, TrialStatus.FAILED):
            if trial is not None:  # not one that a resumed sweep will run again
                self._interrupted.add(trial_id)
            return
        del self._running[trial_id]
        values = [float(metrics.get(OBJECTIVES[name][1], math.nan)) for name in self.spec.objectives]
        if status == TrialStatus.PRUNED:
            self.study.tell(asked, state=TrialState.PRUNED)
        elif status == TrialStatus.FAILED or not all(map(math.isfinite, values)):
            self.study.tell(asked, state=TrialState.FAIL)
        else:
            self.study.tell(asked, values)
        if trial is None:
            return
        result = TrialResult(
            trial_id, trial.label, trial.config.train.seed, dict(trial.params), "", TrialStatus(status), dict(metrics)
        )
        if status == TrialStatus.FAILED:
            self._failed[trial_id] = result
        else:
            self._ended[trial_id] = result
            self._queue_seeds(result)
        self._update_race()

    def _queue_seeds(self, result: TrialResult) -> None:
        """Queue the further seeds of a finished trial; a pruned trial gets none."""
        first = self.spec.base.train.seed
        if self.spec.search == "grid" or result.seed != first or result.status != TrialStatus.FINISHED:
            return
        for seed in range(first + 1, first + self.spec.seeds):
            trial_id = self._factory.make(result.params, seed).trial_id
            if trial_id not in self._queued_seeds and trial_id not in self._ended and trial_id not in self._running:
                self._queued.append((dict(result.params), seed))
                self._queued_seeds.add(trial_id)


def _suggest_value(asked: optuna.Trial, parameter: Parameter) -> Any:
    """A value of one parameter: the given one of an enqueued trial, else the sampler's."""
    name, values = parameter.name, parameter.values
    if values:
        # Evenly spaced integers have an order that the sampler can use.
        steps = {b - a for a, b in itertools.pairwise(values)} if _are_integers(values) else set()
        if len(steps) == 1 and min(steps) > 0:
            return asked.suggest_int(name, values[0], values[-1], step=steps.pop())
        return asked.suggest_categorical(name, values)
    low, high = parameter.low, parameter.high
    assert low is not None
    assert high is not None
    if parameter.integer:
        return asked.suggest_int(name, int(low), int(high), log=parameter.log)
    return asked.suggest_float(name, low, high, log=parameter.log)


def _are_integers(values: Sequence[Any]) -> bool:
    return len(values) > 1 and all(isinstance(value, int) and not isinstance(value, bool) for value in values)
