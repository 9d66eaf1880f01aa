"""Garbage collection: weights of trials that were not the best, and checkpoint folders of finished sweeps.

Only data that is known to be unnecessary is deleted. A trial keeps its weights if it is the best of its sweep, if
another run refers to it (an ensemble to its members, a sweep to its best trial or to trials that it reuses), if a
version of a registered model needs it, or if its sweep can still be resumed. Trials that lose their weights keep their
scores, figures, metrics and ``checkpoint/config.json``, so tables can still be made and ``--from-run`` can read their
settings.

With an embedded store (an SQLite database) only files inside the database's folder are deleted; others, e.g. of a
``--storage`` elsewhere, are listed. A copy of the project may refer to the same files.
"""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from fgst.errors import InputError
from fgst.parsing import read_json
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags
from fgst.tracking.uris import database_path

if TYPE_CHECKING:
    from mlflow.entities import Run

CHECKPOINT, CARD = "checkpoint", "config.json"
_RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Garbage:
    """Data that can be deleted.

    Attributes:
        kind: the weights of a trial, or the checkpoint folder of a sweep.
        run_id: run id of that trial or sweep.
        sweep: run id of the sweep.
        name: the run's name.
        bytes: size on disk.
        path: the folder, if it can be deleted from here; otherwise ``None``.
        storage: kind of storage, or the folder that cannot be deleted: "file", "mlflow-artifacts", "s3", "/scratch/…" …
    """

    kind: Literal["weights", "folder"]
    run_id: str
    sweep: str
    name: str
    bytes: int
    path: Path | None
    storage: str = "file"


@dataclass
class GarbageReport:
    """What can be deleted, and the number of trials that keep their weights, by reason."""

    garbage: list[Garbage] = field(default_factory=list)
    retained: Counter[str] = field(default_factory=Counter)


def find_garbage(store: TrackingStore, experiments: Iterable[str] | None = None) -> GarbageReport:
    """Search a tracking store for garbage; nothing is changed.

    Args:
        store: the tracking store.
        experiments: ids of the experiments to search; by default all. References from runs of other experiments are
            taken into account in either case.
    """
    all_experiments = list(store.experiments())
    selected = set(all_experiments if experiments is None else experiments)
    runs = store.runs(all_experiments)
    referenced = _referenced_runs(store, runs)
    trials: dict[str, list[Run]] = {}
    for run in runs:
        if run.data.tags.get(Tags.KIND) == "trial" and Tags.PARENT in run.data.tags:
            trials.setdefault(run.data.tags[Tags.PARENT], []).append(run)
    report = GarbageReport()
    for run in runs:
        if run.data.tags.get(Tags.KIND) == "sweep" and run.info.experiment_id in selected:
            _examine_sweep(store, run, trials.get(run.info.run_id, []), referenced, report)
    return report


def delete_garbage(store: TrackingStore, garbage: Garbage) -> None:
    """Delete garbage, unless its sweep was resumed or a reference to it appeared since it was found.

    Raises:
        InputError: if it was not deleted, with the reason.
    """
    if garbage.path is None:
        raise InputError(f"cannot be deleted with this command: it is in {garbage.storage}")
    sweep = store.run(garbage.sweep)
    # The state may have changed since find_garbage().
    if sweep.info.status != "FINISHED" or sweep.data.tags.get(Tags.BEST_RUN) == garbage.run_id:
        raise InputError("its sweep has been resumed since")
    if garbage.run_id in store.registered_runs():
        raise InputError("it has been registered since")
    try:
        if garbage.kind == "folder":
            shutil.rmtree(garbage.path)
            return
        # Tag first: a tagged trial that still has its weights wastes disk space; an untagged one without is an error.
        store.open_run(garbage.run_id).set_tags({Tags.WEIGHTS_REMOVED: "true"})
        for entry in garbage.path.iterdir():
            if entry.name != CARD and entry.is_file() and not entry.is_symlink():
                entry.unlink()
    except OSError as error:
        raise InputError(f"cannot be deleted ({error.strerror})") from None


def _examine_sweep(
    store: TrackingStore, sweep: Run, trials: Sequence[Run], referenced: dict[str, str], report: GarbageReport
) -> None:
    """Add a sweep's garbage and the reasons for retained weights to the report."""
    reason = _why_resumable(sweep, trials)
    if reason:
        report.retained[reason] += len(trials)
        return
    report.garbage += _sweep_folder(store, sweep)
    reason = _why_undecided(store, sweep)
    if reason:
        report.retained[reason] += len(trials)
        return
    best = {sweep.data.tags[Tags.BEST_RUN], *_best_by_validation(trials)}
    for trial in trials:
        if trial.info.run_id in best:
            report.retained["best of its sweep"] += 1
        elif trial.info.run_id in referenced:
            report.retained[referenced[trial.info.run_id]] += 1
        elif Tags.WEIGHTS_REMOVED not in trial.data.tags:
            report.garbage += _weights(store, trial, sweep.info.run_id)


