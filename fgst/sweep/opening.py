"""Opens sweeps: creates a new one, or loads one that was started before."""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
import time
from pathlib import Path

from fgst import durable
from fgst.data.cache import is_remote
from fgst.data.dataset import ArrowDataset, open_recorded
from fgst.errors import InputError
from fgst.network import complete_url
from fgst.sweep import storage
from fgst.sweep.definition import SweepDefinition, TrialFactory
from fgst.sweep.runner import SweepRunner
from fgst.sweep.spec import SweepSpec
from fgst.sweep.study_storage import VARIABLE, open_storage
from fgst.tracking.run import TrackedRun
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags
from fgst.tracking.uris import database_path, sqlite_uri

logger = logging.getLogger(__name__)


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
        study_storage: URL of the Optuna storage; by default a database of its own in the folder ``studies`` there, or
            in the user's data folder if it is a URI.
        reuse_finished_trials: reuse equal trials that an earlier sweep finished.
        tags: additional tags of the run.

    Raises:
        InputError: if nothing can be written to the storage, or the study's cannot be opened.
    """
    root = storage.resolve(storage_location)
    study_folder = (Path.home() / ".local" / "share" / "fgst" if is_remote(root) else Path(root)) / "studies"
    study_url = complete_url(study_storage or os.environ.get(VARIABLE, ""), VARIABLE)
    study = open_storage(study_url) if study_url else None
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
            Tags.DATASET: spec.dataset_name,
            Tags.BENCHMARK: str(spec.base.data.benchmark),
            Tags.DATASET_DIGEST: spec.dataset_digest,
            Tags.PROTOCOL: spec.base.data.protocol,
        },
    )
    with run.killed_if_interrupted():
        location = f"{root}/{run.run_id}"
        try:
            storage.prepare(location)
            if study is None:
                storage.prepare(str(study_folder))
                study_url = sqlite_uri(study_folder / f"{run.run_id}.db")
                study = open_storage(study_url)
        except InputError as error:
            run.finish("FAILED", str(error))
            raise
        run.set_tags({Tags.STORAGE: location, Tags.STUDY_STORAGE: study_url})
        if reuse_finished_trials:
            finished = {trial.trial_id: store.finished(experiment, trial.trial_id) for trial in spec.trials}
            run.set_tags(
                {Tags.REUSED_TRIAL + t: found.info.run_id for t, found in finished.items() if found is not None}
            )
        varied = {p.name: list(p.values) if p.values else f"{p.low} to {p.high}" for p in spec.parameters}
        run.log_params(
            {"sweep": spec.name, "search": spec.search, "trials": spec.total, "seeds": spec.seeds}
            | {name: getattr(spec.setting, name) for name in ("modality", "preset", "passes")}
            | {f"values.{name.replace('/', '-')}": values for name, values in varied.items()}
        )
        _log_spec(run, spec)
        return SweepRunner(spec, factory, store, experiment, run, location, study)


def _log_spec(run: TrackedRun, spec: SweepSpec) -> None:
    with tempfile.TemporaryDirectory(prefix="fgst-sweep-") as folder:
        (Path(folder) / "sweep.json").write_text(spec.to_json())
        run.log_artifacts(Path(folder))


def find_sweep(spec: SweepSpec, dataset: ArrowDataset, store: TrackingStore) -> str | None:
    """Return the run id of the newest sweep with the same specification, finished or not; ``None`` without one.

    Args:
        dataset: the open data set. A sweep that was started when it was at another location is found, too.
    """
    experiment = store.experiment(spec.experiment)
    sought = SweepSpec.from_json(spec.to_json())
    query = f"tags.`{Tags.KIND}` = 'sweep' and tags.`{Tags.SWEEP}` = '{spec.name}'"
    for run in store.runs([experiment], query):
        if Tags.STORAGE not in run.data.tags:  # its start failed
            continue
        try:
            with store.artifacts(run.info.run_id, "sweep.json") as file:
                recorded = SweepSpec.from_json(file.read_bytes())
        except InputError as error:  # it was killed at its start, or is of another version
            logger.info("sweep %s is not resumed: %s", run.info.run_id, error)
            continue
        if recorded.dataset_digest == spec.dataset_digest and recorded.moved(dataset) == sought:
            return run.info.run_id
    return None


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
    moved = dataset.location != spec.base.data.dataset
    if moved:
        spec = spec.moved(dataset)
    checkpoints = tags[Tags.STORAGE]
    storage.prepare(checkpoints)
    recorded = tags.get(Tags.STUDY_STORAGE) or sqlite_uri(Path(checkpoints).parent / "optuna.db")
    study = complete_url(study_storage or recorded, VARIABLE)
    if database := database_path(study):
        durable.make_folder(database.parent)
    runner = SweepRunner(
        spec, TrialFactory(definition, spec.base, dataset), store, run.info.experiment_id, store.open_run(sweep_id),
        checkpoints, open_storage(study), resumed=True,
    )  # fmt: skip
    if moved:
        with runner.exclusive():
            _log_spec(runner.tracked_run, spec)
    return runner
