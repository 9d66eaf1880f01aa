"""Runs and experiments that are deleted in MLflow while a sweep runs, or before it is resumed."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
import torch

from fgst.errors import DeletedInMlflow
from fgst.sweep.backends.local import LocalBackend
from fgst.sweep.callbacks import MlflowReport
from fgst.sweep.opening import create_sweep, load_sweep
from fgst.sweep.runner import SweepCallback, SweepRunner
from fgst.sweep.scheduler import TrialUpdate
from fgst.sweep.status import StopReason, SweepStatus, TrialStatus
from fgst.sweep.stopping import Budget
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags
from tests.support import small
from tests.support.definitions import FOCAL_K, build_sweep
from tests.support.workspace import TINY, Workspace


@pytest.fixture
def runner(tmp_path: Path, tracking_uri: str) -> SweepRunner:
    torch.set_num_threads(1)
    dataset = small.write_small(tmp_path / "data")
    spec, factory = build_sweep(FOCAL_K, dataset, small.small_config(dataset, train__epochs=3), values=[2, 4, 6])
    return create_sweep(spec, factory, TrackingStore(tracking_uri), storage_location=str(tmp_path / "storage"))


class DeleteDuringTraining(SweepCallback):
    """Deletes something, as the MLflow UI does, after the second trial's first epoch."""

    def __init__(self, what: str) -> None:
        self.what, self.done = what, False

    def on_training_start(self, runner: SweepRunner, num_finished: int) -> None:
        self.runner = runner

    def on_update(self, update: TrialUpdate) -> None:
        runner = self.runner
        if self.done or update.trial != runner.spec.trials[1]:
            return
        self.done = True
        client = mlflow.MlflowClient(runner.store.connection.uri)
        if self.what == "experiment":
            client.delete_experiment(runner.experiment)
        elif self.what == "sweep":
            client.delete_run(runner.sweep_id)
        else:
            [run] = [r for r in runner.store.children(runner.sweep_id) if r.info.status == "RUNNING"]
            client.delete_run(run.info.run_id)


def resume(runner: SweepRunner) -> SweepRunner:
    return load_sweep(FOCAL_K, runner.sweep_id, runner.store)


def test_trial_deleted_while_it_trains_is_named_and_the_others_go_on(runner: SweepRunner) -> None:
    result = runner.run(LocalBackend(1), callbacks=[DeleteDuringTraining("trial")])
    assert result.status is SweepStatus.COMPLETED
    assert [(trial.label, trial.status) for trial in result.trials] == [
        ("K=2", TrialStatus.FINISHED),
        ("K=6", TrialStatus.FINISHED),
    ]
    [(label, message)] = result.deleted
    assert label == "K=4 s0"
    [deleted] = runner.store.children(runner.sweep_id, deleted=True)
    assert f"run {deleted.info.run_id} (K=4 joint s0) was deleted in MLflow; restore it with: " in message
    assert message.endswith(f"mlflow runs restore --run-id {deleted.info.run_id}")
    # Restored, it resumes from its checkpoint, which was kept.
    runner.store.client.restore_run(deleted.info.run_id)
    result = resume(runner).run(LocalBackend(1))
    assert [trial.status for trial in result.trials] == [TrialStatus.FINISHED] * 3
    assert deleted.info.run_id in {trial.run_id for trial in result.trials}
    assert sorted(runner.store.metric_history(deleted.info.run_id, "train/loss")) == [1, 2, 3]
    assert not Path(runner.storage_location).exists()


def test_deleted_finished_trial_is_trained_again(runner: SweepRunner, caplog: pytest.LogCaptureFixture) -> None:
    result = runner.run(LocalBackend(1))
    gone = result.trials[1]
    runner.store.client.delete_run(gone.run_id)
    with caplog.at_level("INFO", "fgst"):
        again = resume(runner).run(LocalBackend(1))
    assert f"K=4 s0 is trained again: run {gone.run_id}" in caplog.text
    assert again.status is SweepStatus.COMPLETED
    by_label = {trial.label: trial for trial in again.trials}
    assert by_label["K=4"].run_id != gone.run_id
    assert by_label["K=4"].metrics["val/top1"] == gone.metrics["val/top1"]
    assert again.deleted == ()
    # Restored after all, it exists twice and counts once.
    runner.store.client.restore_run(gone.run_id)
    assert len(resume(runner).results()) == 3


