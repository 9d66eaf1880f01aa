"""Disk that nobody needs any more: weights of trials that were beaten, folders that finished sweeps left behind.

What may go is decided by what is known, and whatever is not known stays. A trial keeps its weights if it is the best
of its sweep, if any other run names it (an ensemble its members, a sweep its best or what it took over), if a version
of a registered model needs it, or if its sweep may still go on. Of the others the scores, figures, metrics and
``checkpoint/config.json`` stay, so that a table can be made again and ``--from-run`` still finds the settings.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgst.errors import InputError
from fgst.tracking.store import TrackedRun, TrackingStore
from fgst.tracking.tags import Tags

CHECKPOINT, CARD = "checkpoint", "config.json"
_RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Leftover:
    """Something that may go.

    Attributes:
        what: "weights" of a trial, or "folder" of a sweep.
        run_id: of that trial or sweep; ``sweep`` is the sweep's.
        place: the folder on this machine; ``None`` where it lies elsewhere, and cannot be deleted from here.
        store: what kind of place that is: "file", "mlflow-artifacts", "s3" …
    """

    what: str
    run_id: str
    sweep: str
    name: str
    bytes: int
    place: Path | None
    store: str = "file"


@dataclass
class Found:
    """What may go, and how many trials keep their weights for which reason."""

    leftovers: list[Leftover] = field(default_factory=list)
    kept: Counter[str] = field(default_factory=Counter)


def find(store: TrackingStore, experiments: Iterable[str] | None = None) -> Found:
    """Look through a tracking store; changes nothing.

    Args:
        experiments: ids of those to look into; runs of all others still count as naming what they name.
    """
    known = list(store.experiments())
    wanted = set(known if experiments is None else experiments)
    runs = store.runs(known)
    needed = _needed(store, runs)
    trials: dict[str, list[Any]] = {}
    for run in runs:
        if run.data.tags.get(Tags.KIND) == "trial" and Tags.PARENT in run.data.tags:
            trials.setdefault(run.data.tags[Tags.PARENT], []).append(run)
    found = Found()
    for sweep in runs:
        if sweep.data.tags.get(Tags.KIND) != "sweep" or sweep.info.experiment_id not in wanted:
            continue
        mine = trials.get(sweep.info.run_id, [])
        reason = _open(sweep, mine)
        if reason:
            found.kept[reason] += len(mine)
            continue
        found.leftovers += _folder(sweep)
        reason = _undecided(store, sweep)
        if reason:
            found.kept[reason] += len(mine)
            continue
        best = {sweep.data.tags[Tags.BEST_RUN], *_best_by_validation(mine)}
        for trial in mine:
            if trial.info.run_id in best:
                found.kept["best of its sweep"] += 1
            elif trial.info.run_id in needed:
                found.kept[needed[trial.info.run_id]] += 1
            elif Tags.WEIGHTS_REMOVED not in trial.data.tags:
                found.leftovers += _weights(store, trial, sweep.info.run_id)
    return found


def remove(store: TrackingStore, leftover: Leftover) -> None:
    """Delete one, if nothing has changed since it was found.

    Raises:
        InputError: saying why it stays.
    """
    if leftover.place is None:
        raise InputError(f"lies in a store of kind {leftover.store}, which this command cannot delete from")
    sweep = store.run(leftover.sweep)
    # Somebody may have resumed the sweep, or made this trial its best, or a model of it, while the list was read.
    if sweep.info.status != "FINISHED" or sweep.data.tags.get(Tags.BEST_RUN) == leftover.run_id:
        raise InputError("its sweep has gone on since")
    if leftover.run_id in store.registered_runs():
        raise InputError("it has been registered since")
    try:
        if leftover.what == "folder":
            shutil.rmtree(leftover.place)
            return
        # First the mark: a trial that is marked and has its weights costs disk, the other way round it misleads.
        TrackedRun(store, leftover.run_id).set_tags({Tags.WEIGHTS_REMOVED: "true"})
        for entry in leftover.place.iterdir():
            if entry.name != CARD and entry.is_file() and not entry.is_symlink():
                entry.unlink()
    except OSError as error:
        raise InputError(f"cannot be deleted ({error.strerror})") from None


def _needed(store: TrackingStore, runs: Iterable[Any]) -> dict[str, str]:
    """Runs that something else needs, and what: ids among the tags of any other run, and behind registered models."""
    needed: dict[str, str] = {}
    for run in runs:
        kind = run.data.tags.get(Tags.KIND, "run")
        what = "member of an ensemble" if kind == "ensemble" else f"named by another {kind}"
        for run_id in _names(run):
            if run_id != run.info.run_id:
                needed.setdefault(run_id, what)
    for run_id in store.registered_runs():
        needed[run_id] = "of a registered model"
        try:
            registered = store.run(run_id)
        except InputError:
            continue  # removed for good: it names nobody any more
        needed |= dict.fromkeys(_names(registered), "of a registered model")
    return needed


def _names(run: Any) -> list[str]:
    # A trial names its sweep, and that is no need of the sweep's for anything.
    tags = run.data.tags.items()
    return [value for tag, value in tags if tag.startswith("fgst.") and _RUN_ID.fullmatch(value)]


def _open(sweep: Any, trials: Iterable[Any]) -> str:
    """Why nothing of a sweep may go, folder or weights; "" if it is over."""
    if sweep.info.status == "RUNNING":
        return "sweep is running"
    if sweep.info.status != "FINISHED" or Tags.STOP_REASON in sweep.data.tags:
        return "sweep can be resumed"
    if any(t.info.status == "RUNNING" or t.data.tags.get(Tags.STATUS) == "interrupted" for t in trials):
        return "sweep can be resumed"
    return ""


def _undecided(store: TrackingStore, sweep: Any) -> str:
    """Why no trial of a sweep counts as beaten; "" if the best was chosen, by one figure, on validation clips."""
    if not _RUN_ID.fullmatch(sweep.data.tags.get(Tags.BEST_RUN, "")) or "val/top1" not in sweep.data.metrics:
        return "nothing was held out to choose by"
    try:
        with store.artifacts(sweep.info.run_id, "sweep.json") as file:
            objectives = json.loads(file.read_bytes())["objectives"]
    except (InputError, OSError, KeyError, TypeError, ValueError, RecursionError):
        return "sweep does not say what it looked for"
    return "" if len(objectives) == 1 else "of a trade-off between two objectives"


def _best_by_validation(trials: Iterable[Any]) -> list[str]:
    """With several seeds the best trial is of the configuration with the best mean; the best single one stays, too."""
    scored = [(t.data.metrics.get("val/top1", math.nan), t.info.run_id) for t in trials]
    scored = [(top1, run_id) for top1, run_id in scored if math.isfinite(top1)]
    best = max((top1 for top1, _ in scored), default=0.0)
    return [run_id for top1, run_id in scored if top1 == best]


def _weights(store: TrackingStore, trial: Any, sweep: str) -> list[Leftover]:
    if trial.info.status == "RUNNING":
        return []
    run_id, name = trial.info.run_id, str(trial.info.run_name)
    artifacts = store.local_artifacts(trial)
    if artifacts is None:
        sizes = store.artifact_sizes(run_id, CHECKPOINT)
        size = sum(count for file, count in sizes.items() if file != CARD)
        kind = str(trial.info.artifact_uri).partition(":")[0]
        return [Leftover("weights", run_id, sweep, name, size, None, kind)] if size else []
    folder = artifacts / CHECKPOINT
    # Whatever a store says of where a run lies: its own folder, by its id, and no link to somebody else's.
    if run_id not in artifacts.parts or ".." in artifacts.parts or not _is_folder(folder):
        return []
    size = sum(_sizes(entry for entry in folder.iterdir() if entry.name != CARD))
    return [Leftover("weights", run_id, sweep, name, size, folder)] if size else []


def _folder(sweep: Any) -> list[Leftover]:
    run_id = sweep.info.run_id
    folder = Path(sweep.data.tags.get(Tags.STORAGE, ""))
    # A tag is text that anyone can write: only a folder that bears the sweep's own id is the sweep's.
    if not folder.is_absolute() or folder.name != run_id or ".." in folder.parts or not _is_folder(folder):
        return []
    size = sum(_sizes(folder.rglob("*")))
    return [Leftover("folder", run_id, run_id, str(sweep.info.run_name), size, folder)]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir() and not path.is_symlink()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _sizes(entries: Iterable[Path]) -> Iterable[int]:
    return (entry.stat().st_size for entry in entries if entry.is_file() and not entry.is_symlink())
