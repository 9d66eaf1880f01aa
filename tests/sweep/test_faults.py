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
from tests.support.place import ROOT, TIMEOUT, TINY, Place, figures, undisturbed

ONE = ["--cpus-per-trial", "1"]  # the last digits depend on the number of threads
GRID = ["--dataset", "data", "--preset", "tiny", "--values", "2,4,6", "--epochs", "14", *TINY, *ONE]


def as_if_nothing_had_been(place: Place, sweep: str, before: dict[str, str], trials: int = 3) -> None:
    """All trials are finished, each in the run that it began, each epoch once, with the figures of a quiet sweep."""
    children = place.store.children(sweep)
    assert [c.info.status for c in children] == ["FINISHED"] * trials
    assert {c.data.tags[Tags.STATUS] for c in children} == {"finished"}
    assert before.items() <= {c.data.tags[Tags.TRIAL_ID]: c.info.run_id for c in children}.items()
    assert [place.epochs(c) for c in children] == [14] * trials
    assert figures(children) == undisturbed(place, sweep)
    study = optuna.load_study(study_name=sweep, storage=f"sqlite:///{place.folder}/ray_results/optuna.db")
    known = {t.user_attrs["key"]: t for t in study.trials if t.state.is_finished()}
    for child in children:
        assert known[child.data.tags[Tags.TRIAL_ID]].value == child.data.metrics["val/top1"]
        assert sorted(known[child.data.tags[Tags.TRIAL_ID]].intermediate_values) == list(range(1, 15))


def begun(place: Place, sweep: str) -> dict[str, str]:
    return {r.data.tags[Tags.TRIAL_ID]: r.info.run_id for r in place.store.children(sweep)}


def test_killed_trial_process_is_started_again_in_its_run(place: Place) -> None:
    process = place.start(*GRID[:4], "--values", "2,4", *GRID[6:])
    sweep = place.wait_for_epoch(process, 2)
    before = begun(place, sweep)
    workers = place.workers(process)
    assert workers
    workers[0].kill()
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    as_if_nothing_had_been(place, sweep, before, trials=2)
    assert out.splitlines()[-1].startswith("python -m fgst.evaluate")


def test_a_process_that_is_told_to_end_keeps_its_steps(place: Place) -> None:
    """As on a spot node that is about to go: SIGTERM in the middle of an epoch."""
    long = ["--set", "train.repeat=100", "--set", "train.lr=0.001"]  # epochs of seconds
    process = place.start(*GRID[:4], "--values", "2", "--epochs", "2", *TINY, *ONE, *long)
    end = time.monotonic() + TIMEOUT
    (sweep, child), seen = ("", ""), False
    while not seen and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        for run in place.sweeps():
            sweep = run.info.run_id
            seen = any(place.epochs(c) >= 1 for c in place.store.children(sweep))
        time.sleep(0.1)
    before = begun(place, sweep)
    (child,) = before
    trainers = place.workers(process)
    assert len(trainers) == 1
    trainers[0].terminate()
    assert psutil.wait_procs(trainers, timeout=60)[1] == []
    kept = [path.name for path in (place.folder / "ray_results" / sweep / child).iterdir()]
    assert any("-step-" in name for name in kept), kept
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    (run,) = place.store.children(sweep)
    assert (run.info.status, place.epochs(run), run.info.run_id) == ("FINISHED", 2, before[child])
    assert figures([run]) == undisturbed(place, sweep)


@pytest.mark.slow
def test_a_process_that_dies_at_every_start_has_failed(place: Place) -> None:
    process = place.start(*GRID[:4], "--values", "2", "--epochs", "2", *TINY, "--set", "train.repeat=5000")
    killed = 0
    end = time.monotonic() + TIMEOUT
    while process.poll() is None and time.monotonic() < end:
        runs = [run for sweep in place.sweeps() for run in place.store.children(sweep.info.run_id)]
        starts = runs[0].data.tags.get(Tags.STARTS, "") if runs else ""
        if starts.endswith(f" x{killed + 1}"):
            for trainer in place.workers(process):
                trainer.kill()
            killed += 1
        time.sleep(0.1)
    _, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, killed) == (1, MAX_STARTS_WITHOUT_PROGRESS), err
    assert f"its process died {MAX_STARTS_WITHOUT_PROGRESS} times at its first epoch" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_sweep_that_is_told_to_end_ends_as_with_ctrl_c(place: Place, number: int) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # under nohup one of them is ignored, and would be by the sweep
    process = place.start(*GRID[:4], "--values", "2,4", *GRID[6:])
    signal.signal(number, before)
    sweep = place.wait_for_epoch(process, 2)
    process.send_signal(number)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, err
    assert f"--resume {sweep}" in err
    assert {c.info.status for c in place.store.children(sweep)} <= {"KILLED", "FINISHED"}


def _everything(pid: int) -> None:
    os.killpg(pid, signal.SIGKILL)


def _driver_alone(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [_everything, _driver_alone])
def test_killed_driver_and_a_resume(place: Place, kill: Callable[[int], None]) -> None:
    process = place.start(*GRID, "--max-concurrent", "2")
    sweep = place.wait_for_epoch(process, 2)
    trainers = place.workers(process)
    assert trainers
    kill(process.pid)
    process.communicate()
    _, alive = psutil.wait_procs(trainers, timeout=60)
    assert not alive  # no trial outlives the driver that started it
    before = begun(place, sweep)

    done = place.sweep("--resume", sweep, *ONE)
    assert done.returncode == 0, done.stderr
    as_if_nothing_had_been(place, sweep, before)

    again = place.sweep("--resume", sweep, *ONE)  # nothing is left to do: the table and the next command, at once
    assert again.returncode == 0, again.stderr
    assert "3 of them finished before" in again.stderr
    assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_killed_node_gives_its_trials_to_the_other(place: Place) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        process = place.start(*GRID, "--address", cluster.address)
        sweep = place.wait_for_epoch(process, 2)
        before = begun(place, sweep)
        cluster.remove_node(node, allow_graceful=False)
        _, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, err
    finally:
        cluster.shutdown()
    as_if_nothing_had_been(place, sweep, before)


@pytest.mark.slow
def test_killed_search_goes_on_with_its_history(place: Place) -> None:
    settings = ["--dataset", "data", "--preset", "tiny", "--epochs", "6", "--trials", "8", "--early-stop", *TINY]
    settings += ["--grace", "1", "--max-concurrent", "1", *ONE]
    process = place.start(*settings, script="search")
    sweep = ""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:  # three trials have ended, one is under way
        for run in place.sweeps():
            sweep = run.info.run_id
            children = place.store.children(sweep)
            if len(children) >= 4 and place.epochs(children[-1]) >= 1:
                break
        else:
            time.sleep(0.3)
            continue
        break
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = begun(place, sweep)
    # As it says itself how to go on: with another number of threads the last digits would differ.
    done = place.sweep("--resume", sweep, "--max-concurrent", "1", *ONE, script="search")
    assert done.returncode == 0, done.stderr
    whole = place.sweep(*settings, script="search")  # the same search, undisturbed
    assert whole.returncode == 0, whole.stderr
    other = next(run.info.run_id for run in place.sweeps() if run.info.run_id != sweep)
    assert before.items() <= begun(place, sweep).items()
    assert begun(place, sweep).keys() == begun(place, other).keys()
    assert figures(place.store.children(sweep)) == figures(place.store.children(other))
    studies = [
        optuna.load_study(study_name=name, storage=f"sqlite:///{place.folder}/ray_results/optuna.db")
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