def _referenced_runs(store: TrackingStore, runs: Iterable[Run]) -> dict[str, str]:
    """Run ids among the tags of other runs and behind registered models, with the kind of reference in words."""
    referenced: dict[str, str] = {}
    for run in runs:
        kind = run.data.tags.get(Tags.KIND, "run")
        reason = "member of an ensemble" if kind == "ensemble" else f"referenced by another {kind}"
        for run_id in _referenced_by(run):
            if run_id != run.info.run_id:
                referenced.setdefault(run_id, reason)
    for run_id in store.registered_runs():
        referenced[run_id] = "used by a registered model"
        try:
            registered = store.run(run_id, allow_deleted=True)
        except InputError:
            continue  # permanently deleted
        referenced |= dict.fromkeys(_referenced_by(registered), "used by a registered model")
    return referenced


def _referenced_by(run: Run) -> list[str]:
    """Run ids among a run's own tags; the parent is not one of them, since trials do not need their sweep's data."""
    tags = run.data.tags.items()
    return [value for tag, value in tags if tag.startswith("fgst.") and _RUN_ID.fullmatch(value)]


def _why_resumable(sweep: Run, trials: Iterable[Run]) -> str:
    """Why a sweep must keep its folder and all weights; empty if it has ended."""
    if sweep.info.status == "RUNNING":
        return "sweep is running"
    if sweep.info.status != "FINISHED" or Tags.STOP_REASON in sweep.data.tags:
        return "sweep can be resumed"
    if any(t.info.status == "RUNNING" or t.data.tags.get(Tags.STATUS) == "interrupted" for t in trials):
        return "sweep can be resumed"
    return ""


class _Objectives(msgspec.Struct):
    """What is needed of a ``sweep.json``."""

    objectives: list[str]


def _why_undecided(store: TrackingStore, sweep: Run) -> str:
    """Why a sweep has no single best trial; empty if it was chosen by one objective on validation clips."""
    if not _RUN_ID.fullmatch(sweep.data.tags.get(Tags.BEST_RUN, "")) or "val/top1" not in sweep.data.metrics:
        return "sweep without validation"
    try:
        with store.artifacts(sweep.info.run_id, "sweep.json") as file:
            objectives = read_json(file, _Objectives, what="a sweep.json").objectives
    except (InputError, OSError):
        return "sweep with unknown objectives"
    return "" if len(objectives) == 1 else "sweep with several objectives"


def _best_by_validation(trials: Iterable[Run]) -> list[str]:
    """Ids of the single best trials.

    With several seeds, a sweep's best trial has the configuration with the best mean, and may not be among these.
    """
    scored = [(t.data.metrics.get("val/top1", math.nan), t.info.run_id) for t in trials]
    scored = [(top1, run_id) for top1, run_id in scored if math.isfinite(top1)]
    best = max((top1 for top1, _ in scored), default=0.0)
    return [run_id for top1, run_id in scored if top1 == best]


def _weights(store: TrackingStore, trial: Run, sweep: str) -> list[Garbage]:
    if trial.info.status == "RUNNING":
        return []
    run_id, name = trial.info.run_id, str(trial.info.run_name)
    artifacts = store.local_artifacts(trial)
    if artifacts is None:
        sizes = store.artifact_sizes(run_id, CHECKPOINT)
        size = sum(count for file, count in sizes.items() if file != CARD)
        storage = str(trial.info.artifact_uri).partition(":")[0]
        return [Garbage("weights", run_id, sweep, name, size, None, storage)] if size else []
    folder = artifacts / CHECKPOINT
    # The artifact URI is not trusted: the folder must contain the run's id in its path, and must not be a link.
    if run_id not in artifacts.parts or ".." in artifacts.parts or not _is_real_folder(folder):
        return []
    size = sum(_file_sizes(entry for entry in folder.iterdir() if entry.name != CARD))
    return [_garbage(store, "weights", run_id, sweep, name, size, folder)] if size else []


def _garbage(
    store: TrackingStore,
    kind: Literal["weights", "folder"],
    run_id: str,
    sweep: str,
    name: str,
    size: int,
    folder: Path,
) -> Garbage:
    database = database_path(store.connection.uri)
    if database is not None and not folder.resolve().is_relative_to(database.parent.resolve()):
        return Garbage(kind, run_id, sweep, name, size, None, str(folder))
    return Garbage(kind, run_id, sweep, name, size, folder)


def _sweep_folder(store: TrackingStore, sweep: Run) -> list[Garbage]:
    run_id = sweep.info.run_id
    folder = Path(sweep.data.tags.get(Tags.STORAGE, ""))
    # The tag is not trusted, since anyone can edit it: only a folder named after the sweep's id belongs to the sweep.
    if not folder.is_absolute() or folder.name != run_id or ".." in folder.parts or not _is_real_folder(folder):
        return []
    size = sum(_file_sizes(folder.rglob("*")))
    return [_garbage(store, "folder", run_id, run_id, str(sweep.info.run_name), size, folder)]


def _is_real_folder(path: Path) -> bool:
    try:
        return path.is_dir() and not path.is_symlink()
    except (OSError, ValueError):  # not a valid file name
        return False


def _file_sizes(entries: Iterable[Path]) -> Iterable[int]:
    return (entry.stat().st_size for entry in entries if entry.is_file() and not entry.is_symlink())
