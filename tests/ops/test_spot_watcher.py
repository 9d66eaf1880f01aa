"""The watch on a spot node, against a metadata service on loopback that speaks as AWS documents it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fgst.errors import InputError
from fgst.ops import spot_watcher
from fgst.ops.spot_watcher import Metadata, Warned, drain, leave, main, trial_processes, watch
from tests.support.cluster.metadata_service import Service


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield service
    service.shutdown()
    thread.join()
    service.server_close()


def test_a_warning_is_read(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # the service is behind none
    metadata = Metadata(service.url)
    assert metadata.warning() is None
    service.warn(120)
    warned = metadata.warning()
    assert warned is not None
    assert warned.action == "terminate"
    assert 100 < warned.seconds <= 120
    assert len(service.tokens) == 1  # one for all
    service.warn(-5, "stop")
    assert metadata.warning() == Warned("stop", 0.0)
    service.notice = "something new"
    assert metadata.warning() == Warned("terminate", spot_watcher.GONE)


def test_the_watch_outlives_an_old_token_and_a_service_that_is_down(service: Service) -> None:
    naps = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            service.tokens.append("another")  # the old one has ended
        if 4 <= len(naps) < 4 + 2 * spot_watcher.FIRST_CONTACT:
            service.down = True
        if len(naps) == 4 + 2 * spot_watcher.FIRST_CONTACT:
            service.down = False
            service.warn(60)
        assert len(naps) < 100

    warned = watch(Metadata(service.url), 5.0, sleep)
    assert warned.action == "terminate"
    assert set(naps) == {5.0}
    assert len(naps) >= 4 + 2 * spot_watcher.FIRST_CONTACT


def test_a_machine_without_metadata_is_one_message(service: Service) -> None:
    service.down = True
    naps: list[float] = []
    with pytest.raises(InputError, match="EC2 instances only"):
        watch(Metadata(service.url), 5.0, naps.append)
    assert len(naps) == spot_watcher.FIRST_CONTACT - 1


def stand_in(folder: Path, title: str) -> subprocess.Popen[bytes]:
    """A process that Ray has given a title to, and that ends when it is told to, with 7."""
    script = "import os, signal, sys; signal.signal(15, lambda *a: os._exit(7)); print(1, flush=True); signal.pause()"
    process = subprocess.Popen([title, "-c", script], executable=sys.executable, stdout=subprocess.PIPE, cwd=folder)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_trials_are_told_to_end_after_ray_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = {title: stand_in(tmp_path, title) for title in ("ray::Trainable.train", "ray::IDLE", "python")}
    mine = {process.pid for process in processes.values()}
    told = []
    found = spot_watcher.trial_processes  # of the whole machine, which others may be using
    monkeypatch.setattr(spot_watcher, "trial_processes", lambda: [p for p in found() if p.pid in mine])
    trial = processes["ray::Trainable.train"]
    monkeypatch.setattr(spot_watcher, "drain", lambda *arguments: told.append((*arguments, trial.poll())))
    try:
        assert leave(Warned("terminate", 90.0), "i-1") == 1
        assert trial.wait(20) == 7
        assert told == [(90.0, "i-1", None)]  # when the trial still ran
        assert [processes[title].poll() for title in ("ray::IDLE", "python")] == [None, None]
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()


def test_the_command_from_the_warning_to_the_end(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = []
    monkeypatch.setattr(spot_watcher, "leave", lambda warned, instance: left.append((warned.action, instance)) or 3)
    service.warn(120)
    main(["--metadata", service.url, "--every", "0.01"])
    assert left == [("terminate", "i-1")]
    assert "3 processes were told to end" in capsys.readouterr().out
    with spot_watcher.FileLock(tmp_path / f"fgst-spot-{os.getuid()}.lock"):
        main(["--metadata", service.url])
    assert "another one watches here already" in capsys.readouterr().out
    assert len(left) == 1
    with pytest.raises(InputError, match="--every"):
        main(["--every", "0"])


def test_a_ray_that_cannot_be_told_is_no_reason_to_keep_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\necho no, because of $4 >&2\nexit 2\n")
    for path, said in (
        (tmp_path / "none", "could not be told"),
        (tmp_path / "python", "would not drain the node: no, bec"),
    ):
        monkeypatch.setattr(spot_watcher.sys, "executable", str(path))
        assert drain(10, "i-1") is False
        assert said in capsys.readouterr().err
        (tmp_path / "python").chmod(0o755)
    (tmp_path / "python").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(spot_watcher, "PATIENCE", 0.2)
    assert drain(10, "i-1") is False
    assert "timed out" in capsys.readouterr().err


@pytest.mark.slow
def test_ray_drains_and_the_trials_process_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two nodes of a real Ray: on the drained one nothing begins any more, and what ran there hears SIGTERM."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=2, env_vars={"RAY_CLOUD_INSTANCE_ID": "i-1"})
        ray.init(address=cluster.address, logging_level="ERROR")

        @ray.remote(num_cpus=1, max_restarts=0)
        class Trainable:  # as Tune names it
            def run(self) -> None:
                time.sleep(600)

            def pid(self) -> int:
                return os.getpid()

            def node(self) -> str:
                return str(ray.get_runtime_context().get_node_id())

        trial = Trainable.remote()
        pid = ray.get(trial.pid.remote())
        running = trial.run.remote()
        deadline = time.monotonic() + 60
        while pid not in {process.pid for process in trial_processes()}:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert not drain(100, "i-2", cluster.address)
        assert "no node on instance i-2" in capsys.readouterr().err
        assert drain(100, "i-1", cluster.address)
        # It has a core left, and yet the next one waits for a node that is still to come.
        where = Trainable.remote().node.remote()
        later = cluster.add_node(num_cpus=2)
        assert ray.get(where, timeout=120) == later.node_id
        assert psutil.pid_exists(pid)  # a drain alone ends nobody
        psutil.Process(pid).terminate()
        with pytest.raises(ray.exceptions.RayError):
            ray.get(running, timeout=60)
    finally:
        ray.shutdown()
        cluster.shutdown()
