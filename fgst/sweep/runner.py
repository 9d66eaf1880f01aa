"""Runs a sweep from its start, or from where it was interrupted, to its results in MLflow.

At the end of a sweep, the statuses of all runs are set first; then the callbacks (:class:`SweepCallback`) log the
report and print the table. Only the command line determines the exit code.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import secrets
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fgst.data.cache import is_remote
from fgst.data.dataset import ArrowDataset, open_recorded
from fgst.errors import InputError
from fgst.sweep import storage
from fgst.sweep.backends.base import Backend
from fgst.sweep.background import BackgroundWorker
from fgst.sweep.definition import SweepDefinition, TrialFactory
from fgst.sweep.results import TrialResult, best_result
from fgst.sweep.scheduler import TrialUpdate
from fgst.sweep.search import Search
from fgst.sweep.spec import SweepSpec
from fgst.sweep.status import StopReason, SweepStatus, TrialStatus
from fgst.sweep.stopping import Budget
from fgst.sweep.trial import SPOOLS, TrialContext
from fgst.tracking.run import TrackedRun
from fgst.tracking.spool import TrackingServerUnavailable
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags
from fgst.tracking.uris import database_path, sqlite_uri

logger = logging.getLogger(__name__)

_STATUS_OF_MLFLOW = {
    "FINISHED": TrialStatus.FINISHED,
    "FAILED": TrialStatus.FAILED,
    "KILLED": TrialStatus.INTERRUPTED,
}


@dataclass(frozen=True)
class SweepResult:
    """The result of an invocation of a sweep.

    Attributes:
        spec: the sweep.
        sweep_id: id of its MLflow run.
        status: how the invocation ended.
        trials: all trials started so far, those reused from earlier sweeps first.
        best: the trial to continue with, see :func:`fgst.sweep.results.best_result`.
        remaining: number of trials left at most, interrupted ones included.
        stop_reason, details: why no further trial was started, as an enumeration member and in words.
        were_spooled: whether records were buffered while the tracking server was unreachable, and uploaded later.
    """

    spec: SweepSpec
    sweep_id: str
    status: SweepStatus
    trials: tuple[TrialResult, ...]
    best: TrialResult | None
    remaining: int
    stop_reason: StopReason | None = None
    details: str = ""
    were_spooled: bool = False

    @property
    def failed(self) -> tuple[TrialResult, ...]:
        """The trials that failed."""
        return tuple(trial for trial in self.trials if trial.status is TrialStatus.FAILED)

    @property
    def interrupted(self) -> tuple[TrialResult, ...]:
        """The trials that were stopped before their last epoch and can be resumed."""
        return tuple(trial for trial in self.trials if trial.status is TrialStatus.INTERRUPTED)

    @property
    def best_label(self) -> str | None:
        """Label of the best configuration if it was chosen by validation."""
        return self.best.label if self.best is not None and "val/top1" in self.best.metrics else None


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
        study_storage: URL of the Optuna storage.
        resumed: whether the sweep was started by an earlier invocation.
    """

    def __init__(
        self,
        spec: SweepSpec,
        factory: TrialFactory,
        store: TrackingStore,
        experiment: str,
        run: TrackedRun,
        storage_location: str,
        study_storage: str,
        *,
        resumed: bool = False,
    ) -> None:
        self.spec, self.factory, self.store, self.experiment = spec, factory, store, experiment
        self.tracked_run, self.storage_location, self.study_storage = run, storage_location, study_storage
        self.resumed = resumed
        self.search: Search | None = None

    @property
    def sweep_id(self) -> str:
        """Id of the sweep's run."""
        return self.tracked_run.run_id

    def tags(self) -> dict[str, str]:
        """Current tags of the sweep's run."""
        return dict(self.store.run(self.sweep_id).data.tags)

    def results(self) -> list[TrialResult]:
        """The state of all trials that were started, in order of their start; reused trials first."""
        self.store.flush_spools(storage.on_this_node(self.storage_location) / SPOOLS)
        results = []
        reusable = {Tags.REUSED_TRIAL + trial.trial_id: trial for trial in self.spec.trials}
        for tag, run_id in sorted(self.tags().items()):
            if tag in reusable:
                trial, run = reusable[tag], self.store.run(run_id)
                results.append(
                    TrialResult(
                        trial.trial_id, trial.label, trial.config.train.seed, dict(trial.params), run_id,
                        TrialStatus.FINISHED, run.data.metrics,
                        used_micro_batches=Tags.MICRO_BATCHES in run.data.tags,
                    )
                )  # fmt: skip
        for run in self.store.children(self.sweep_id):
            tags = run.data.tags
            status = tags.get(Tags.STATUS) or _STATUS_OF_MLFLOW.get(run.info.status, TrialStatus.RUNNING)
            results.append(
                TrialResult(
                    tags.get(Tags.TRIAL_ID, ""), tags.get(Tags.LABEL, ""), int(tags.get(Tags.SEED, "0")),
                    dict(json.loads(tags.get(Tags.PARAMS, "[]"))), run.info.run_id, TrialStatus(status),
                    run.data.metrics, tags.get(Tags.REASON, ""), Tags.MICRO_BATCHES in tags,
                )
            )  # fmt: skip
        return results

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
            TrackingServerUnavailable: if the tracking server was unreachable for too long; the sweep can be resumed.
        """
        spec, budget = self.spec, budget or Budget()
        previous = self.results()
        num_finished = sum(result.status in (TrialStatus.FINISHED, TrialStatus.PRUNED) for result in previous)
        try:
            history = (lambda run_id: self.store.metric_history(run_id, "val/top1")) if self.resumed else None
            search = Search(spec, self.factory, self.study_storage, self.sweep_id, previous, history)
        except InputError as error:
            self.tracked_run.finish("FAILED", str(error))
            raise
        self.search = search
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
        except TrackingServerUnavailable:
            raise  # nothing can be recorded without the server
        except Exception as error:
            self.tracked_run.finish("FAILED", f"{type(error).__name__}: {error}")
            raise
        result = self._finalize(search, budget)
        for callback in callbacks:
            callback.on_end(self, result)
        return result

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
                    background.submit(lambda: self._finalize_trial(update))
                for callback in callbacks:
                    callback.on_update(update)

            backend.run(search, context, budget, on_update)
            if background.wait():
                budget.on_disk_full()

    def interrupt(self) -> None:
        """Set the sweep's run to KILLED if it counts as running."""
        if self.store.run(self.sweep_id).info.status == "RUNNING":
            self.tracked_run.finish("KILLED", "interrupted")

    def _finalize_trial(self, update: TrialUpdate) -> None:
        """Record the end of a trial where the trial itself could not."""
        if update.status is TrialStatus.FINISHED or (update.status is TrialStatus.FAILED and not update.reason):
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
        limits = (StopReason.MAX_HOURS, StopReason.MAX_TRIALS, StopReason.UNTIL_TOP1)
        stopped_by_limit = bool(remaining) and budget.stop_reason in limits
        if remaining:
            status = SweepStatus.STOPPED if stopped_by_limit else SweepStatus.INTERRUPTED
        else:
            status = SweepStatus.FAILED if best is None else SweepStatus.COMPLETED
        if stopped_by_limit:
            self.tracked_run.set_tags({Tags.STOP_REASON: budget.details})
        elif Tags.STOP_REASON in self.tags():  # from an earlier invocation
            self.store.client.delete_tag(self.sweep_id, Tags.STOP_REASON)
        if status is SweepStatus.INTERRUPTED:
            self.tracked_run.finish("KILLED", budget.details or "interrupted")
        else:
            self.tracked_run.finish("FAILED" if status is SweepStatus.FAILED else "FINISHED")
        if not remaining and all(result.status is not TrialStatus.FAILED for result in results):
            storage.remove(self.storage_location)  # everything is in MLflow now
        were_spooled = self.store.remote and any(
            Tags.SPOOLED in run.data.tags for run in self.store.children(self.sweep_id)
        )
        return SweepResult(
            self.spec, self.sweep_id, status, tuple(results), best, remaining, budget.stop_reason, budget.details,
            were_spooled,
        )  # fmt: skip


