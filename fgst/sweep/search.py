"""Which trial is next: a grid in its order, or Optuna's choice; which one may stop early; what is known of all.

A sweep is an Optuna study of the sweep's name, whatever chooses its points, so ``optuna-dashboard`` opens every one
of them. Each training is one Optuna trial, with its key and seed in its attributes. The study is kept by the driver
alone, and holds all that a resumed sweep needs: the points that are under way and the rungs of early stopping. Where
a random draw is made, its seed is the sweep's and the number of trials so far: nothing else has to survive a kill.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from fgst.errors import InputError
from fgst.sweep.definition import OBJECTIVES, Parameter, Params, SweepSpec, Trial, TrialFactory
from fgst.sweep.results import TrialResult

METRIC = "val/top1"  # what early stopping compares
_KEY, _SEED, _LABEL, _OF, _STOPPED = "key", "seed", "label", "same as", "stopped after epoch"
# Points that are known or cannot be, one after another, before a search ends: its space is used up.
_FRUITLESS = 200


class Search:
    """The trials of a sweep, one after another; not safe for threads.

    Args:
        spec: the sweep.
        trials: makes its trials.
        storage: Optuna's, e.g. ``sqlite:///…``; ``None`` keeps the study in memory.
        name: of the study: the sweep's run id.
        draws: seed of the random draws; ``None`` is the trials' own.
        before: trials of the sweep as an earlier run left them; those that did not end are asked for first.
        history: of a run of a sweep that is resumed, val/top1 by epoch. If the study is gone with the machine that kept
            it, it is made again from the runs.

    Raises:
        InputError: if the storage cannot be opened.
    """

    def __init__(
        self,
        spec: SweepSpec,
        trials: TrialFactory,
        storage: str | None,
        name: str,
        before: Sequence[TrialResult] = (),
        history: Callable[[str], Mapping[int, float]] | None = None,
        draws: int | None = None,
    ) -> None:
        self._draws = spec.base.train.seed if draws is None else draws
        self.spec, self._trials = spec, trials
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Names of objectives, and conditional spaces in groups: called experimental for years.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        self.study = self._open(storage, name)
        self._running: dict[str, optuna.Trial] = {}
        self._reported: dict[str, set[int]] = {}  # epochs
        self._waiting: deque[tuple[Params, int]] = deque()  # to be trained as they are, before anything is suggested
        self._owed: set[str] = set()  # keys of further seeds that were queued
        self._again: deque[Trial] = deque()  # begun before, and not ended
        self._ended = {result.trial_id: result for result in before if result.status in ("finished", "pruned")}
        if history is not None and not self.study.get_trials(deepcopy=False):
            self._recover(before, history)
        known = self._take_up()
        self._begun = len(known)
        if spec.search == "grid":
            known |= self._ended.keys()  # a sweep that takes up others' trainings has those that are not its study's
            self._grid = deque(trial for trial in spec.trials if trial.trial_id not in known)
        else:
            self._grid = deque()
            if not known:
                self._waiting.extend((dict(params), spec.base.train.seed) for params in spec.initial_points)
            for result in list(self._ended.values()):
                self._owe_seeds(result)
        self.used_up = False  # nothing new is suggested any more

    def _open(self, storage: str | None, name: str) -> optuna.Study:
        stop = self.spec.early_stop
        pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
        if stop is not None:
            pruner = optuna.pruners.SuccessiveHalvingPruner(stop.grace, stop.reduction)
        try:
            study = optuna.create_study(
                study_name=name, storage=storage, load_if_exists=True, pruner=pruner, sampler=self._sampler(0),
                directions=[
                    optuna.study.StudyDirection[OBJECTIVES[name][0].upper()] for name in self.spec.objectives
                ],
            )  # fmt: skip
        except Exception as error:  # whatever its database driver raises
            raise InputError(
                f"--study-storage {storage}: cannot be opened ({str(error).splitlines()[0] or type(error).__name__})"
            ) from None
        if list(study.metric_names or ()) != list(self.spec.objectives):
            study.set_metric_names(list(self.spec.objectives))
        return study

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """For the draw after ``number`` trials."""
        seed = int(np.random.SeedSequence([self._draws, number]).generate_state(1)[0])
        if self.spec.search == "nsga2":
            return optuna.samplers.NSGAIISampler(population_size=min(20, max(4, self.spec.total // 4)), seed=seed)
        if self.spec.search == "optuna":
            # Running trials count as bad ones (the "constant liar"), so that two at a time do not try the same.
            return optuna.samplers.TPESampler(
                multivariate=True, group=True, constant_liar=len(self.spec.objectives) == 1, seed=seed,
                n_startup_trials=min(10, max(3, self.spec.total // 4)),
            )  # fmt: skip
        return optuna.samplers.RandomSampler(seed=seed)

    def _recover(self, before: Sequence[TrialResult], history: Callable[[str], Mapping[int, float]]) -> None:
        """Make a study again from what the runs of its trainings say."""
        for result in before:
            trial = self._trials.make(result.params, result.seed)
            if trial.trial_id != result.trial_id:  # taken over from another sweep
                continue
            self._begin(trial)
            for epoch, value in sorted(history(result.run_id).items()):
                self.result(trial.trial_id, epoch, {METRIC: value})
            self.tell(trial.trial_id, result.status, result.metrics)

    def _take_up(self) -> set[str]:
        """Settle what an earlier run left under way; returns the keys of all trainings that were begun."""
        known = set()
        for frozen in self.study.get_trials(deepcopy=False):
            trial_id = frozen.user_attrs.get(_KEY)
            if trial_id is None:  # killed between asking and writing the key down: it never began
                if frozen.state == TrialState.RUNNING:
                    self.study.tell(frozen.number, state=TrialState.FAIL)
                continue
            if _OF in frozen.user_attrs:
                continue
            known.add(trial_id)
            if frozen.state != TrialState.RUNNING:
                if frozen.state == TrialState.FAIL and trial_id not in self._ended:
                    self._retry(frozen)
                continue
            self._running[trial_id] = optuna.Trial(self.study, frozen._trial_id)
            self._reported[trial_id] = set(frozen.intermediate_values)
            if trial_id in self._ended:  # it ended, and the driver died before it could write that down
                result = self._ended[trial_id]
                self.tell(trial_id, result.status, result.metrics)
            else:
                self._again.append(self._made(frozen))
        return known

    def _retry(self, frozen: FrozenTrial) -> None:
        """A training that failed is tried again by whoever resumes: as a new Optuna trial, with the key that it had."""
        latest = [t for t in self.study.get_trials(deepcopy=False) if t.user_attrs.get(_KEY) == frozen.user_attrs[_KEY]]
        if latest[-1].number == frozen.number:
            self._again.append(self._made(frozen))

    def ask(self) -> Trial | None:
        """The next trial to run; ``None`` if there is none now (see :meth:`exhausted`)."""
        if self._again:
            trial = self._again.popleft()
            if trial.trial_id not in self._running:
                self._begin(trial)
            return trial
        if self._grid:
            trial = self._grid.popleft()
            self._begin(trial)
            self._begun += 1
            return trial
        if self.spec.search == "grid" or self._begun >= self.spec.total:
            return None
        while self._waiting:
            params, seed = self._waiting.popleft()
            trial = self._trials.make(params, seed)
            if trial.trial_id not in self._ended and trial.trial_id not in self._running:
                self._begin(trial)
                self._begun += 1
                return trial
        return None if self.used_up else self._suggested()

    @property
    def exhausted(self) -> bool:
        """Whether :meth:`ask` will never give another trial."""
        if self._again or self._grid:
            return False
        if self.spec.search == "grid" or self._begun >= self.spec.total:
            return True
        # What is running may still earn itself further seeds.
        return self.used_up and not self._waiting and not (self.spec.seeds > 1 and self._running)

    def _suggested(self) -> Trial | None:
        for _ in range(_FRUITLESS):
            number = len(self.study.get_trials(deepcopy=False))
            self.study.sampler = self._sampler(number)
            asked = self.study.ask()
            params = self._suggest(asked)
            seed = self.spec.base.train.seed
            try:
                trial = self._trials.make(params, seed)
            except InputError as error:  # a combination that cannot be costs no training
                asked.set_user_attr("impossible", str(error))
                self.study.tell(asked, state=TrialState.FAIL)
                continue
            while trial.trial_id in self._running:  # under way: what it gives is not known yet, and a further seed is
                seed += 1
                trial = self._trials.make(params, seed)
            known = self._ended.get(trial.trial_id)
            if known is not None:
                # Trained before: what it gave is told, not trained again.
                for name, value in ((_KEY, trial.trial_id), (_SEED, seed), (_OF, known.label)):
                    asked.set_user_attr(name, value)
                self._running[trial.trial_id] = asked
                self.tell(trial.trial_id, known.status, known.metrics)
                continue
            self._note(asked, trial)
            self._begun += 1
            return trial
        self.used_up = True
        return None

    def _suggest(self, asked: optuna.Trial) -> Params:
        """A value for each parameter that exists beside the others."""
        params: Params = {}
        for parameter in self.spec.parameters:
            if parameter.exists(params):
                params[parameter.name] = _suggest_one(asked, parameter)
        return params

    def _begin(self, trial: Trial) -> None:
        """A trial whose point is given."""
        self.study.enqueue_trial(dict(trial.params))
        asked = self.study.ask()
        for name, _ in trial.params:
            _suggest_one(asked, next(parameter for parameter in self.spec.parameters if parameter.name == name))
        self._note(asked, trial)

    def _note(self, asked: optuna.Trial, trial: Trial) -> None:
        asked.set_user_attr(_SEED, trial.config.train.seed)
        asked.set_user_attr(_LABEL, trial.label)
        asked.set_user_attr(_KEY, trial.trial_id)  # last: with it, the training counts as begun
        self._running[trial.trial_id] = asked

    def _made(self, frozen: FrozenTrial) -> Trial:
        """The training that an Optuna trial stands for."""
        params = {p.name: frozen.params[p.name] for p in self.spec.parameters if p.name in frozen.params}
        return self._trials.make(params, frozen.user_attrs[_SEED])

    def result(self, trial_id: str, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Note what an epoch gave; returns whether the trial is to stop early."""
        trial = self._running.get(trial_id)
        if trial is None or len(self.spec.objectives) > 1 or METRIC not in metrics:
            return False
        reported = self._reported.setdefault(trial_id, set())
        if epoch not in reported:  # a training that goes on tells its last epoch again
            reported.add(epoch)
            trial.report(metrics[METRIC], epoch)
        if self.spec.early_stop is None or epoch >= self.spec.base.train.epochs:
            return False
        # Optuna decides once at a rung: a decision that a kill overtook must be found again.
        if _STOPPED not in trial.user_attrs and trial.should_prune():
            trial.set_user_attr(_STOPPED, epoch)
        return _STOPPED in trial.user_attrs

    def tell(self, trial_id: str, status: str, metrics: Mapping[str, float], trial: Trial | None = None) -> None:
        """Note how a trial ended: finished, pruned or failed. One that was interrupted is left as it is."""
        asked = self._running.get(trial_id)
        if asked is None or status not in ("finished", "pruned", "failed"):
            return
        del self._running[trial_id]
        values = [float(metrics.get(OBJECTIVES[name][1], math.nan)) for name in self.spec.objectives]
        if status == "pruned":
            self.study.tell(asked, state=TrialState.PRUNED)
        elif status == "failed" or not all(map(math.isfinite, values)):
            self.study.tell(asked, state=TrialState.FAIL)
        else:
            self.study.tell(asked, values)
        if trial is not None and status != "failed":
            seed = trial.config.train.seed
            self._ended[trial_id] = TrialResult(
                trial_id, trial.label, seed, dict(trial.params), "", status, dict(metrics)
            )
            self._owe_seeds(self._ended[trial_id])

    def _owe_seeds(self, result: TrialResult) -> None:
        """Queue the further seeds of a trial that finished; what was stopped early gets none."""
        first = self.spec.base.train.seed
        if self.spec.search == "grid" or result.seed != first or result.status != "finished":
            return
        for seed in range(first + 1, first + self.spec.seeds):
            trial_id = self._trials.make(result.params, seed).trial_id
            if trial_id not in self._owed and trial_id not in self._ended and trial_id not in self._running:
                self._waiting.append((dict(result.params), seed))
                self._owed.add(trial_id)


def _suggest_one(asked: optuna.Trial, parameter: Parameter) -> Any:
    """A value of one parameter: the given one of an enqueued trial, else one that the sampler draws."""
    name, values = parameter.name, parameter.values
    if values:
        # Evenly spaced whole numbers have an order that the sampler can use.
        steps = {b - a for a, b in itertools.pairwise(values)} if _whole(values) else set()
        if len(steps) == 1 and min(steps) > 0:
            return asked.suggest_int(name, values[0], values[-1], step=steps.pop())
        return asked.suggest_categorical(name, values)
    low, high = parameter.low, parameter.high
    assert low is not None
    assert high is not None
    if parameter.integer:
        return asked.suggest_int(name, int(low), int(high), log=parameter.log)
    return asked.suggest_float(name, low, high, log=parameter.log)


def _whole(values: Sequence[Any]) -> bool:
    return len(values) > 1 and all(isinstance(value, int) and not isinstance(value, bool) for value in values)
