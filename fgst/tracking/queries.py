"""Overviews of the runs in a tracking store, as JSON values. Runs are ranked by validation accuracy only."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from fgst.config import TrialConfig
from fgst.errors import InputError
from fgst.result_setting import ResultSetting
from fgst.tracking.gc import Garbage, delete_garbage, find_garbage
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags

if TYPE_CHECKING:
    from mlflow.entities import Run

_SECTIONS = ("model.", "data.", "train.")
_STATUS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted", "RUNNING": "running"}


def summarize_run(run: Run) -> dict[str, Any]:
    """Summarize a run.

    Returns:
        ``run_id``, ``kind`` (sweep, trial or ensemble), ``experiment_id``, ``name``, ``ending`` (its status; for a
        trial, the more precise one that the sweep recorded), ``val_top1`` and ``test_top1`` in % or ``None``,
        ``minutes``, and ``age_seconds`` since its start.
    """
    start, end = run.info.start_time or 0, run.info.end_time or time.time() * 1000
    kind = run.data.tags.get(Tags.KIND, "trial")
    status = _STATUS.get(run.info.status, str(run.info.status).lower())
    return {
        "run_id": run.info.run_id,
        "kind": kind,
        "experiment_id": run.info.experiment_id,
        "name": str(run.info.run_name or ""),
        "ending": run.data.tags.get(Tags.STATUS, status) if kind == "trial" else status,
        "val_top1": finite_or_none(run.data.metrics.get("val/top1")),
        "test_top1": finite_or_none(run.data.metrics.get("test/top1")),
        "minutes": finite_or_none(run.data.metrics.get("minutes", max(0.0, end - start) / 60_000)),
        "age_seconds": max(0.0, time.time() - start / 1000),
    }


def setting_of(run: Run, by_id: Mapping[str, Run] | None = None) -> ResultSetting:
    """What a run's results were obtained with; "-" for what it did not record.

    Args:
        run: a training, a sweep or an ensemble.
        by_id: other runs, for the settings of an ensemble's networks.
    """
    tags, params = run.data.tags, run.data.params
    members = {tag.removeprefix(Tags.MEMBER): run_id for tag, run_id in tags.items() if tag.startswith(Tags.MEMBER)}
    source = next((by_id[run_id] for run_id in members.values() if run_id in by_id), run) if by_id else run
    data = " ".join(tags[tag] for tag in (Tags.DATASET, Tags.BENCHMARK) if tag in tags) or "-"
    modality = " + ".join(members) or params.get("modality", "-")
    unknown = ResultSetting(
        data, tags.get(Tags.PROTOCOL, "-"), modality, params.get("preset", "-"), params.get("passes", "-"),
        params.get("seeds", "-"),
    )  # fmt: skip
    fields = {name: value for name, value in source.data.params.items() if name.startswith(_SECTIONS)}
    if "model.channels" not in fields or "train.epochs" not in fields:
        return unknown
    try:
        setting = ResultSetting.of(TrialConfig.from_flat(fields), data, params.get("seeds", "1"))
    except InputError:  # of a version with other settings
        return unknown
    return replace(setting, modality=" + ".join(members) or setting.modality)


def list_runs(store: TrackingStore, experiment: str | None, limit: int) -> dict[str, Any]:
    """List sweeps, and trainings that belong to no sweep, newest first.

    Args:
        store: the tracking store.
        experiment: the experiment's name; ``None`` for all.
        limit: maximum number of runs.

    Returns:
        ``runs``, each with its ``setting`` (see :class:`~fgst.result_setting.ResultSetting`), and ``more``, the number
        of older ones. A sweep has ``trials``, their number by status; until the
        sweep has metrics, it shows those of its best trial so far.

    Raises:
        InputError: if there is no such experiment.
    """
    names = _select_experiments(store, experiment)
    children: dict[str, list[dict[str, Any]]] = {}
    rows, runs = [], store.runs(list(names))
    by_id = {run.info.run_id: run for run in runs}
    for run in runs:
        if Tags.PARENT in run.data.tags:
            children.setdefault(run.data.tags[Tags.PARENT], []).append(summarize_run(run))
        else:
            rows.append(summarize_run(run))
    for row in rows:
        row["experiment"] = names[row["experiment_id"]]
        trials = [child for child in children.get(row["run_id"], []) if child["kind"] == "trial"]
        if row["kind"] == "sweep":
            row["trials"] = dict(sorted(Counter(trial["ending"] for trial in trials).items()))
            finished = [t for t in trials if t["ending"] == "finished" and t["val_top1"] is not None]
            if row["val_top1"] is None and finished:
                best = max(finished, key=lambda trial: trial["val_top1"])
                row |= {"val_top1": best["val_top1"], "test_top1": best["test_top1"]}
    shown = [row | {"setting": asdict(setting_of(by_id[row["run_id"]], by_id))} for row in rows[:limit]]
    return {"runs": shown, "more": max(0, len(rows) - limit)}


def list_trials(store: TrackingStore, sweep: str) -> dict[str, Any]:
    """List the children of a sweep in the order in which they were started.

    Args:
        store: the tracking store.
        sweep: the sweep's run id.

    Returns:
        ``sweep`` (run id), ``name``, ``runs`` (each with ``best`` and ``setting``), and ``more``, which is 0.
    """
    run = store.run(sweep)
    experiment_id = run.info.experiment_id
    experiment = store.experiments().get(experiment_id, "")
    children = store.runs([experiment_id], f"tags.`{Tags.PARENT}` = '{sweep}'")
    best = run.data.tags.get(Tags.BEST_RUN)
    by_id = {child.info.run_id: child for child in children}
    rows = [
        summarize_run(child)
        | {"experiment": experiment, "best": child.info.run_id == best, "setting": asdict(setting_of(child, by_id))}
        for child in reversed(children)
    ]
    return {"sweep": sweep, "name": str(run.info.run_name or ""), "runs": rows, "more": 0}


def best_runs(store: TrackingStore, experiment: str | None, limit: int) -> dict[str, Any]:
    """Find the best finished trainings and ensembles by validation top-1.

    Args:
        store: the tracking store.
        experiment: the experiment's name; ``None`` for all.
        limit: maximum number of runs per group.

    Returns:
        ``groups``: one per experiment and set of validation clips, because accuracies on different clips cannot be
        compared. Each has ``experiment``, ``validation`` (which clips), ``candidates`` (number of runs) and ``runs``,
        best first. ``settings`` of a run are those in which the listed trainings differ; ``setting`` is what its
        result was obtained with.

    Raises:
        InputError: if there is no such experiment.
    """
    groups = []
    for experiment_id, name in sorted(_select_experiments(store, experiment).items(), key=lambda item: item[1]):
        runs = store.runs([experiment_id])
        by_id = {run.info.run_id: run for run in runs}
        candidates: dict[str, list[tuple[dict[str, Any], Run]]] = {}
        for run in runs:
            row = summarize_run(run)
            if row["kind"] != "sweep" and row["ending"] == "finished" and row["val_top1"] is not None:
                candidates.setdefault(_validation_clips(run, by_id), []).append((row, run))
        for validation, pairs in sorted(candidates.items()):
            pairs.sort(key=lambda pair: -pair[0]["val_top1"])
            top = pairs[:limit]
            params = _differing_params([run.data.params for row, run in top if row["kind"] == "trial"])
            rows = [
                row
                | {"settings": {param: run.data.params[param] for param in params if param in run.data.params}}
                | {"setting": asdict(setting_of(run, by_id))}
                for row, run in top
            ]
            groups.append({"experiment": name, "validation": validation, "candidates": len(pairs), "runs": rows})
    return {"groups": groups}


def compare_runs(store: TrackingStore, run_ids: Sequence[str]) -> dict[str, Any]:
    """Compare runs.

    Returns:
        ``runs``, each with its ``setting``; ``same_clips``: whether all are evaluated on the same test clips, so that
        their accuracies can be compared; ``parameters`` that differ, by name; and ``metrics`` (last values), by name.
        The values are lists in the order of the runs.

    Raises:
        InputError: if there are fewer than two runs, if one is named twice, or if one does not exist.
    """
    if len(run_ids) < 2:
        raise InputError("compare needs two runs or more")
    run_ids = [store.full_run_id(run_id) for run_id in run_ids]
    if len(set(run_ids)) < len(run_ids):
        raise InputError("compare: the same run is named twice")
    runs = [store.run(run_id) for run_id in run_ids]
    members = {run_id for run in runs for tag, run_id in run.data.tags.items() if tag.startswith(Tags.MEMBER)}
    by_id = {run_id: store.run(run_id) for run_id in members}
    params = [run.data.params for run in runs]
    metrics = [run.data.metrics for run in runs]
    names = {name for values in metrics for name in values if not name.startswith("system/")}
    return {
        "runs": [summarize_run(run) | {"setting": asdict(setting_of(run, by_id))} for run in runs],
        "same_clips": len({(run.data.tags.get(Tags.DATASET_DIGEST), run.info.experiment_id) for run in runs}) == 1,
        "parameters": {name: [values.get(name) for values in params] for name in _differing_params(params)},
        "metrics": {name: [finite_or_none(values.get(name)) for values in metrics] for name in sorted(names)},
    }


def collect_garbage(store: TrackingStore, experiment: str | None, *, delete: bool) -> dict[str, Any]:
    """Find garbage (see :mod:`fgst.tracking.gc`), and delete it on request.

    Args:
        store: the tracking store.
        experiment: the experiment's name; ``None`` for all.
        delete: delete it; otherwise only list it.

    Returns:
        ``delete``; ``found``: rows with ``what``, ``run_id``, ``sweep``, ``name``, ``bytes``, ``place`` (a folder or
        ``None``), ``store`` (kind of storage), ``removed``, and ``fault`` if deleting failed; ``kept``: number of
        trials by the reason for which they keep their weights; ``bytes``, ``removed_bytes``, and ``elsewhere_bytes``,
        which cannot be deleted from this machine.

    Raises:
        InputError: if there is no such experiment.
    """
    report = find_garbage(store, _select_experiments(store, experiment))
    rows = []
    for garbage in report.garbage:
        row = _garbage_row(garbage)
        if delete and garbage.path is not None:
            try:
                delete_garbage(store, garbage)
                row["removed"] = True
            except InputError as error:
                row["fault"] = str(error)
        rows.append(row)
    return {
        "delete": delete,
        "found": rows,
        "kept": dict(sorted(report.retained.items())),
        "bytes": sum(row["bytes"] for row in rows),
        "removed_bytes": sum(row["bytes"] for row in rows if row["removed"]),
        "elsewhere_bytes": sum(row["bytes"] for row in rows if row["place"] is None),
    }


def _garbage_row(garbage: Garbage) -> dict[str, Any]:
    return {
        "what": garbage.kind,
        "run_id": garbage.run_id,
        "sweep": garbage.sweep,
        "name": garbage.name,
        "bytes": garbage.bytes,
        "place": None if garbage.path is None else str(garbage.path),
        "store": garbage.storage,
        "removed": False,
    }


def _select_experiments(store: TrackingStore, name: str | None) -> dict[str, str]:
    """Names by id of all experiments, or of the one with this name."""
    names = store.experiments()
    selected = {experiment_id: known for experiment_id, known in names.items() if name in (None, known)}
    if name is not None and not selected:
        existing = ", ".join(sorted(names.values())) or "none"
        raise InputError(f"--experiment {name}: there is no such experiment; existing: {existing}")
    return selected


def _validation_clips(run: Run, by_id: Mapping[str, Run]) -> str:
    """Describe the validation clips of a run; those of an ensemble are its members'."""
    members = [run_id for tag, run_id in sorted(run.data.tags.items()) if tag.startswith(Tags.MEMBER)]
    source = by_id.get(members[0], run) if members else run
    params, digest = source.data.params, run.data.tags.get(Tags.DATASET_DIGEST, "")
    share, folds = params.get("data.validation", "?"), params.get("data.folds", "0")
    part = share if folds == "0" else f"fold {params.get('data.fold', '?')} of {folds}"
    by = params.get("data.validation_by", "subject")  # what versions without the setting held out
    return f"{part} by {by}, seed {params.get('data.validation_seed', '?')}, of {digest[:8]}"


def _differing_params(params: Sequence[Mapping[str, str]]) -> list[str]:
    names = sorted({name for values in params for name in values})
    return [name for name in names if len({values.get(name) for values in params}) > 1]


def finite_or_none(value: float | None) -> float | None:
    """Return a finite value unchanged, and ``None`` for infinity and NaN, which JSON does not have."""
    return value if value is not None and math.isfinite(value) else None
