"""Nothing is lost: processes, drivers, nodes and everything killed by SIGKILL, on the real thing."""

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

ONE = ["--cpus-per-trial", "1"]  # the last digits depend on the number of threads
GRID = ["--dataset", "data", "--preset", "tiny", "--values", "2,4,6", "--epochs", "14", *TINY, *ONE]


def as_if_nothing_had_been(workspace: Workspace, sweep: str, before: dict[str, str], trials: int = 3) -> None:
    """All trials are finished, each in the run that it began, each epoch once, with the figures of a quiet sweep."""
    children = workspace.store.children(sweep)
    assert [c.info.status for c in children] == ["FINISHED"] * trials
    assert {c.data.tags[Tags.STATUS] for c in children} == {"finished"}
    assert before.items() <= {c.data.tags[Tags.TRIAL_ID]: c.info.run_id for c in children}.items()
    assert [workspace.epochs(c) for c in children] == [14] * trials
    assert metrics_by_trial(children) == uninterrupted_metrics(workspace, sweep)
    study = optuna.load_study(study_name=sweep, storage=f"sqlite:///{workspace.folder}/ray_results/optuna.db")
    known = {t.user_attrs["key"]: t for t in study.trials if t.state.is_finished()}
    for child in children:
        assert known[child.data.tags[Tags.TRIAL_ID]].value == child.data.metrics["val/top1"]
        assert sorted(known[child.data.tags[Tags.TRIAL_ID]].intermediate_values) == list(range(1, 15))


def begun(workspace: Workspace, sweep: str) -> dict[str, str]:
    return {r.data.tags[Tags.TRIAL_ID]: r.info.run_id for r in workspace.store.children(sweep)}


def test_killed_trial_process_is_started_again_in_its_run(workspace: Workspace) -> None:
    process = workspace.start(*GRID[:4], "--values", "2,4", *GRID[6:])
    sweep = workspace.wait_for_epoch(process, 2)
    before = begun(workspace, sweep)
    workers = workspace.workers(process)
    assert workers
    workers[0].kill()
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    as_if_nothing_had_been(workspace, sweep, before, trials=2)
    assert out.splitlines()[-1].startswith("python -m fgst.evaluate")


def test_a_process_that_is_told_to_end_keeps_its_steps(workspace: Workspace) -> None:
    """As on a spot node that is about to go: SIGTERM in the middle of an epoch."""
    long = ["--set", "train.repeat=100", "--set", "train.lr=0.001"]  # epochs of seconds
    process = workspace.start(*GRID[:4], "--values", "2", "--epochs", "2", *TINY, *ONE, *long)
    end = time.monotonic() + TIMEOUT
    (sweep, child), seen = ("", ""), False
    while not seen and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        for run in workspace.sweeps():
            sweep = run.info.run_id
            seen = any(workspace.epochs(c) >= 1 for c in workspace.store.children(sweep))
        time.sleep(0.1)
    before = begun(workspace, sweep)
    (child,) = before
    trainers = workspace.workers(process)
    assert len(trainers) == 1
    trainers[0].terminate()
    assert psutil.wait_procs(trainers, timeout=60)[1] == []
    kept = [path.name for path in (workspace.folder / "ray_results" / sweep / child).iterdir()]
    assert any("-step-" in name for name in kept), kept
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    (run,) = workspace.store.children(sweep)
    assert (run.info.status, workspace.epochs(run), run.info.run_id) == ("FINISHED", 2, before[child])
    assert metrics_by_trial([run]) == uninterrupted_metrics(workspace, sweep)


@pytest.mark.slow
def test_a_process_that_dies_at_every_start_has_failed(workspace: Workspace) -> None:
    process = workspace.start(*GRID[:4], "--values", "2", "--epochs", "2", *TINY, "--set", "train.repeat=5000")
    killed = 0
    end = time.monotonic() + TIMEOUT
    while process.poll() is None and time.monotonic() < end:
        runs = [run for sweep in workspace.sweeps() for run in workspace.store.children(sweep.info.run_id)]
        starts = runs[0].data.tags.get(Tags.STARTS, "") if runs else ""
        if starts.endswith(f" x{killed + 1}"):
            for trainer in workspace.workers(process):
                trainer.kill()
            killed += 1
        time.sleep(0.1)
    _, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, killed) == (1, MAX_STARTS_WITHOUT_PROGRESS), err
    assert f"its process died {MAX_STARTS_WITHOUT_PROGRESS} times at its first epoch" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_sweep_that_is_told_to_end_ends_as_with_ctrl_c(workspace: Workspace, number: int) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # under nohup one of them is ignored, and would be by the sweep
    process = workspace.start(*GRID[:4], "--values", "2,4", *GRID[6:])
    signal.signal(number, before)
    sweep = workspace.wait_for_epoch(process, 2)
    process.send_signal(number)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, err
    assert f"--resume {sweep}" in err
    assert {c.info.status for c in workspace.store.children(sweep)} <= {"KILLED", "FINISHED"}


