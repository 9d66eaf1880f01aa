"""A working directory in which sweeps run as complete commands, and helpers that compare their metrics."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path

import psutil
import torch
from mlflow.entities import Run

from fgst.sweep.spec import SweepSpec
from fgst.sweep.trial import TrialContext, run_trial
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags
from tests.support import small

ROOT = Path(__file__).parents[2]
TINY = [
    *("--set", "model.channels=8,8,16,16", "--set", "model.stage1_layers=2", "--set", "model.stage2_layers=2"),
    *("--set", "model.parts=3", "--set", "data.frames=8", "--set", "train.batch_size=8", "--set", "train.repeat=1"),
]
TIMEOUT = 300


class Workspace:
    """A working directory with a data set ``data`` and a tracking store ``mlflow.db``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, script: str = "focal_k") -> subprocess.Popen[str]:
        """Start a sweep in the background; :meth:`kill_all` kills its process group."""
        return self._start(str(ROOT / "sweeps" / f"{script}.py"), *arguments)

    def start_module(self, *arguments: str) -> subprocess.Popen[str]:
        """Start ``python -m`` in the background, as :meth:`start` does."""
        return self._start("-u", "-m", *arguments)

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def sweep(self, *arguments: str, script: str = "focal_k") -> subprocess.CompletedProcess[str]:
        """Run a sweep to its end."""
        process = self.start(*arguments, script=script)
        out, err = process.communicate(timeout=TIMEOUT)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def module(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``python -m`` with the given arguments."""
        return subprocess.run(
            [sys.executable, "-m", *arguments], cwd=self.folder, capture_output=True, text=True, timeout=TIMEOUT
        )

    @cached_property
    def store(self) -> TrackingStore:
        """The tracking store; assign another one for sweeps that use a server."""
        return TrackingStore(str(self.folder / "mlflow.db"))

    def sweeps(self) -> list[Run]:
        """All sweeps' runs, the newest first."""
        store = self.store
        experiments = [e.experiment_id for e in store.client.search_experiments()]
        return list(store.client.search_runs(experiments, "tags.`fgst.kind` = 'sweep'"))

    def trainings(self) -> list[Run]:
        """The runs of all trainings, of sweeps and others."""
        store = self.store
        experiments = [e.experiment_id for e in store.client.search_experiments()]
        return list(store.client.search_runs(experiments, "tags.`fgst.kind` = 'trial'"))

    def wait_for_first_epoch(self, process: subprocess.Popen[str]) -> str:
        """Wait until a trial of a sweep has logged an epoch; return the sweep's run id."""
        return self.wait_for_epoch(process, 1, trials=1)

    def wait_for_epoch(self, process: subprocess.Popen[str], epoch: int, trials: int = 2) -> str:
        """Wait until some trials of a sweep have logged that epoch; return the sweep's run id."""
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            assert process.poll() is None, process.communicate()
            for run in self.sweeps():
                children = self.store.children(run.info.run_id)
                if sum("train/loss" in c.data.metrics and self.epochs(c) >= epoch for c in children) >= trials:
                    return run.info.run_id
            time.sleep(0.5)
        raise AssertionError(f"{trials} trials did not log epoch {epoch} within {TIMEOUT} seconds")

    def epochs(self, run: Run) -> int:
        """Number of epochs that a trial has logged."""
        return len(self.store.client.get_metric_history(run.info.run_id, "train/loss"))

    def workers(self, process: subprocess.Popen[str]) -> list[psutil.Process]:
        """The worker processes of a sweep that is running on Ray."""
        children = psutil.Process(process.pid).children(recursive=True)
        return [c for c in children if c.name().startswith("ray::") and "Trainable" in c.name()]

    def kill_all(self) -> None:
        """Kill all sweeps that were started here, with their child processes."""
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)  # the process group includes Ray's processes
            except ProcessLookupError:
                continue


def metrics_by_trial(runs: list[Run]) -> dict[str, dict[str, float]]:
    """The metrics of each run by trial id, without timings; an interruption must not change them."""
    return {
        r.data.tags[Tags.TRIAL_ID]: {m: v for m, v in r.data.metrics.items() if m not in small.TIMINGS} for r in runs
    }


def uninterrupted_metrics(workspace: Workspace, sweep: str) -> dict[str, dict[str, float]]:
    """The metrics of a sweep's trials if they are trained in this process, without Ray and without interruption."""
    torch.set_num_threads(1)
    with workspace.store.artifacts(sweep, "sweep.json") as file:
        trials = SweepSpec.from_json(file.read_text()).trials
    experiment = workspace.store.experiment("uninterrupted")
    parent = workspace.store.start(experiment, "uninterrupted", "uninterrupted", {}).run_id
    (workspace.folder / "storage").mkdir(exist_ok=True)
    context = TrialContext(workspace.store.uri, experiment, parent, str(workspace.folder / "storage"), 1)
    assert [run_trial(trial, context) for trial in trials] == ["finished"] * len(trials)
    return metrics_by_trial(workspace.store.children(parent))