def test_sweep_run_deleted_while_it_runs_keeps_the_trials(runner: SweepRunner) -> None:
    report = MlflowReport(["python", "sweeps/focal_k.py", "--resume", runner.sweep_id])
    result = runner.run(LocalBackend(1), callbacks=[DeleteDuringTraining("sweep"), report])
    assert [trial.status for trial in result.trials] == [TrialStatus.FINISHED] * 3
    assert f"mlflow runs restore --run-id {runner.sweep_id}" in str(runner.deletion)
    with pytest.raises(DeletedInMlflow, match="runs restore"):
        resume(runner)
    runner.store.client.restore_run(runner.sweep_id)
    resumed = resume(runner)
    report = MlflowReport(["python", "sweeps/focal_k.py", "--resume", runner.sweep_id])
    assert resumed.run(LocalBackend(1), callbacks=[report]).status is SweepStatus.COMPLETED
    assert resumed.deletion is None
    with runner.store.artifacts(runner.sweep_id, "report.html"):
        pass


def test_deleted_experiment_stops_the_sweep_and_is_restored_with_all_runs(runner: SweepRunner) -> None:
    budget = Budget()
    result = runner.run(LocalBackend(1), budget, callbacks=[DeleteDuringTraining("experiment")])
    assert budget.stop_reason is StopReason.DELETED
    assert f"mlflow experiments restore --experiment-id {runner.experiment}" in budget.details
    assert "experiments restore" in str(runner.deletion)
    assert result.status is not SweepStatus.COMPLETED
    with pytest.raises(DeletedInMlflow, match="experiments restore"):
        runner.store.experiment(runner.spec.experiment)
    with pytest.raises(DeletedInMlflow, match="experiments restore"):
        resume(runner)
    runner.store.client.restore_experiment(runner.experiment)
    result = resume(runner).run(LocalBackend(1))
    assert result.status is SweepStatus.COMPLETED
    assert len(result.trials) == 3


def test_reused_trial_that_was_deleted_is_trained(runner: SweepRunner) -> None:
    first = runner.run(LocalBackend(1))
    second = create_sweep(
        runner.spec, runner.factory, runner.store, storage_location=str(Path(runner.storage_location).parent),
        reuse_finished_trials=True,
    )  # fmt: skip
    runner.store.client.delete_run(first.trials[0].run_id)
    result = second.run(LocalBackend(1))
    assert result.status is SweepStatus.COMPLETED
    assert {trial.label for trial in result.trials} == {"K=2", "K=4", "K=6"}
    assert [run.data.tags[Tags.LABEL] for run in runner.store.children(second.sweep_id)] == ["K=2"]


@pytest.mark.slow
def test_command_prints_its_table_and_how_to_restore_the_sweep(workspace: Workspace) -> None:
    options = ["--dataset", "data", "--local", "--cpus-per-trial", "1", "--values", "2,4", "--epochs", "8", *TINY]
    process = workspace.start(*options)
    sweep = workspace.wait_for_first_epoch(process)
    workspace.store.client.delete_run(sweep)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "K" in out
    assert f"run {sweep}" in err
    assert f"mlflow runs restore --run-id {sweep}" in err
    assert f"--resume {sweep}" in err.strip().splitlines()[-1]
    workspace.store.client.restore_run(sweep)
    resumed = workspace.sweep("--resume", sweep, "--local")
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.slow
@pytest.mark.parametrize("what", ["trial", "experiment"])
def test_deletions_do_not_make_ray_restart_trials(workspace: Workspace, what: str) -> None:
    options = ["--dataset", "data", "--values", "2,4", "--max-concurrent", "2", "--cpus-per-trial", "1"]
    process = workspace.start(*options, "--epochs", "40", *TINY)
    sweep = workspace.wait_for_epoch(process, 2)
    trials = workspace.store.children(sweep)
    if what == "trial":
        workspace.store.client.delete_run(trials[0].info.run_id)
    else:
        workspace.store.client.delete_experiment(trials[0].info.experiment_id)
    _, err = process.communicate(timeout=300)
    assert "Traceback" not in err
    assert "restarting" not in err
    if what == "trial":
        assert process.returncode == 1
        assert f"mlflow runs restore --run-id {trials[0].info.run_id}" in err
        assert len(workspace.store.children(sweep)) == 1
        workspace.store.client.restore_run(trials[0].info.run_id)
    else:
        assert process.returncode == 130
        assert "mlflow experiments restore --experiment-id" in err
        workspace.store.client.restore_experiment(trials[0].info.experiment_id)
    resumed = workspace.sweep("--resume", sweep)
    assert resumed.returncode == 0, resumed.stderr
    assert [run.info.status for run in workspace.store.children(sweep)] == ["FINISHED"] * 2