def create_sweep(
    spec: SweepSpec,
    factory: TrialFactory,
    store: TrackingStore,
    *,
    storage_location: str,
    study_storage: str | None = None,
    reuse_finished_trials: bool = False,
    tags: dict[str, str] | None = None,
) -> SweepRunner:
    """Create the run of a new sweep, with the specification among its artifacts: the run's id is enough to resume it.

    Args:
        storage_location: folder or URI for checkpoints; the sweep gets a folder of its own inside.
        study_storage: URL of the Optuna storage; by default a database in that folder, or in the user's data folder if
            it is a URI.
        reuse_finished_trials: reuse equal trials that an earlier sweep finished.
        tags: additional tags of the run.

    Raises:
        InputError: if nothing can be written to the storage.
    """
    root = storage.resolve(storage_location)
    study_folder = Path.home() / ".local" / "share" / "fgst" if is_remote(root) else Path(root)
    experiment = store.experiment(spec.experiment)
    name = f"{spec.name} {spec.base.data.modality}"
    run = store.start(
        experiment,
        f"{spec.name}-{time.time_ns()}",
        name,
        {
            **(tags or {}),
            Tags.KIND: "sweep",
            "mlflow.source.name": f"sweeps/{spec.name}.py",
            Tags.SWEEP: spec.name,
            Tags.DATASET_DIGEST: spec.dataset_digest,
            Tags.PROTOCOL: spec.base.data.protocol,
        },
    )
    location = f"{root}/{run.run_id}"
    try:
        storage.prepare(location)
        storage.prepare(str(study_folder))
    except InputError as error:
        run.finish("FAILED", str(error))
        raise
    study = study_storage or sqlite_uri(study_folder / "optuna.db")
    run.set_tags({Tags.STORAGE: location, Tags.STUDY_STORAGE: study})
    if reuse_finished_trials:
        finished = {trial.trial_id: store.finished(experiment, trial.trial_id) for trial in spec.trials}
        run.set_tags({Tags.REUSED_TRIAL + t: found.info.run_id for t, found in finished.items() if found is not None})
    varied = {p.name: list(p.values) if p.values else f"{p.low} to {p.high}" for p in spec.parameters}
    run.log_params(
        {"sweep": spec.name, "search": spec.search, "trials": spec.total, "seeds": spec.seeds}
        | {f"values.{name.replace('/', '-')}": values for name, values in varied.items()}
    )
    _log_spec(run, spec)
    return SweepRunner(spec, factory, store, experiment, run, location, study)


