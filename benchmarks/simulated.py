"""A simulated trial, which sleeps in its epochs and writes the same kinds of data to MLflow as a real trial.

It does not import PyTorch: a hundred processes of simulated trials need about as much memory as ten trainings.
"""

from __future__ import annotations

import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fgst.sweep.definition import Trial
from fgst.sweep.status import TrialExit, TrialStatus
from fgst.sweep.trial import SPOOLS, TrialContext
from fgst.tracking.tags import Tags

if TYPE_CHECKING:
    from fgst.tracking.run import TrackedRun

# Sizes in bytes of the artifacts of a trial with preset tiny.
ARTIFACTS = {
    "checkpoint/model.safetensors": 150_000, "checkpoint/config.json": 2_000, "scores/test.arrow": 25_000,
    "scores/val.arrow": 10_000, "figures/confusion.png": 20_000, "figures/learning_curves.png": 30_000,
}  # fmt: skip


@dataclass(frozen=True)
class SimulatedTrial:
    """Callable with the signature of :func:`fgst.sweep.trial.run_trial`; the backend pickles it.

    Attributes:
        epoch_seconds: approximate duration of an epoch; the actual one is 0.75 to 1.25 times that, by trial.
        log_to_mlflow: whether to write runs, metrics and artifacts to MLflow.
        log_file: path of a file of JSON lines, to which the processes of all trials append one line at the begin, at
            each epoch and at the end of a trial; empty for no log.
        full_nodes: concatenated ids of the Ray nodes on which trials report a full disk after their first epoch.
    """

    epoch_seconds: float
    log_to_mlflow: bool = True
    log_file: str = ""
    full_nodes: str = ""

    def __call__(self, trial: Trial, context: TrialContext, report: Callable[[dict[str, float]], None]) -> TrialExit:
        """Run all epochs and return the trial's outcome, as a real trial would."""
        self._log(trial, 0, "begin", 0.0)
        run = self._start_run(trial, context) if self.log_to_mlflow else None
        seconds, epochs = self._epoch_seconds(trial), trial.config.train.epochs
        for epoch in range(1, epochs + 1):
            time.sleep(seconds)
            metrics = _metrics(trial, epoch, seconds)
            start = time.perf_counter()
            if run is not None:
                run.log_metrics(metrics, epoch)
                if epoch == epochs:
                    _log_artifacts(run)
                    run.finish()
            self._log(trial, epoch, "epoch", time.perf_counter() - start)
            report({"epoch": epoch, **metrics})  # raises if the trial is stopped early
            if self.full_nodes and _node_id() in self.full_nodes:
                return TrialExit.DISK_FULL
        if run is not None:
            run.set_tags({Tags.STATUS: TrialStatus.FINISHED.value})
        self._log(trial, epochs, "end", 0.0)
        return TrialExit.FINISHED

    @staticmethod
    def _start_run(trial: Trial, context: TrialContext) -> TrackedRun:
        from fgst.tracking.store import TrackingStore  # lazy: MLflow takes seconds to import
        from fgst.tracking.training import trial_tags  # lazy: MLflow takes seconds to import

        store = TrackingStore(context.tracking_uri, wait=True)
        tags = trial_tags(trial.config, "simulated", "0" * 64) | {
            Tags.KIND: "trial", Tags.LABEL: trial.label, Tags.PARAMS: json.dumps(list(trial.params)),
        }  # fmt: skip
        run = store.start(context.experiment, trial.trial_id, trial.name, tags, context.parent)
        run.enable_spool(Path(context.storage) / SPOOLS)
        run.log_params(trial.config.flat())
        run.log_dataset("simulated", "0" * 64, "nowhere")
        return run

    def _epoch_seconds(self, trial: Trial) -> float:
        return self.epoch_seconds * (0.75 + 0.5 * random.Random(trial.trial_id).random())

    def _log(self, trial: Trial, epoch: int, event: str, logging_seconds: float) -> None:
        """Append an event to the log in a single write, so that concurrent processes do not mix their lines."""
        if self.log_file:
            line = json.dumps({
                "trial_id": trial.trial_id, "event": event, "epoch": epoch, "time": time.time(),
                "logging_seconds": logging_seconds, "pid": os.getpid(), "node": _node_id(),
                "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "openmp": os.environ.get("OMP_WAIT_POLICY"),
                "torch": "torch" in sys.modules,
            })  # fmt: skip
            with open(self.log_file, "ab", buffering=0) as file:
                file.write(line.encode() + b"\n")


def _metrics(trial: Trial, epoch: int, seconds: float) -> dict[str, float]:
    """Return simulated metrics of an epoch that took ``seconds``."""
    epochs = trial.config.train.epochs
    metrics = {
        "val/top1": accuracy(trial, epoch), "train/loss": 3 - 2 * epoch / epochs, "train/top1": 50.0,
        "val/loss": 2.0, "lr": 0.1, "minutes": epoch * seconds / 60, "clips_per_second": 1000.0,
        "device_seconds": epoch * seconds, "peak_memory_gib": 0.2, "model/parameters": 1e6, "model/gflops": 0.1,
    }  # fmt: skip
    if epoch == epochs:
        metrics |= {"test/top1": accuracy(trial, epoch), "test/top5": 99.0}
    return metrics


def _log_artifacts(run: TrackedRun) -> None:
    """Log files of random bytes with the sizes in ``ARTIFACTS``."""
    with tempfile.TemporaryDirectory(prefix="fgst-simulated-") as name:
        folder = Path(name)
        for path, size in ARTIFACTS.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(os.urandom(size))
        run.log_artifacts(folder)


def _node_id() -> str:
    """Return the id of the Ray node of this process; empty without Ray."""
    import ray  # lazy: not needed without Ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def accuracy(trial: Trial, epoch: int) -> float:
    """Return the accuracy in % of a simulated learning curve, whose final value depends on the trial.

    Early epochs predict the final value roughly.
    """
    generator = random.Random(trial.trial_id)
    final, steepness = 40 + 50 * generator.random(), 1.5 + 3 * generator.random()
    noise = random.Random(f"{trial.trial_id} {epoch}").gauss(0, 1)
    return min(100.0, max(0.0, final * (1 - math.exp(-steepness * epoch / trial.config.train.epochs)) + noise))
