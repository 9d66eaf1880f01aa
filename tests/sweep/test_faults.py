"""Sweeps on Ray whose workers, driver or nodes are killed, and that run out of disk space: no result is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import psutil
import pytest

from fgst.sweep.trial import MAX_STARTS_WITHOUT_PROGRESS
from fgst.tracking.tags import Tags
from tests.support.workspace import ROOT, TIMEOUT, TINY, Workspace, metrics_by_trial, uninterrupted_metrics

pytestmark = pytest.mark.long

ONE_CORE = ["--cpus-per-trial", "1"]  # the last digits depend on the number of threads
DATA = ["--dataset", "data", "--preset", "tiny"]
TWO_TRIALS = [*DATA, "--values", "2,4", "--epochs", "14", *TINY, *ONE_CORE]
THREE_TRIALS = [*DATA, "--values", "2,4,6", "--epochs", "14", *TINY, *ONE_CORE]


def assert_matches_uninterrupted_sweep(
    workspace: Workspace, sweep: str, expected_runs: dict[str, str], trials: int = 3
) -> None:
    """Assert that all trials finished with the metrics of an uninterrupted sweep, and logged each epoch once.

    Args:
        expected_runs: run ids by trial id; these trials must still have the same runs.
    """
    children = workspace.store.children(sweep)
    assert [c.info.status for c in children] == ["FINISHED"] * trials
    assert {c.data.tags[Tags.STATUS] for c in children} == {"finished"}
    assert expected_runs.items() <= {c.data.tags[Tags.TRIAL_ID]: c.info.run_id for c in children}.items()
    assert [workspace.epochs(c) for c in children] == [14] * trials
    assert metrics_by_trial(children) == uninterrupted_metrics(workspace, sweep)
    study = optuna.load_study(study_name=sweep, storage=f"sqlite:///{workspace.folder}/ray_results/studies/{sweep}.db")
    ended = {t.user_attrs["key"]: t for t in study.trials if t.state.is_finished()}
    for child in children:
        assert ended[child.data.tags[Tags.TRIAL_ID]].value == child.data.metrics["val/top1"]
        assert sorted(ended[child.data.tags[Tags.TRIAL_ID]].intermediate_values) == list(range(1, 15))


def run_ids(workspace: Workspace, sweep: str) -> dict[str, str]:
    """Run ids of a sweep's trials by trial id."""
    return {r.data.tags[Tags.TRIAL_ID]: r.info.run_id for r in workspace.store.children(sweep)}


def test_killed_worker_is_restarted_in_the_same_run(workspace: Workspace) -> None:
    process = workspace.start(*TWO_TRIALS)
    sweep = workspace.wait_for_epoch(process, 2)
    runs = run_ids(workspace, sweep)
    workers = workspace.workers(process)
    assert workers
    workers[0].kill()
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    assert_matches_uninterrupted_sweep(workspace, sweep, runs, trials=2)
    assert out.splitlines()[-1].startswith("python -m fgst.evaluate")


@pytest.mark.slow
def test_sigterm_saves_a_mid_epoch_checkpoint(workspace: Workspace) -> None:
    """A worker receives SIGTERM during an epoch, as on a spot node that is about to be terminated."""
    long_epochs = ["--set", "train.repeat=100", "--set", "train.lr=0.001"]  # of several seconds
    process = workspace.start(*DATA, "--values", "2", "--epochs", "2", *TINY, *ONE_CORE, *long_epochs)
    end = time.monotonic() + TIMEOUT
    sweep, has_epoch = "", False
    while not has_epoch and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        for run in workspace.sweeps():
            sweep = run.info.run_id
            has_epoch = any(workspace.epochs(c) >= 1 for c in workspace.store.children(sweep))
        time.sleep(0.1)
    runs = run_ids(workspace, sweep)
    (trial_id,) = runs
    workers = workspace.workers(process)
    assert len(workers) == 1
    workers[0].terminate()
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    checkpoints = [path.name for path in (workspace.folder / "ray_results" / sweep / trial_id).iterdir()]
    assert any("-step-" in name for name in checkpoints), checkpoints
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    (run,) = workspace.store.children(sweep)
    assert (run.info.status, workspace.epochs(run), run.info.run_id) == ("FINISHED", 2, runs[trial_id])
    assert metrics_by_trial([run]) == uninterrupted_metrics(workspace, sweep)


