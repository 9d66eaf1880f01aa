"""A trial that trains nothing: it sleeps through its epochs, and writes into MLflow what a training would write.

It needs no PyTorch, so that a hundred of its processes fit where ten trainings would.
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

from fgst.sweep.definition import Trial
from fgst.sweep.status import TrialExit
from fgst.sweep.trial import SPOOLS, TrialContext
from fgst.tracking.tags import Tags

# Of a trial at preset tiny, in bytes: what it leaves among its run's artifacts.
ARTIFACTS = {
    "checkpoint/model.safetensors": 150_000, "checkpoint/config.json": 2_000, "scores/test.arrow": 25_000,
    "scores/val.arrow": 10_000, "figures/confusion.png": 20_000, "figures/learning_curves.png": 30_000,
}  # fmt: skip


@dataclass(frozen=True)
class SimulatedTrial:
    """Runs a trial, as :func:`fgst.sweep.trial.run_trial` does, in words.

    Attributes:
        seconds: that an epoch takes, about: 0.75 to 1.25 times that, by the trial.
        writes: into MLflow.
        log: a file to which each process adds a line of JSON for every begin, epoch and end of a trial.
        full: ids of nodes on which each trial finds the disk full after its first epoch.
    """

    seconds: float
    writes: bool = True
    log: str = ""
    full: str = ""

    def __call__(self, trial: Trial, context: TrialContext, report: Callable[[dict[str, float]], None]) -> TrialExit:
        self._note(trial, 0, "begin", 0.0)
        run = None
        if self.writes:
            from fgst.tracking.store import TrackingStore
            from fgst.tracking.training import trial_tags

            store = TrackingStore(context.tracking_uri, wait=True)
            tags = trial_tags(trial.config, "simulated", "0" * 64) | {
                Tags.KIND: "trial", "fgst.label": trial.label, "fgst.point": json.dumps(list(trial.params)),
            }  # fmt: skip
            run = store.start(context.experiment, trial.trial_id, trial.name, tags, context.parent)
            run.enable_spool(Path(context.storage) / SPOOLS)
            run.log_params(trial.config.flat())
            run.log_dataset("simulated", "0" * 64, "nowhere")
        pace, last = self._pace(trial), trial.config.train.epochs
        for epoch in range(1, last + 1):
            time.sleep(pace)
            metrics = {
                "val/top1": accuracy(trial, epoch), "train/loss": 3 - 2 * epoch / last, "train/top1": 50.0,
                "val/loss": 2.0, "lr": 0.1, "minutes": epoch * pace / 60, "clips_per_second": 1000.0,
                "device_seconds": epoch * pace, "peak_memory_gib": 0.2, "model/parameters": 1e6, "model/gflops": 0.1,
            }  # fmt: skip
            if epoch == last:
                metrics |= {"test/top1": accuracy(trial, epoch), "test/top5": 99.0}
            before = time.perf_counter()
            if run is not None:
                run.log_metrics(metrics, epoch)
                if epoch == last:
                    self._artifacts(run)
                    run.finish()
            self._note(trial, epoch, "epoch", time.perf_counter() - before)
            # What stops a trial early does so in here: nothing after it is run.
            report({"epoch": epoch, **metrics})
            if self.full and _node() in self.full:
                return TrialExit.DISK_FULL
        if run is not None:
            run.set_tags({Tags.STATUS: "finished"})
        self._note(trial, last, "end", 0.0)
        return TrialExit.FINISHED

    def _pace(self, trial: Trial) -> float:
        return self.seconds * (0.75 + 0.5 * random.Random(trial.trial_id).random())

    def _artifacts(self, run: object) -> None:
        with tempfile.TemporaryDirectory(prefix="fgst-simulated-") as name:
            folder = Path(name)
            for path, size in ARTIFACTS.items():
                (folder / path).parent.mkdir(exist_ok=True)
                (folder / path).write_bytes(os.urandom(size))
            run.log_artifacts(folder)  # type: ignore[attr-defined]

    def _note(self, trial: Trial, epoch: int, what: str, seconds: float) -> None:
        """In one write: lines of processes that write at once stay whole."""
        if self.log:
            line = json.dumps({
                "key": trial.trial_id, "what": what, "epoch": epoch, "at": time.time(), "writing": seconds,
                "pid": os.getpid(), "node": _node(),
                "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "openmp": os.environ.get("OMP_WAIT_POLICY"),
                "torch": "torch" in sys.modules,
            })  # fmt: skip
            with open(self.log, "ab", buffering=0) as file:
                file.write(line.encode() + b"\n")


def _node() -> str:
    """Of a cluster, on which this process is; "" without one."""
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def accuracy(trial: Trial, epoch: int) -> float:
    """A made-up learning curve in %: where it ends hangs on the trial, and early epochs foretell it roughly."""
    chance = random.Random(trial.trial_id)
    final, steepness = 40 + 50 * chance.random(), 1.5 + 3 * chance.random()
    noise = random.Random(f"{trial.trial_id} {epoch}").gauss(0, 1)
    return min(100.0, max(0.0, final * (1 - math.exp(-steepness * epoch / trial.config.train.epochs)) + noise))