def _log_spec(run: TrackedRun, spec: SweepSpec) -> None:
    with tempfile.TemporaryDirectory(prefix="fgst-sweep-") as folder:
        (Path(folder) / "sweep.json").write_text(spec.to_json())
        run.log_artifacts(Path(folder))


def load_sweep(
    definition: SweepDefinition,
    sweep_id: str,
    store: TrackingStore,
    *,
    study_storage: str | None = None,
    limit: int | None = None,
    location: str | None = None,
) -> SweepRunner:
    """Load a sweep that was started before, to resume it.

    Args:
        sweep_id: id of its run.
        study_storage: URL of the Optuna storage, if it is not the recorded one.
        limit: new maximum number of trainings of a search.
        location: where the data set is now, which is recorded; by default where it was.

    Raises:
        InputError: if there is no such sweep, it is one of another definition, or its data set has changed.
    """
    run = store.run(sweep_id)
    tags = run.data.tags
    if tags.get(Tags.KIND) != "sweep" or Tags.STORAGE not in tags:
        raise InputError(f"run {sweep_id} is not a sweep; --resume takes the id that the sweep printed at its start")
    with store.artifacts(sweep_id, "sweep.json") as file:
        spec = SweepSpec.from_json(file.read_bytes())
    if spec.name != definition.name:
        raise InputError(f"run {sweep_id} is a sweep of sweeps/{spec.name}.py; resume it with that script")
    if limit is not None:
        if spec.search == "grid":
            raise InputError("--trials applies to searches, and this sweep is a grid")
        spec = dataclasses.replace(spec, limit=limit)
    dataset = ArrowDataset(location) if location else open_recorded(spec.base.data.dataset, f"sweep {sweep_id}")
    if dataset.digest != spec.dataset_digest:
        raise InputError(f"{dataset.path}: its digest differs from that of the data set that the sweep was started on")
    if dataset.location != spec.base.data.dataset:
        spec = spec.moved(dataset)
        _log_spec(store.open_run(sweep_id), spec)
    checkpoints = tags[Tags.STORAGE]
    storage.prepare(checkpoints)
    study = study_storage or tags.get(Tags.STUDY_STORAGE) or sqlite_uri(Path(checkpoints).parent / "optuna.db")
    if database := database_path(study):
        database.parent.mkdir(parents=True, exist_ok=True)
    return SweepRunner(
        spec, TrialFactory(definition, spec.base, dataset), store, run.info.experiment_id, store.open_run(sweep_id),
        checkpoints, study, resumed=True,
    )  # fmt: skip
