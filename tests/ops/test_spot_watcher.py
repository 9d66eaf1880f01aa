"""The spot watcher, with a local metadata service that follows AWS's documentation."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from fgst.cli import spot_watcher as command
from fgst.errors import InputError
from fgst.ops import spot_watcher
from fgst.ops.spot_watcher import (
    InstanceMetadata,
    InterruptionNotice,
    evacuate,
    request_drain,
    trial_processes,
    wait_for_notice,
    watcher_lock,
)
from tests.support.cluster.metadata_service import MetadataService


@pytest.fixture
def service() -> Iterator[MetadataService]:
    service = MetadataService()
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield service
    service.shutdown()
    thread.join()
    service.server_close()


def test_interruption_notice_is_read(service: MetadataService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # the metadata service must be accessed without a proxy
    metadata = InstanceMetadata(service.url)
    assert metadata.interruption_notice() is None
    service.announce(120)
    notice = metadata.interruption_notice()
    assert notice is not None
    assert notice.action == "terminate"
    assert 100 < notice.seconds <= 120
    assert len(service.tokens) == 1  # the token is reused
    service.announce(-5, "stop")
    assert metadata.interruption_notice() == InterruptionNotice("stop", 0.0)
    service.notice = "unknown format"
    assert metadata.interruption_notice() == InterruptionNotice("terminate", spot_watcher.DEFAULT_NOTICE)


def test_watcher_survives_expired_token_and_outage(service: MetadataService) -> None:
    outage_end = 4 + 2 * spot_watcher.MAX_CONNECTION_ATTEMPTS
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 2:
            service.tokens.append("another")  # the previous token expires
        if 4 <= len(sleeps) < outage_end:
            service.down = True
        if len(sleeps) == outage_end:
            service.down = False
            service.announce(60)
        assert len(sleeps) < 100

    notice = wait_for_notice(InstanceMetadata(service.url), 5.0, sleep)
    assert notice.action == "terminate"
    assert set(sleeps) == {5.0}
    assert len(sleeps) >= outage_end


def test_machine_without_metadata_service_is_rejected(service: MetadataService) -> None:
    service.down = True
    sleeps: list[float] = []
    with pytest.raises(InputError, match="EC2 instances only"):
        wait_for_notice(InstanceMetadata(service.url), 5.0, sleeps.append)
    assert len(sleeps) == spot_watcher.MAX_CONNECTION_ATTEMPTS - 1


def start_titled(folder: Path, title: str) -> subprocess.Popen[bytes]:
    """Start a process that has a title like those of Ray's processes and exits with code 7 on SIGTERM."""
    script = "import os, signal, sys; signal.signal(15, lambda *a: os._exit(7)); print(1, flush=True); signal.pause()"
    process = subprocess.Popen([title, "-c", script], executable=sys.executable, stdout=subprocess.PIPE, cwd=folder)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_trials_receive_sigterm_after_drain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = {title: start_titled(tmp_path, title) for title in ("ray::Trainable.train", "ray::IDLE", "python")}
    own_pids = {process.pid for process in processes.values()}
    drains = []
    all_trials = spot_watcher.trial_processes  # includes processes of other tests on this machine
    monkeypatch.setattr(spot_watcher, "trial_processes", lambda: [p for p in all_trials() if p.pid in own_pids])
    trial = processes["ray::Trainable.train"]
    monkeypatch.setattr(spot_watcher, "request_drain", lambda *arguments: drains.append((*arguments, trial.poll())))
    try:
        assert evacuate(InterruptionNotice("terminate", 90.0), "i-1") == 1
        assert trial.wait(20) == 7
        assert drains == [(90.0, "i-1", None)]  # None: the trial was running at the time of the drain
        assert [processes[title].poll() for title in ("ray::IDLE", "python")] == [None, None]
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()


def test_command_evacuates_node_on_notice(
    service: MetadataService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    evacuated = []

    def record(notice: InterruptionNotice, instance_id: str) -> int:
        evacuated.append((notice.action, instance_id))
        return 3

    monkeypatch.setattr(command, "evacuate", record)
    service.announce(120)
    command.main(["--metadata", service.url, "--every", "0.01"])
    assert evacuated == [("terminate", "i-1")]
    assert "sent SIGTERM to 3 trial processes" in capsys.readouterr().out
    assert watcher_lock().parent == tmp_path
    with FileLock(watcher_lock()):
        command.main(["--metadata", service.url])
    assert "another watcher is already running on this machine" in capsys.readouterr().out
    assert len(evacuated) == 1
    with pytest.raises(InputError, match="--every"):
        command.main(["--every", "0"])


def test_failed_drain_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho rejected: $3 in $4 s >&2\nexit 1\n")
    python.chmod(0o755)
    for executable, message in (
        (tmp_path / "none", "cannot ask Ray to drain the node"),
        (python, "Ray did not drain the node: rejected: i-1 in 10 s"),
    ):
        monkeypatch.setattr(spot_watcher.sys, "executable", str(executable))
        assert request_drain(10, "i-1") is False
        assert message in caplog.messages[-1]
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(spot_watcher, "DRAIN_TIMEOUT", 0.2)
    assert request_drain(10, "i-1") is False
    assert "timed out" in caplog.messages[-1]


@pytest.mark.slow
def test_drained_node_gets_no_new_work(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """On a real cluster of two nodes, draining does not end trials; they exit on SIGTERM."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=2, env_vars={"RAY_CLOUD_INSTANCE_ID": "i-1"})
        ray.init(address=cluster.address, logging_level="ERROR")

        class Trainable:  # the name that Tune uses
            def run(self) -> None:
                time.sleep(600)

            def pid(self) -> int:
                return os.getpid()

            def node(self) -> str:
                return str(ray.get_runtime_context().get_node_id())

        actor: Any = ray.remote(num_cpus=1, max_restarts=0)(Trainable)
        trial = actor.remote()
        pid = ray.get(trial.pid.remote())
        running = trial.run.remote()
        deadline = time.monotonic() + 60
        while pid not in {process.pid for process in trial_processes()}:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert not request_drain(100, "i-2", cluster.address)
        assert "no node on instance i-2" in caplog.messages[-1]
        assert request_drain(100, "i-1", cluster.address)
        # The next actor waits for another node, although a core of the drained node is free.
        node_id = actor.remote().node.remote()
        new_node = cluster.add_node(num_cpus=2)
        assert ray.get(node_id, timeout=120) == new_node.node_id
        assert psutil.pid_exists(pid)  # draining does not end processes
        psutil.Process(pid).terminate()
        with pytest.raises(ray.exceptions.RayError):
            ray.get(running, timeout=60)
    finally:
        ray.shutdown()
        cluster.shutdown()
