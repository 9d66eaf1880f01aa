"""Runs a sweep from its start, or from where it was interrupted, to its results in MLflow.

At the end of a sweep, the statuses of all runs are set first; then the callbacks (:class:`SweepCallback`) log the
report and print the table. Only the command line determines the exit code.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from fgst.errors import DeletedInMlflow, InputError, StoreUnavailable
from fgst.sweep import storage
from fgst.sweep.backends.base import Backend
from fgst.sweep.background import BackgroundWorker
from fgst.sweep.correctness import read_correct
from fgst.sweep.definition import TrialFactory, parse_recorded_params
from fgst.sweep.driver_lock import DriverLock, LockEntry
from fgst.sweep.results import SweepResult, TrialResult, best_result, runs_to_compare
from fgst.sweep.scheduler import TrialUpdate
from fgst.sweep.search import Search
from fgst.sweep.spec import SweepSpec
from fgst.sweep.status import StopReason, SweepStatus, TrialStatus
from fgst.sweep.stopping import Budget
from fgst.sweep.trial import SPOOLS, TrialContext
from fgst.tracking.deletion import deleted_experiment, is_deleted
from fgst.tracking.run import TrackedRun
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

logger = logging.getLogger(__name__)

_STATUS_OF_MLFLOW = {
    "FINISHED": TrialStatus.FINISHED,
    "FAILED": TrialStatus.FAILED,
    "KILLED": TrialStatus.INTERRUPTED,
}


class SweepCallback:
    """Observes a sweep; the methods do nothing by default."""

    def on_start(self, runner: SweepRunner, num_finished: int) -> None:
        """Before anything is run; ``num_finished`` trials ended in earlier invocations."""

    def on_training_start(self, runner: SweepRunner, num_finished: int) -> None:
        """Before the first trial, if there is one to run."""

    def on_update(self, update: TrialUpdate) -> None:
        """After every epoch and every end of a trial, in the loop that starts trials: return quickly."""

    def on_training_end(self) -> None:
        """When no trial is running any more, also after an exception."""

    def on_end(self, runner: SweepRunner, result: SweepResult) -> None:
        """After the statuses of all runs were set."""


class SweepRunner:
    """A sweep with its MLflow run, its storage for checkpoints, and its Optuna study.

    Args:
        spec: the sweep.
        factory: creates its trials.
        store: the tracking store.
        experiment: id of the experiment.
        run: the sweep's run.
        storage_location: folder or URI for the checkpoints of this sweep.
        study_storage: the Optuna storage.
        resumed: whether the sweep was started by an earlier invocation.

    Attributes:
        search: the search, once the sweep runs.
        deletion: set if the sweep's own run was deleted in MLflow, so that its results could not be recorded.
    """

    def __init__(
        self,
        spec: SweepSpec,
        factory: TrialFactory,
        store: TrackingStore,
        experiment: str,
        run: TrackedRun,
        storage_location: str,
        study_storage: BaseStorage,
        *,
        resumed: bool = False,
    ) -> None:
        self.spec, self.factory, self.store, self.experiment = spec, factory, store, experiment
        self.tracked_run, self.storage_location, self.study_storage = run, storage_location, study_storage
        self.resumed = resumed
        self.search: Search | None = None
        self.deletion: DeletedInMlflow | None = None
        self._lock: DriverLock | None = None
        self._budget: Budget | None = None

    @property
    def sweep_id(self) -> str:
        """Id of the sweep's run."""
        return self.tracked_run.run_id

    def tags(self) -> dict[str, str]:
        """Current tags of the sweep's run."""
        return dict(self.store.run(self.sweep_id, allow_deleted=True).data.tags)

    def results(self) -> list[TrialResult]:
        """The state of all trials that were started, in order of their start; reused trials first."""
        self.store.flush_spools(storage.on_this_node(self.storage_location) / SPOOLS)
        results: dict[str, TrialResult] = {}
        reusable = {Tags.REUSED_TRIAL + trial.trial_id: trial for trial in self.spec.trials}
        for tag, run_id in sorted(self.tags().items()):
            if tag in reusable:
                trial = reusable[tag]
                try:
                    run = self.store.run(run_id)
                except InputError:  # deleted since: it is trained in this sweep
                    continue
                results[trial.trial_id] = TrialResult(
                    trial.trial_id, trial.label, trial.config.train.seed, dict(trial.params), run_id,
                    TrialStatus.FINISHED, run.data.metrics, used_micro_batches=Tags.MICRO_BATCHES in run.data.tags,
                )  # fmt: skip
        for run in self.store.children(self.sweep_id):
            tags = run.data.tags
            status = tags.get(Tags.STATUS) or _STATUS_OF_MLFLOW.get(run.info.status, TrialStatus.RUNNING)
            result = TrialResult(
                tags.get(Tags.TRIAL_ID, ""), tags.get(Tags.LABEL, ""), int(tags.get(Tags.SEED, "0")),
                parse_recorded_params(tags.get(Tags.PARAMS, "[]")), run.info.run_id, TrialStatus(status),
                run.data.metrics, tags.get(Tags.REASON, ""), Tags.MICRO_BATCHES in tags,
            )  # fmt: skip
            # A run that was deleted, trained again and restored exists twice.
            known = results.get(result.trial_id)
            if known is None or known.status is not TrialStatus.FINISHED:
                results[result.trial_id] = result
        return list(results.values())

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other processes from running this sweep within the context; may be nested.

        Raises:
            InputError: if another process is running it.
        """
        if self._lock is not None:
            yield
            return
        tag = LockEntry(
            lambda: self.tags().get(Tags.DRIVER, ""),
            lambda text: self.store.raw_client.set_tag(self.sweep_id, Tags.DRIVER, text),
        )
        study = self._study_entry()
        entries = [tag] if study is None else [tag, study]
        try:
            with DriverLock(entries, self.sweep_id, self._on_lock_lost) as self._lock:
                yield
        finally:
            self._lock = None

    def _study_entry(self) -> LockEntry | None:
        """Where the lock is recorded in the study, which copies of the tracking store share; ``None`` without one."""
        storage = self.study_storage
        try:
            study = storage.get_study_id_from_name(self.sweep_id)
        except KeyError:
            return None
        return LockEntry(
            lambda: str(storage.get_study_user_attrs(study).get(Tags.DRIVER, "")),
            lambda text: storage.set_study_user_attr(study, Tags.DRIVER, text),
        )

    def _on_lock_lost(self) -> None:
        """Stop, because another process runs the sweep: this one was suspended for so long that it counted as gone."""
        assert self._lock is not None
        if self._budget is not None:
            self._budget.stop(StopReason.REPLACED, self._lock.lost_message)

    def run(
        self,
        backend: Backend,
        budget: Budget | None = None,
        callbacks: Sequence[SweepCallback] = (),
        *,
        price_per_hour: float | None = None,
        system_metrics: bool = False,
    ) -> SweepResult:
        """Run what is left of the sweep.

        Args:
            backend: where trials run.
            budget: limits of this invocation.
            callbacks: observers, called in this order.
            price_per_hour: hourly price of a GPU (of a core on the CPU), to log the cost of each trial.
            system_metrics: log the load of the machines.

        Raises:
            InputError: if another process is running the sweep.
            StoreUnavailable: if the tracking server was unreachable for too long; the sweep can be resumed.
        """
        with self.exclusive():
            return self._run(backend, budget or Budget(), callbacks, price_per_hour, system_metrics)

    def _run(
        self,
        backend: Backend,
        budget: Budget,
        callbacks: Sequence[SweepCallback],
        price_per_hour: float | None,
        system_metrics: bool,
    ) -> SweepResult:
        spec, self._budget = self.spec, budget
        assert self._lock is not None
        previous, new_study = self.results(), self._study_entry() is None
        num_finished = sum(result.status in (TrialStatus.FINISHED, TrialStatus.PRUNED) for result in previous)
        try:
            history = (lambda run_id: self.store.metric_history(run_id, "val/top1")) if self.resumed else None
            search = Search(spec, self.factory, self.study_storage, self.sweep_id, previous, history)
        except InputError as error:
            self.tracked_run.finish("FAILED", str(error))
            raise
        if new_study and (entry := self._study_entry()) is not None:
            self._lock.extend(entry)
        self.search = search
        for label, message in self._deleted_trials(search, previous):
            logger.info("%s is trained again: %s", label, message)
        self.store.client.update_run(self.sweep_id, status="RUNNING")
        context = TrialContext(
            self.store.uri, self.experiment, self.sweep_id, self.storage_location,
            price_per_hour=price_per_hour, latency="latency" in spec.objectives, system_metrics=system_metrics,
            driver=secrets.token_hex(4),
        )  # fmt: skip
        for callback in callbacks:
            callback.on_start(self, num_finished)
        try:
            if not search.exhausted:
                self._train(backend, search, context, budget, callbacks, num_finished)
        except KeyboardInterrupt:
            budget.stop(StopReason.INTERRUPTED, "")
        except StoreUnavailable:
            raise  # nothing can be recorded without the server
        except Exception as error:
            self.tracked_run.finish("FAILED", f"{type(error).__name__}: {error}")
            raise
        if message := self._lock.lost_message:
            raise InputError(f"{message}; this process has stopped")
        result = self._finalize(search, budget)
        for callback in callbacks:
            with self._noting_deletion():
                callback.on_end(self, result)
        return result

    @contextmanager
    def _noting_deletion(self) -> Iterator[None]:
        """Continue if the sweep's own run was deleted, and keep the error in :attr:`deletion`."""
        try:
            yield
        except DeletedInMlflow as error:
            self.deletion = error

    def _deleted_trials(self, search: Search, results: Sequence[TrialResult]) -> list[tuple[str, str]]:
        """Trials that ended and whose runs are not among ``results``: label, and how to restore the run."""
        missing = search.ended_labels()
        for result in results:
            missing.pop(result.trial_id, None)
        if not missing:
            return []
        runs = {
            run.data.tags.get(Tags.TRIAL_ID): run.info.run_id
            for run in self.store.children(self.sweep_id, deleted=True)
        }
        return [
            (label, str(self.store.deletion(runs[trial_id])) if trial_id in runs else "its run is no longer in MLflow")
            for trial_id, label in missing.items()
        ]

    def _train(
        self,
        backend: Backend,
        search: Search,
        context: TrialContext,
        budget: Budget,
        callbacks: Sequence[SweepCallback],
        num_finished: int,
    ) -> None:
        with ExitStack() as stack:
            for callback in callbacks:
                callback.on_training_start(self, num_finished)
                stack.callback(callback.on_training_end)
            background = stack.enter_context(BackgroundWorker())

            def on_update(update: TrialUpdate) -> None:
                if update.status is not TrialStatus.RUNNING:
                    background.submit(lambda: self._finalize_trial(update, budget))
                for callback in callbacks:
                    callback.on_update(update)

            backend.run(search, context, budget, on_update)
            if background.wait():
                budget.on_disk_full()

    def interrupt(self) -> None:
        """Set the sweep's run to KILLED if it counts as running."""
        with self._noting_deletion():
            self.tracked_run.interrupt()

    def _finalize_trial(self, update: TrialUpdate, budget: Budget) -> None:
        """Record the end of a trial where the trial itself could not; stop if the experiment was deleted."""
        if update.status is TrialStatus.FINISHED or (self._lock is not None and self._lock.lost_message):
            return
        experiment = self.store.client.get_experiment(self.experiment)
        if is_deleted(experiment):
            budget.stop(StopReason.DELETED, str(deleted_experiment(self.store.uri, experiment)))
            return
        if update.status is TrialStatus.FAILED and not update.reason:
            return
        trial = update.trial
        self.store.flush_spools(storage.on_this_node(self.storage_location) / SPOOLS)
        run = self.store.start(
            self.experiment, trial.trial_id, trial.name,
            {Tags.LABEL: trial.label, Tags.PARAMS: json.dumps(list(trial.params)), Tags.KIND: "trial",
             Tags.SEED: str(trial.config.train.seed)},
            self.sweep_id,
        )  # fmt: skip
        if update.status is TrialStatus.FAILED:
            run.finish("FAILED", update.reason)
        elif update.status is TrialStatus.PRUNED:
            run.finish("KILLED", f"stopped early after epoch {update.metrics.get('epoch', 0):g}")
            storage.TrialStorage(self.storage_location, trial.trial_id).remove()
        else:
            run.finish("KILLED")
        run.set_tags({Tags.STATUS: update.status.value})

    def _finalize(self, search: Search, budget: Budget) -> SweepResult:
        """Set the statuses of the trials that still count as running and of the sweep."""
        results = []
        for result in self.results():
            if result.status is TrialStatus.RUNNING:
                self.store.client.set_terminated(result.run_id, "KILLED")
                self.store.client.set_tag(result.run_id, Tags.STATUS, TrialStatus.INTERRUPTED.value)
                result = dataclasses.replace(result, status=TrialStatus.INTERRUPTED)
            results.append(result)
        best = best_result(self.spec, results)
        interrupted = sum(result.status is TrialStatus.INTERRUPTED for result in results)
        remaining = interrupted + search.remaining
        deleted = self._deleted_trials(search, results)
        limits = (StopReason.MAX_HOURS, StopReason.MAX_TRIALS, StopReason.UNTIL_TOP1)
        stopped_by_limit = bool(remaining) and budget.stop_reason in limits
        if remaining:
            status = SweepStatus.STOPPED if stopped_by_limit else SweepStatus.INTERRUPTED
        else:
            status = SweepStatus.FAILED if best is None else SweepStatus.COMPLETED
        with self._noting_deletion():
            self._record_end(status, budget, stopped_by_limit=stopped_by_limit)
        failed = any(result.status is TrialStatus.FAILED for result in results)
        if not (remaining or failed or deleted or self.deletion):
            storage.remove(self.storage_location)  # everything is in MLflow now
        were_spooled = self.store.remote and any(
            Tags.SPOOLED in run.data.tags for run in self.store.children(self.sweep_id)
        )
        return SweepResult(
            self.spec, self.sweep_id, status, tuple(results), best, remaining, budget.stop_reason, budget.details,
            were_spooled, tuple(deleted), read_correct(self.store, runs_to_compare(self.spec, results),
            self.spec.compared_split),
        )  # fmt: skip

    def _record_end(self, status: SweepStatus, budget: Budget, *, stopped_by_limit: bool) -> None:
        """Set the status of the sweep's run."""
        if stopped_by_limit:
            self.tracked_run.set_tags({Tags.STOP_REASON: budget.details})
        elif Tags.STOP_REASON in self.tags():  # from an earlier invocation
            self.store.client.delete_tag(self.sweep_id, Tags.STOP_REASON)
        if status is SweepStatus.INTERRUPTED:
            self.tracked_run.finish("KILLED", budget.details or "interrupted")
        else:
            self.tracked_run.finish("FAILED" if status is SweepStatus.FAILED else "FINISHED")
