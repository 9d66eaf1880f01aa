"""The steps of ``docs/cluster-local.md`` from ``ray up cluster.local.yaml`` to ``ray down``, with failures of hosts.

The file is the shipped one; only the values at its top are changed, as a user changes them. The tests share the hosts
and run in order: every sweep must reproduce the metrics of the first one, and the last test checks that no process
remains.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster.hosts import LAPTOP, SHARED, Hosts, missing

pytestmark = pytest.mark.slow

EPOCHS = 120
DATA, STORAGE = f"{SHARED}/datasets/demo", f"{SHARED}/sweeps"
SCRIPT = "sweeps/focal_k.py"
SWEEP = (
    f"{SCRIPT} --address auto --dataset {DATA} --storage {STORAGE} --preset tiny --values 3,9,15 --epochs {EPOCHS} "
    "--set data.frames=16 --set train.repeat=1 --cpus-per-trial 1"
)
TIMEOUT = 900.0  # seconds; the hosts share the cores of one machine
TrialsById = dict[str, dict[str, Any]]


class Cluster:
    """Actions of a user on the laptop; ``python -m pytest -s`` shows their output."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.tracking = f"http://{hosts.addresses['head']}:5000"
        self.metrics: dict[str, dict[str, float]] = {}  # of the first sweep, by trial id

    def call(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the laptop."""
        process = self.start(command)
        out, _ = process.communicate(timeout=TIMEOUT)
        print(out, flush=True)
        return subprocess.CompletedProcess(command, process.returncode, out, "")

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a command on the laptop."""
        print(f"\n$ {command}", flush=True)
        exports = f"export RAY_AUTH_MODE=token MLFLOW_TRACKING_URI={self.tracking}"
        return self.hosts.start(LAPTOP, f"cd ~/fgst && {exports} && {command}")

    def sweeps(self) -> dict[str, TrialsById]:
        """Return the trials by trial id for each sweep's run id; sweeps are in the order in which they started."""
        result = self.hosts.run(
            LAPTOP,
            f"MLFLOW_TRACKING_URI={self.tracking} PYTHONPATH=~/fgst python -m tests.support.cluster.look_script",
        )
        assert result.returncode == 0, result.stdout
        sweeps = json.loads(result.stdout.splitlines()[-1].removeprefix("sweeps:"))
        return {sweep["run_id"]: {trial["trial_id"]: trial for trial in sweep["trials"]} for sweep in sweeps}

    def nodes(self) -> int:
        """Return the number of nodes that are up, according to the head."""
        result = self.hosts.run("head", ". ~/.fgst_env && ray status")
        match = re.search(r"Active:\s+(\d+) local", result.stdout)
        return int(match[1]) if match else 0

    def is_training(self, name: str) -> bool:
        """Return whether a host is running a trial."""
        return any(re.match(r"ray::\w+\.train", line) for line in self.hosts.processes(name))

    def start_workers(self) -> None:
        """Switch on the workers that are off, and wait until they have joined the cluster."""
        for name in ("w1", "w2"):
            if name not in self.hosts.names:
                self.hosts.boot(name)
        wait_until(lambda: self.nodes() == 3, "both workers have joined")

    def power_cycle(self, name: str, command: str = "true", tmp_size: str = "") -> None:
        """Run a command on a worker, switch it off and on again, and wait until all workers have joined the cluster."""
        if name in self.hosts.names:
            self.hosts.run(name, command)
            self.hosts.kill(name)
            others = [other for other in self.hosts.names if other != LAPTOP]
            wait_until(lambda: self.nodes() == len(others), "the head has noticed the loss")
        self.hosts.boot(name, tmp_size)
        self.start_workers()

    def check_metrics(self, trials: TrialsById) -> None:
        """Check that a sweep has the same metrics as the first one, which has the same trials."""
        metrics = {trial_id: trial["metrics"] for trial_id, trial in trials.items()}
        self.metrics = self.metrics or metrics
        assert metrics == self.metrics

    def files(self, location: str) -> list[str]:
        """Return the files below a folder, if it exists; ``location`` may contain further arguments of ``find``."""
        result = self.hosts.run(LAPTOP, f"find {location} -type f")
        return sorted(line for line in result.stdout.splitlines() if not line.startswith("find:"))

    def wait_for_training(self, process: subprocess.Popen[str], known: set[str], *names: str) -> tuple[str, TrialsById]:
        """Wait until each of the hosts runs a trial and as many trials have completed three epochs.

        Args:
            process: runs the sweep.
            known: run ids of earlier sweeps.

        Returns:
            The sweep's run id and its trials.
        """

        def all_hosts_train() -> bool:
            assert process.poll() is None, process.communicate()[0]
            result = self.hosts.run(LAPTOP, f"ls -d {STORAGE}/*/*/epoch-*")
            paths = [Path(line) for line in result.stdout.splitlines() if line.startswith(STORAGE)]
            trials = {path.parent for path in paths if path.parts[-3] not in known and int(path.name[-5:]) >= 3}
            return len(trials) >= len(names) and all(map(self.is_training, names))

        wait_until(all_hosts_train, "trials have completed three epochs")
        sweeps = self.sweeps()
        (run,) = sweeps.keys() - known
        return run, sweeps[run]


def wait_until(condition: Callable[[], bool], description: str) -> None:
    """Wait until a condition holds; after ``TIMEOUT`` seconds, fail with its description."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"timeout while waiting until {description}"
        time.sleep(1)


def check_complete(trials: TrialsById, before: TrialsById | None = None) -> None:
    """Check that each trial finished, in the run in which it started, with each epoch once and with all artifacts."""
    assert len(trials) == 3
    for trial in trials.values():
        assert (trial["status"], trial["outcome"]) == ("FINISHED", "finished")
        assert trial["epochs"] == list(range(1, EPOCHS + 1))
        assert trial["files"] == ["checkpoint/model.safetensors", "scores/test.arrow", "figures/confusion.png"]
    for trial_id, trial in (before or {}).items():
        assert trials[trial_id]["run_id"] == trial["run_id"]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if reason := missing():
        pytest.skip(reason)
    pytest.importorskip("aiohttp_cors", reason="install the extra: pip install -e '.[cluster]'")
    hosts = Hosts(Path(tempfile.mkdtemp(prefix="fgst-hosts-")) / "state", "head", "w1", "w2")
    try:
        yield hosts
    finally:
        folder = hosts.folder
        hosts.end()
        folder.parent.rmdir()
        assert not hosts.left()


@pytest.fixture(scope="module")
def cluster(hosts: Hosts) -> Cluster:
    """A cluster of a head and one worker; the second worker is off."""
    for name in (LAPTOP, "head", "w1"):
        hosts.boot(name)
    cluster = Cluster(hosts)
    # The values at the top of the file, which users change.
    file = hosts.folder / LAPTOP / "home" / "fgst" / "cluster.local.yaml"
    text = file.read_text()
    for old, new in (
        ("head: &head 192.168.1.10", f"head: &head {hosts.addresses['head']}"),
        ("&workers [192.168.1.11, 192.168.1.12]", f"&workers [{hosts.addresses['w1']}, {hosts.addresses['w2']}]"),
        ("user: &user CHANGE-ME", "user: &user root"),
        ("FGST_SHARED=/CHANGE/ME", f"FGST_SHARED={SHARED}"),
        ("FGST_HEAD_CORES=all", "FGST_HEAD_CORES=1"),
        ("FGST_WORKER_CORES=all", "FGST_WORKER_CORES=1"),
        ("FGST_VENV=~/.fgst-venv", f"FGST_VENV={sys.prefix}"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    file.write_text(text)
    for command in (
        "(umask 077; ray get-auth-token --generate >/dev/null)",
        "(umask 077; mkdir -p ~/.mlflow; printf '[mlflow]\\nmlflow_tracking_username = admin\\n"
        "mlflow_tracking_password = %s\\n' $(python -c 'import secrets; print(secrets.token_hex(16))')"
        " >~/.mlflow/credentials)",
        "ray up -y cluster.local.yaml",
        f"ray exec cluster.local.yaml 'python -m data_prep.demo {DATA} --clips 96 --classes 4'",
    ):
        result = cluster.call(command)
        assert result.returncode == 0, result.stdout
    wait_until(lambda: cluster.nodes() == 2, "the worker has joined")
    cluster.call("ray exec cluster.local.yaml 'ray status'")
    remaining = cluster.files(f"{SHARED} -not -path '{DATA}*' -not -name .own")
    assert remaining == [f"{SHARED}/.fgst-head"]
    return cluster


def test_token_and_password_are_required(cluster: Cluster) -> None:
    connect = "RAY_AUTH_MODE=disabled python -c 'import ray; ray.init(address=\"auto\", log_to_driver=False)'"
    without_token = f"mv ~/.ray/auth_token ~/.ray/hidden; {connect}; mv ~/.ray/hidden ~/.ray/auth_token"
    result = cluster.hosts.run("head", f". ~/.fgst_env && {{ {without_token}; }}")
    assert "uthentication" in result.stdout, result.stdout
    head = cluster.hosts.addresses["head"]
    connect_port = f"python -c 'import socket; socket.create_connection((\"{head}\", %d), 5)'"
    assert "refused" in cluster.hosts.run(LAPTOP, connect_port % 8265).stdout
    assert cluster.hosts.run(LAPTOP, connect_port % 5000).returncode == 0
    users = f"{cluster.tracking}/api/2.0/mlflow/users/get"
    request = f"python -c 'import requests; print(requests.get(\"{users}\").status_code)'"
    assert cluster.hosts.run(LAPTOP, request).stdout.strip() == "401"


def test_sweep_survives_lost_host_and_uses_new_one(cluster: Cluster) -> None:
    process = cluster.start(f"ray exec cluster.local.yaml 'python ~/fgst/{SWEEP}'")
    run, before = cluster.wait_for_training(process, set(), "head", "w1")  # two trials, because each host has one core
    cluster.hosts.kill("w1")
    cluster.hosts.boot("w2")
    out, _ = process.communicate(timeout=TIMEOUT)
    print(out, flush=True)
    assert process.returncode == 0, out
    assert "python -m fgst.evaluate --run-id" in out
    trials = cluster.sweeps()[run]
    check_complete(trials, before)
    cluster.check_metrics(trials)
    assert not cluster.files(f"{STORAGE}/{run}")  # checkpoints are deleted after a sweep; MLflow has the models


def test_job_api_reproduces_sweep(cluster: Cluster) -> None:
    """The job uses the checkout of the laptop, and a host that has rejoined the cluster."""
    known = cluster.sweeps()
    cluster.start_workers()
    tunnel = cluster.start("ray dashboard cluster.local.yaml")
    connect_port = "python -c 'import socket; socket.create_connection((\"127.0.0.1\", 8265))'"
    wait_until(lambda: cluster.hosts.run(LAPTOP, connect_port).returncode == 0, "the tunnel to the dashboard is open")
    # Only this checkout is changed: jobs use the submitted code instead of the copies of `ray up`.
    cluster.call(f"sed -i 's/title=.*/title=\"From the job?\",/' {SCRIPT}")
    result = cluster.call(f"ray job submit --address http://127.0.0.1:8265 --working-dir . -- python {SWEEP}")
    cluster.hosts.stop(LAPTOP, "ray dashboard")
    tunnel.communicate(timeout=TIMEOUT)
    assert result.returncode == 0, result.stdout
    assert "From the job?" in result.stdout
    sweeps = cluster.sweeps()
    (run,) = sweeps.keys() - known.keys()
    check_complete(sweeps[run])
    cluster.check_metrics(sweeps[run])


def test_sweep_survives_slow_host_and_stalled_folder(cluster: Cluster) -> None:
    known = cluster.sweeps()
    cluster.start_workers()
    process = cluster.start(f"ray exec cluster.local.yaml 'python ~/fgst/{SWEEP}'")
    run, before = cluster.wait_for_training(process, set(known), "w1", "w2")
    with cluster.hosts.frozen("w1"):
        time.sleep(20)
    if cluster.hosts.can_stall:
        with cluster.hosts.stalled():
            time.sleep(30)
    out, _ = process.communicate(timeout=TIMEOUT)
    print(out, flush=True)
    assert process.returncode == 0, out
    sweeps = cluster.sweeps()
    check_complete(sweeps[run], before)
    cluster.check_metrics(sweeps[run])
    assert cluster.nodes() == 3


def test_spot_notice_moves_trials_before_host_is_lost(cluster: Cluster) -> None:
    known = cluster.sweeps()
    cluster.power_cycle(
        "w1", "echo export RAY_CLOUD_INSTANCE_ID=i-w1 >>~/.bashrc"
    )  # as an autoscaler of a cloud sets it
    laptop = cluster.hosts.addresses[LAPTOP]
    service = cluster.start(f"exec python -m tests.support.cluster.metadata_service {laptop} 8111 i-w1")
    watcher = cluster.hosts.start(
        "w1", f". ~/.fgst_env && exec python -m fgst.cli.spot_watcher --every 1 --metadata http://{laptop}:8111"
    )
    process = cluster.start(f"ray exec cluster.local.yaml 'python ~/fgst/{SWEEP}'")
    run, before = cluster.wait_for_training(process, set(known), "head", "w1", "w2")
    announce = f"import urllib.request as r; r.urlopen('http://{laptop}:8111/', b'90')"
    assert cluster.hosts.run(LAPTOP, f'python -c "{announce}"').returncode == 0
    output, _ = watcher.communicate(timeout=TIMEOUT)
    print(output, flush=True)
    assert re.search(r"terminate in \d+ s\nsent SIGTERM to 1 trial processes", output)
    wait_until(lambda: not cluster.is_training("w1"), "the trial has exited")
    start = time.monotonic()
    while time.monotonic() < start + 10 and cluster.is_training("head") and cluster.is_training("w2"):
        assert not cluster.is_training("w1")  # its core is free, but the trial waits for another node
        time.sleep(1)
    cluster.hosts.kill("w1")
    out, _ = process.communicate(timeout=TIMEOUT)
    print(out, flush=True)
    cluster.hosts.stop(LAPTOP, "metadata_service")
    service.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, out
    sweeps = cluster.sweeps()
    check_complete(sweeps[run], before)
    cluster.check_metrics(sweeps[run])


def test_sweep_avoids_host_with_full_disk(cluster: Cluster) -> None:
    known = cluster.sweeps()
    cluster.power_cycle("w1", tmp_size="64m")
    process = cluster.start(f"ray exec cluster.local.yaml 'python ~/fgst/{SWEEP}'")
    run, before = cluster.wait_for_training(process, set(known), "w1", "w2")
    assert "No space left" in cluster.hosts.run("w1", "cat /dev/zero >/tmp/full").stdout
    out, _ = process.communicate(timeout=TIMEOUT)
    print(out, flush=True)
    cluster.hosts.kill("w1")
    assert process.returncode == 0, out
    assert "disk full on w1: its trials continue on other nodes" in out
    sweeps = cluster.sweeps()
    check_complete(sweeps[run], before)
    cluster.check_metrics(sweeps[run])


def test_sweep_resumes_after_restart_of_head(cluster: Cluster) -> None:
    known = cluster.sweeps()
    cluster.start_workers()
    process = cluster.start(f"ray exec cluster.local.yaml 'python ~/fgst/{SWEEP}'")
    run, before = cluster.wait_for_training(process, set(known), "w1", "w2")
    cluster.hosts.kill("head")
    process.communicate(timeout=TIMEOUT)
    assert process.returncode != 0
    cluster.hosts.boot("head")
    result = cluster.call("ray up -y cluster.local.yaml")
    assert result.returncode == 0, result.stdout
    resume = f"python ~/fgst/{SCRIPT} --resume {run} --address auto --cpus-per-trial 1"
    result = cluster.call(f"ray exec cluster.local.yaml '{resume}'")
    assert result.returncode == 0, result.stdout
    sweeps = cluster.sweeps()
    check_complete(sweeps[run], before)
    cluster.check_metrics(sweeps[run])
    wait_until(lambda: cluster.nodes() == 3, "both workers have joined")


def test_down_leaves_no_processes(cluster: Cluster) -> None:
    result = cluster.call("ray exec cluster.local.yaml 'bash ~/fgst/cluster/local.sh stop'")
    assert result.returncode == 0, result.stdout
    result = cluster.call("ray down -y cluster.local.yaml")
    assert result.returncode == 0, result.stdout
    for name in cluster.hosts.names:
        if name == LAPTOP:
            continue
        running = [line for line in cluster.hosts.processes(name) if not line.startswith("sshd:")]
        assert [line for line in running if re.search("ray|mlflow|postgres|fgst", line)] == [], name
