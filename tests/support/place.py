"""A directory in which whole sweeps are run as a user runs them, and what is compared afterwards."""

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


class Place:
    """A working directory with a data set and a tracking store, in which sweeps are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, script: str = "focal_k") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "sweeps" / f"{script}.py"), *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def sweep(self, *arguments: str, script: str = "focal_k") -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, script=script)
        out, err = process.communicate(timeout=TIMEOUT)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def module(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *arguments], cwd=self.folder, capture_output=True, text=True, timeout=TIMEOUT
        )

    @cached_property
    def store(self) -> TrackingStore:
        return TrackingStore(f"sqlite:///{self.folder}/mlflow.db")

    def sweeps(self) -> list[Run]:
        store = self.store
        experiments = [e.experiment_id for e in store.client.search_experiments()]
        return list(store.client.search_runs(experiments, "tags.`fgst.kind` = 'sweep'"))

    def wait_for_epoch(self, process: subprocess.Popen[str], epoch: int) -> str:
        """The sweep's run id, once two of its trials have logged that epoch."""
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            assert process.poll() is None, process.communicate()
            for run in self.sweeps():
                children = self.store.children(run.info.run_id)
                if sum("train/loss" in c.data.metrics and self.epochs(c) >= epoch for c in children) >= 2:
                    return run.info.run_id
            time.sleep(0.5)
        raise AssertionError("no trial came that far")

    def epochs(self, run: Run) -> int:
        return len(self.store.client.get_metric_history(run.info.run_id, "train/loss"))

    def workers(self, process: subprocess.Popen[str]) -> list[psutil.Process]:
        """The processes that train."""
        children = psutil.Process(process.pid).children(recursive=True)
        return [c for c in children if c.name().startswith("ray::") and "Trainable" in c.name()]

    def end(self) -> None:
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)  # its whole session: Ray's processes too
            except ProcessLookupError:
                continue


def figures(runs: list[Run]) -> dict[str, dict[str, float]]:
    """What must not depend on interruptions: every metric but times, by trial key."""
    return {
        r.data.tags[Tags.TRIAL_ID]: {m: v for m, v in r.data.metrics.items() if m not in small.TIMINGS} for r in runs
    }


def undisturbed(place: Place, sweep: str) -> dict[str, dict[str, float]]:
    """The figures of the same trials, trained here without Ray and without a pause."""
    torch.set_num_threads(1)
    with place.store.artifacts(sweep, "sweep.json") as file:
        trials = SweepSpec.from_json(file.read_text()).trials
    experiment = place.store.experiment("undisturbed")
    parent = place.store.start(experiment, "undisturbed", "undisturbed", {}).run_id
    (place.folder / "storage").mkdir(exist_ok=True)
    context = TrialContext(place.store.uri, experiment, parent, str(place.folder / "storage"), 1)
    assert [run_trial(trial, context) for trial in trials] == ["finished"] * len(trials)
    return figures(place.store.children(parent))