def _everything(pid: int) -> None:
    os.killpg(pid, signal.SIGKILL)


def _driver_alone(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [_everything, _driver_alone])
def test_killed_driver_and_a_resume(workspace: Workspace, kill: Callable[[int], None]) -> None:
    process = workspace.start(*GRID, "--max-concurrent", "2")
    sweep = workspace.wait_for_epoch(process, 2)
    trainers = workspace.workers(process)
    assert trainers
    kill(process.pid)
    process.communicate()
    _, alive = psutil.wait_procs(trainers, timeout=60)
    assert not alive  # no trial outlives the driver that started it
    before = begun(workspace, sweep)

    done = workspace.sweep("--resume", sweep, *ONE)
    assert done.returncode == 0, done.stderr
    as_if_nothing_had_been(workspace, sweep, before)

    again = workspace.sweep("--resume", sweep, *ONE)  # nothing is left to do: the table and the next command, at once
    assert again.returncode == 0, again.stderr
    assert "3 of them finished before" in again.stderr
    assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_killed_node_gives_its_trials_to_the_other(workspace: Workspace) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        process = workspace.start(*GRID, "--address", cluster.address)
        sweep = workspace.wait_for_epoch(process, 2)
        before = begun(workspace, sweep)
        cluster.remove_node(node, allow_graceful=False)
        _, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, err
    finally:
        cluster.shutdown()
    as_if_nothing_had_been(workspace, sweep, before)


@pytest.mark.slow
def test_killed_search_goes_on_with_its_history(workspace: Workspace) -> None:
    settings = ["--dataset", "data", "--preset", "tiny", "--epochs", "6", "--trials", "8", "--early-stop", *TINY]
    settings += ["--grace", "1", "--max-concurrent", "1", *ONE]
    process = workspace.start(*settings, script="search")
    sweep = ""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:  # three trials have ended, one is under way
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
    before = begun(workspace, sweep)
    # As it says itself how to go on: with another number of threads the last digits would differ.
    done = workspace.sweep("--resume", sweep, "--max-concurrent", "1", *ONE, script="search")
    assert done.returncode == 0, done.stderr
    whole = workspace.sweep(*settings, script="search")  # the same search, undisturbed
    assert whole.returncode == 0, whole.stderr
    other = next(run.info.run_id for run in workspace.sweeps() if run.info.run_id != sweep)
    assert before.items() <= begun(workspace, sweep).items()
    assert begun(workspace, sweep).keys() == begun(workspace, other).keys()
    assert metrics_by_trial(workspace.store.children(sweep)) == metrics_by_trial(workspace.store.children(other))
    studies = [
        optuna.load_study(study_name=name, storage=f"sqlite:///{workspace.folder}/ray_results/optuna.db")
        for name in (sweep, other)
    ]
    told = [[(t.params, t.state, t.value, t.intermediate_values) for t in study.trials] for study in studies]
    assert told[0] == told[1]


@pytest.mark.slow
def test_full_disk_ends_cleanly_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    own = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]  # a disk that nobody else sees
    mount = f"mount -t tmpfs -o size=32m tmpfs {tmp_path}"
    if subprocess.run([*own, mount], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk of their own (unshare --user --mount)")
    program = (
        f"{mount} && cd {tmp_path} && exec {sys.executable} {ROOT / 'tests' / 'sweep' / 'small_disk.py'} {tmp_path}"
    )
    paths = {"PYTHONPATH": f"{ROOT / 'tests'}:{ROOT / 'tests' / 'sweep'}"}
    done = subprocess.run([*own, program], env=os.environ | paths, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No space left on device" in done.stdout