@pytest.mark.slow
def test_trial_whose_worker_dies_at_every_start_fails(workspace: Workspace) -> None:
    process = workspace.start(*DATA, "--values", "2", "--epochs", "2", *TINY, "--set", "train.repeat=5000")
    killed = 0
    end = time.monotonic() + TIMEOUT
    while process.poll() is None and time.monotonic() < end:
        runs = [run for sweep in workspace.sweeps() for run in workspace.store.children(sweep.info.run_id)]
        starts = runs[0].data.tags.get(Tags.STARTS, "") if runs else ""
        if starts.endswith(f" x{killed + 1}"):
            for worker in workspace.workers(process):
                worker.kill()
            killed += 1
        time.sleep(0.1)
    _, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, killed) == (1, MAX_STARTS_WITHOUT_PROGRESS), err
    assert f"worker died {MAX_STARTS_WITHOUT_PROGRESS} times at its first epoch" in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_interrupt_a_sweep_like_ctrl_c(workspace: Workspace, number: int) -> None:
    # Under nohup, this process ignores SIGHUP, and the sweep would inherit that.
    previous = signal.signal(number, signal.SIG_DFL)
    process = workspace.start(*TWO_TRIALS)
    signal.signal(number, previous)
    sweep = workspace.wait_for_epoch(process, 2)
    process.send_signal(number)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, err
    assert f"--resume {sweep}" in err
    assert {c.info.status for c in workspace.store.children(sweep)} <= {"KILLED", "FINISHED"}


def kill_process_group(pid: int) -> None:
    """Kill the driver together with all processes of Ray."""
    os.killpg(pid, signal.SIGKILL)


def kill_driver(pid: int) -> None:
    """Kill the driver only."""
    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [kill_process_group, kill_driver])
def test_resume_after_the_driver_was_killed(workspace: Workspace, kill: Callable[[int], None]) -> None:
    process = workspace.start(*THREE_TRIALS, "--max-concurrent", "2")
    sweep = workspace.wait_for_epoch(process, 2)
    workers = workspace.workers(process)
    assert workers
    kill(process.pid)
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    runs = run_ids(workspace, sweep)

    resumed = workspace.sweep("--resume", sweep, *ONE_CORE)
    assert resumed.returncode == 0, resumed.stderr
    assert_matches_uninterrupted_sweep(workspace, sweep, runs)

    completed = workspace.sweep("--resume", sweep, *ONE_CORE)  # no trials are left
    assert completed.returncode == 0, completed.stderr
    assert "3 of them finished before" in completed.stderr
    assert completed.stdout.splitlines()[-1] == resumed.stdout.splitlines()[-1]


@pytest.mark.slow
def test_trials_of_a_killed_node_continue_on_another_node(workspace: Workspace) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        process = workspace.start(*THREE_TRIALS, "--address", cluster.address)
        sweep = workspace.wait_for_epoch(process, 2)
        runs = run_ids(workspace, sweep)
        cluster.remove_node(node, allow_graceful=False)
        _, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, err
    finally:
        cluster.shutdown()
    assert_matches_uninterrupted_sweep(workspace, sweep, runs)


@pytest.mark.slow
def test_killed_search_resumes_with_its_history(workspace: Workspace) -> None:
    settings = [*DATA, "--epochs", "6", "--trials", "8", "--early-stop", *TINY]
    settings += ["--grace", "1", "--max-concurrent", "1", *ONE_CORE]
    process = workspace.start(*settings, script="search")
    sweep = ""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:  # until three trials have ended and one is running
        for run in workspace.sweeps():
            sweep = run.info.run_id
            children = workspace.store.children(sweep)
            if len(children) >= 4 and workspace.epochs(children[-1]) >= 1:
                break
        else:
            time.sleep(0.3)
            continue
        break
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    runs = run_ids(workspace, sweep)
    # The options of the printed command: with another number of threads the last digits would differ.
    resumed = workspace.sweep("--resume", sweep, "--max-concurrent", "1", *ONE_CORE, script="search")
    assert resumed.returncode == 0, resumed.stderr
    uninterrupted = workspace.sweep(*settings, script="search")
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    other = next(run.info.run_id for run in workspace.sweeps() if run.info.run_id != sweep)
    assert runs.items() <= run_ids(workspace, sweep).items()
    assert run_ids(workspace, sweep).keys() == run_ids(workspace, other).keys()
    assert metrics_by_trial(workspace.store.children(sweep)) == metrics_by_trial(workspace.store.children(other))
    studies = [
        optuna.load_study(study_name=name, storage=f"sqlite:///{workspace.folder}/ray_results/studies/{name}.db")
        for name in (sweep, other)
    ]
    trials = [[(t.params, t.state, t.value, t.intermediate_values) for t in study.trials] for study in studies]
    assert trials[0] == trials[1]


@pytest.mark.slow
def test_full_disk_interrupts_a_sweep_and_resume_completes_it(tmp_path: Path) -> None:
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]  # other processes do not see the mount
    mount = f"mount -t tmpfs -o size=32m tmpfs {tmp_path}"
    if subprocess.run([*namespace, mount], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not allow mounts in a user namespace (unshare --user --mount)")
    script = f"{mount} && cd {tmp_path} && exec {sys.executable} -m tests.support.small_disk {tmp_path}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([*namespace, script], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "No space left on device" in result.stdout
