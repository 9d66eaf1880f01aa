"""One trial of a sweep, in a process of its own: begin it, or go on with it.

A trial keeps its checkpoint in the sweep's storage and writes into the MLflow run that carries its key, and both are
found again by that key. So it may be killed and started again at any moment, by anybody: it goes on where it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fgst.sweep.spec import Trial


@dataclass(frozen=True)
class TrialContext:
    """Where a trial belongs: its store, its sweep's run, and the folder (shared by all nodes) for its checkpoint."""

    tracking_uri: str
    experiment: str
    parent: str
    storage: str
    threads: int | None


def run_trial(
    trial: Trial, context: TrialContext, report: Callable[[dict[str, float]], None] = lambda metrics: None
) -> str:
    """Train ``trial`` to its end, telling ``report`` the metrics of each epoch; returns its MLflow status.

    A training that fails by itself (bad data, a loss that is no number, memory) is FAILED in MLflow with its
    reason, and the sweep goes on: to start it again would only fail again. What kills the process is another matter,
    and left to whoever started it.
    """
    import torch

    from fgst.dataset import ArrowDataset
    from fgst.tracking import Tracking, track, trial_tags
    from fgst.training import fit

    if context.threads:
        torch.set_num_threads(context.threads)
    store = Tracking(context.tracking_uri)
    before = store.find(context.experiment, trial.key, context.parent)
    if before is not None and before.info.status == "FINISHED":
        return "FINISHED"  # the process died between its last word and its end
    checkpoints = Path(context.storage) / trial.key
    config = trial.config
    tags: dict[str, str] = {"fgst.label": trial.label, "mlflow.source.name": f"sweep {context.parent[:8]}"}
    run = None
    try:
        dataset = ArrowDataset(config.data.dataset)
        tags |= trial_tags(config, dataset.name, dataset.digest)
        run = store.start(context.experiment, trial.key, trial.name, tags, context.parent)
        run.log_params(config.flat())
        for result in track(run, fit(config, dataset=dataset, checkpoints=checkpoints), dataset.classes):
            report({"epoch": result.epoch, **result.metrics})
    except Exception as error:
        if run is None:  # it did not come as far as opening its run
            run = store.start(context.experiment, trial.key, trial.name, tags, context.parent)
            run.finish("FAILED", f"{type(error).__name__}: {error}")
        return "FAILED"
    shutil.rmtree(checkpoints, ignore_errors=True)  # the model is among the run's artifacts now
    return "FINISHED"
