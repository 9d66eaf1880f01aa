"""The runner: learning curves of the report, the order in which a sweep ends, and resumption."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fgst.sweep.backends.local import LocalBackend
from fgst.sweep.callbacks import MlflowReport
from fgst.sweep.opening import create_sweep, load_sweep
from fgst.sweep.results import SweepResult, TrialResult
from fgst.sweep.runner import SweepCallback, SweepRunner
from fgst.sweep.scheduler import TrialUpdate
from fgst.sweep.status import StopReason, SweepStatus, TrialStatus
from fgst.sweep.stopping import Budget
from fgst.tracking.run import TrackedRun
from fgst.tracking.store import TrackingStore
from tests.support import small
from tests.support.definitions import FOCAL_K, build_sweep


@pytest.fixture
def runner(tmp_path: Path, tracking_uri: str) -> SweepRunner:
    torch.set_num_threads(1)
    dataset = small.write_small(tmp_path / "data")
    spec, factory = build_sweep(FOCAL_K, dataset, small.small_config(dataset, train__epochs=2), values=[2, 4])
    return create_sweep(spec, factory, TrackingStore(tracking_uri), storage_location=str(tmp_path / "storage"))


@pytest.mark.parametrize("first_epoch", [1, 2, 4])
def test_report_reads_only_incomplete_curves_from_the_store(
    runner: SweepRunner, first_epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = runner.spec.trials[0]
    run = runner.store.start(runner.experiment, trial.trial_id, trial.name, {}, runner.sweep_id)
    report = MlflowReport(["python", "sweeps/focal_k.py", "--resume", runner.sweep_id])
    for epoch in (1, 2, 3):
        metrics = {"val/top1": 10.0 * epoch, "train/loss": 3.0 - epoch}
        run.log_metrics(metrics, epoch)
        if epoch >= first_epoch:  # an earlier call of the sweep received the others
            report.on_update(TrialUpdate(trial, TrialStatus.RUNNING, {"epoch": float(epoch), **metrics}))
    requested: list[str] = []
    read = runner.store.client.get_metric_history

    def record(run_id: str, metric: str) -> Any:
        requested.append(metric)
        return read(run_id, metric)

    monkeypatch.setattr(runner.store.client, "get_metric_history", record)
    last = runner.store.run(run.run_id).data.metrics
    result = TrialResult(trial.trial_id, trial.label, 0, dict(trial.params), run.run_id, TrialStatus.FINISHED, last)
    curves = report.curves_of(result, runner.store)
    assert curves == {"val/top1": {1: 10.0, 2: 20.0, 3: 30.0}, "train/loss": {1: 2.0, 2: 1.0, 3: 0.0}}
    assert requested == ([] if first_epoch == 1 else ["val/top1", "train/loss"])


class FailingPrinter(SweepCallback):
    """A callback that fails like printing to a closed terminal."""

    def on_end(self, runner: SweepRunner, result: SweepResult) -> None:
        raise BrokenPipeError


def test_status_and_report_are_saved_before_printing(runner: SweepRunner) -> None:
    report = MlflowReport(["python", "sweeps/focal_k.py", "--resume", runner.sweep_id])
    with pytest.raises(BrokenPipeError):
        runner.run(LocalBackend(1), callbacks=[report, FailingPrinter()])
    assert runner.store.run(runner.sweep_id).info.status == "FINISHED"
    with runner.store.artifacts(runner.sweep_id, "report.html") as file:
        assert FOCAL_K.title in file.read_text()


def test_resume_completes_a_sweep_that_a_limit_stopped(runner: SweepRunner) -> None:
    result = runner.run(LocalBackend(1), Budget(max_trials=1))
    assert (result.status, result.stop_reason, result.remaining) == (SweepStatus.STOPPED, StopReason.MAX_TRIALS, 1)
    assert [trial.status for trial in result.trials] == [TrialStatus.FINISHED]
    assert runner.tags()["fgst.stopped"] == "--max-trials 1"
    resumed = load_sweep(FOCAL_K, runner.sweep_id, runner.store)
    result = resumed.run(LocalBackend(1))
    assert (result.status, result.stop_reason, result.remaining) == (SweepStatus.COMPLETED, None, 0)
    assert [trial.label for trial in result.trials] == ["K=2", "K=4"]
    assert "fgst.stopped" not in resumed.tags()
    assert not Path(runner.storage_location).exists()


def test_interruption_while_a_sweep_is_created_does_not_leave_it_running(
    runner: SweepRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: TrackedRun, params: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrackedRun, "log_params", interrupt)
    with pytest.raises(KeyboardInterrupt):
        create_sweep(runner.spec, runner.factory, runner.store, storage_location=runner.storage_location)
    statuses = {run.info.run_id: run.info.status for run in runner.store.runs([runner.experiment])}
    del statuses[runner.sweep_id]
    assert list(statuses.values()) == ["KILLED"]


class InterruptAfterOneEpoch(SweepCallback):
    """Ctrl-C while the first trial trains."""

    def on_update(self, update: TrialUpdate) -> None:
        raise KeyboardInterrupt


def test_started_trial_resumes_on_a_moved_data_set(runner: SweepRunner, tmp_path: Path) -> None:
    result = runner.run(LocalBackend(1), callbacks=[InterruptAfterOneEpoch()])
    assert result.status is SweepStatus.INTERRUPTED
    shutil.move(tmp_path / "data", tmp_path / "moved")
    resumed = load_sweep(FOCAL_K, runner.sweep_id, runner.store, location=str(tmp_path / "moved"))
    assert [trial.status for trial in resumed.run(LocalBackend(1)).trials] == [TrialStatus.FINISHED] * 2
