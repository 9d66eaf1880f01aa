"""SIGTERM and SIGHUP end commands like Ctrl-C: with a line that says how to resume, and with the runs' statuses set."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest

from tests.support import small
from tests.support.process import start_python
from tests.support.workspace import TIMEOUT, TINY, Workspace

COMMAND = """
import signal, sys, time
from fgst.cli.command import run_command

def main():
    try:
        print("busy", flush=True)
        for _ in range(600):
            time.sleep(0.1)
    except KeyboardInterrupt:
        print("saving", flush=True)
        sys.stdin.readline()
        print("saved", flush=True)
        raise

run_command(main)
"""
TRAINING = ["--dataset", "data", "--preset", "tiny", "--epochs", "1000", *TINY]
SIGNALS = [signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def _default_signals() -> Iterator[None]:
    """Processes of these tests start with SIGHUP enabled even if the tests run under nohup."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)


@pytest.fixture
def workspace(tmp_path: Path, tracking_uri: str) -> Iterator[Workspace]:
    """A working directory with a data set and an empty tracking store."""
    del tracking_uri  # its database is in the working directory
    small.write_small(tmp_path / "data")
    workspace = Workspace(tmp_path)
    yield workspace
    workspace.kill_all()


def wait_for_line(process: subprocess.Popen[str], start: str, stream: IO[str] | None = None) -> None:
    """Wait until a process prints a line that starts with this text, by default on standard output."""
    stream = stream or process.stdout
    assert stream is not None
    for line in stream:
        if line.startswith(start):
            return
    raise AssertionError(process.communicate())


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_repeated_signal_does_not_interrupt_saving(first: int, second: int) -> None:
    process = start_python(COMMAND, stdin=subprocess.PIPE)
    wait_for_line(process, "busy")
    process.send_signal(first)
    wait_for_line(process, "saving")
    process.send_signal(second)
    out, error = process.communicate("\n", timeout=TIMEOUT)
    assert (process.returncode, out, error) == (130, "saved\n", "interrupted.\n")


def test_ignored_signals_stay_ignored() -> None:
    """As under nohup, and in the background of a script."""
    script = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)"
    process = start_python(script + COMMAND)
    wait_for_line(process, "busy")
    for number in (signal.SIGHUP, signal.SIGINT):
        process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.terminate()
    out, error = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out, error) == (130, "saving\nsaved\n", "interrupted.\n")


def test_terminated_training_is_killed_and_prints_how_to_resume(workspace: Workspace) -> None:
    process = workspace.start_module("fgst.train", *TRAINING, "--set", "model.focal_joints=2")
    wait_for_line(process, "epoch   1/", process.stderr)
    os.killpg(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=TIMEOUT)
    [run] = workspace.trainings()
    assert process.returncode == 130
    assert error.splitlines()[-1].startswith("interrupted. Resume with: python -m fgst.train")
    assert error.splitlines()[-1].endswith(f"--resume {run.info.run_id}")
    assert run.info.status == "KILLED"


def test_terminated_local_sweep_is_killed_and_prints_how_to_resume(workspace: Workspace) -> None:
    process = workspace.start(*TRAINING, "--values", "2,4", "--local")
    while not any(workspace.epochs(run) for run in workspace.trainings()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=TIMEOUT)
    [sweep], [trial] = workspace.sweeps(), workspace.trainings()
    assert process.returncode == 130, error
    line = (
        rf"^interrupted\. 1 trial is incomplete(, 1 was not started)?\. Resume with: .* --resume {sweep.info.run_id} "
    )
    assert re.search(line, error, re.M)
    assert {sweep.info.status, trial.info.status} == {"KILLED"}


def send_sigterm_to_group(process: subprocess.Popen[str]) -> None:
    """As ``timeout`` and job schedulers do; Ray's processes usually die before the driver reacts."""
    os.killpg(process.pid, signal.SIGTERM)


def send_sighup_to_group(process: subprocess.Popen[str]) -> None:
    """As the kernel does when a terminal is closed."""
    os.killpg(process.pid, signal.SIGHUP)


def kill_control_service(process: subprocess.Popen[str]) -> None:
    """The driver gets no signal at all."""
    ray_process(process, "gcs_server").kill()


def kill_raylet(process: subprocess.Popen[str]) -> None:
    """The driver gets no signal at all."""
    ray_process(process, "raylet").kill()


def ray_process(process: subprocess.Popen[str], name: str) -> psutil.Process:
    [found] = [child for child in psutil.Process(process.pid).children(recursive=True) if child.name() == name]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kill", [send_sigterm_to_group, send_sighup_to_group, kill_control_service, kill_raylet])
def test_ray_sweep_ends_resumable_whatever_dies(
    workspace: Workspace, kill: Callable[[subprocess.Popen[str]], None]
) -> None:
    process = workspace.start(*TRAINING, "--values", "2,4")
    sweep = workspace.wait_for_epoch(process, 1)
    processes = psutil.Process(process.pid).children(recursive=True)
    kill(process)
    _, error = process.communicate(timeout=50)  # Ray itself waits a minute for its control service
    assert process.returncode == 130, error
    assert re.search(rf"^interrupted\. .*Resume with: .* --resume {sweep}$", error, re.M)
    assert 'Traceback (most recent call last):\n  File "' + str(Path(__file__).parents[2] / "fgst") not in error
    assert workspace.store.run(sweep).info.status == "KILLED"
    assert {run.info.status for run in workspace.store.children(sweep)} == {"KILLED"}
    assert not psutil.wait_procs(processes, timeout=60)[1]
