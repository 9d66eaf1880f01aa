"""The steps of docs/cluster-local.md, from `ray up cluster.local.yaml` to `ray down`, with failures in between.

The file is used as shipped, with the values at its top changed as a user would. The tests share the hosts and run in
order: every sweep must reproduce the metrics of the first one, and the last test checks that nothing is left behind.
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

EPOCHS = 60
DATA, STORAGE = f"{SHARED}/datasets/demo", f"{SHARED}/sweeps"
SCRIPT = "sweeps/focal_k.py"
SWEEP = (
    f"{SCRIPT} --address auto --dataset {DATA} --storage {STORAGE} --preset tiny --values 3,9,15 --epochs {EPOCHS} "
    "--set data.frames=16 --set train.repeat=1 --cpus-per-trial 1"
)
TIMEOUT = 900.0  # seconds; the hosts share the cores of one machine
Trials = dict[str, dict[str, Any]]


class Cluster:
    """A user's actions on the laptop. `python -m pytest -s` shows their output."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.tracking = f"http://{hosts.addresses['head']}:5000"
        self.metrics: dict[str, dict[str, float]] = {}  # of the first sweep, by trial

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

    def sweeps(self) -> dict[str, Trials]:
        """Return the trials of each sweep by trial id, by the sweep's run id, in the order in which sweeps started."""
        done = self.hosts.run(
            LAPTOP,
            f"MLFLOW_TRACKING_URI={self.tracking} PYTHONPATH=~/fgst python -m tests.support.cluster.look_script",
        )
        assert done.returncode == 0, done.stdout
        sweeps = json.loads(done.stdout.splitlines()[-1].removeprefix("sweeps:"))
        return {sweep["run_id"]: {trial["trial_id"]: trial for trial in sweep["trials"]} for sweep in sweeps}

    def nodes(self) -> int:
        """Return the number of nodes that are up, according to the head."""
        done = self.hosts.run("head", ". ~/.fgst_env && ray status")
        match = re.search(r"Active:\s+(\d+) local", done.stdout)
        return int(match[1]) if match else 0

    def trains(self, name: str) -> bool:
        """Return whether a host is running a trial."""
        return any(re.match(r"ray::\w+\.train", line) for line in self.hosts.processes(name))

    def all_up(self) -> None:
        """Switch on the hosts that are off, and wait until they have joined the cluster."""
        for name in ("w1", "w2"):
            if name not in self.hosts.names:
                self.hosts.boot(name)
        wait_until(lambda: self.nodes() == 3, "both workers have joined")

    def power_cycle(self, name: str, command: str = "true", tmp_size: str = "") -> None:
        """Run a command on a host, switch the host off and on, and wait until all hosts have joined the cluster."""
        if name in self.hosts.names:
            self.hosts.run(name, command)
            self.hosts.kill(name)
            others = [other for other in self.hosts.names if other != LAPTOP]
            wait_until(lambda: self.nodes() == len(others), "the head has noticed the loss")
        self.hosts.boot(name, tmp_size)
        self.all_up()

    def check_metrics(self, trials: Trials) -> None:
        """Check that a sweep has the same metrics as the first one: all run the same trials, whatever happens."""
        metrics = {trial_id: trial["metrics"] for trial_id, trial in trials.items()}
        self.metrics = self.metrics or metrics
        assert metrics == self.metrics

    def files(self, where: str) -> list[str]:
        """Return the files in a folder, which need not exist; ``where`` may contain further arguments of ``find``."""
        done = self.hosts.run(LAPTOP, f"find {where} -type f")
        return sorted(line for line in done.stdout.splitlines() if not line.startswith("find:"))

    def wait_for_training(self, process: subprocess.Popen[str], known: set[str], *names: str) -> tuple[str, Trials]:
        """Wait until each of the hosts runs a trial and as many trials have completed three epochs.

        Args:
            process: runs the sweep.
            known: run ids of earlier sweeps.

        Returns:
            The sweep's run id and its trials.
        """

        def all_train() -> bool:
            assert process.poll() is None, process.communicate()[0]
            done = self.hosts.run(LAPTOP, f"ls -d {STORAGE}/*/*/epoch-*")
            paths = [Path(line) for line in done.stdout.splitlines() if line.startswith(STORAGE)]
            trials = {path.parent for path in paths if path.parts[-3] not in known and int(path.name[-5:]) >= 3}
            return len(trials) >= len(names) and all(map(self.trains, names))

        wait_until(all_train, "trials have completed three epochs")
        sweeps = self.sweeps()
        (run,) = sweeps.keys() - known
        return run, sweeps[run]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"timeout, waiting until {what}"
        time.sleep(1)


def check_complete(trials: Trials, before: Trials | None = None) -> None:
    """Check that each trial finished in its original run, with each epoch once and with all artifacts."""
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
    # The values at the top of the file, which a user changes.
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
        done = cluster.call(command)
        assert done.returncode == 0, done.stdout
    wait_until(lambda: cluster.nodes() == 2, "the worker has joined")
    cluster.call("ray exec cluster.local.yaml 'ray status'")
    remaining = cluster.files(f"{SHARED} -not -path '{DATA}*' -not -name .own")
    assert remaining == [f"{SHARED}/.fgst-head"]
    return cluster


def test_token_and_password_are_required(cluster: Cluster) -> None:
    connect = "RAY_AUTH_MODE=disabled python -c 'import ray; ray.init(address=\"auto\", log_to_driver=False)'"
    without_token = f"mv ~/.ray/auth_token ~/.ray/hidden; {connect}; mv ~/.ray/hidden ~/.ray/auth_token"
    done = cluster.hosts.run("head", f". ~/.fgst_env && {{ {without_token}; }}")
    assert "uthentication" in done.stdout, done.stdout
    head = cluster.hosts.addresses["head"]
    connect_port = f"python -c 'import socket; socket.create_connection((\"{head}\", %d), 5)'"
    assert "refused" in cluster.hosts.run(LAPTOP, connect_port % 8265).stdout
    assert cluster.hosts.run(LAPTOP, connect_port % 5000).returncode == 0
    users = f"{cluster.tracking}/api/2.0/mlflow/users/get"
    request = f"python -c 'import requests; print(requests.get(\"{users}\").status_code)'"
    assert cluster.hosts.run(LAPTOP, request).stdout.strip() == "401"


def test_sweep_survives_lost_host_and_uses_new_one(cluster: Cluster) -> None:
    process = cluster.start(f"ray exec cluster.local.yaml 'python ~/fgst/{SWEEP}'")
    run, before = cluster.wait_for_training(process, set(), "head", "w1")  # two trials, as each host has one core
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
    """With the laptop's checkout, and on a host that rejoined the cluster."""
    known = cluster.sweeps()
    cluster.all_up()
    tunnel = cluster.start("ray dashboard cluster.local.yaml")
    connect_port = "python -c 'import socket; socket.create_connection((\"127.0.0.1\", 8265))'"
    wait_until(lambda: cluster.hosts.run(LAPTOP, connect_port).returncode == 0, "the tunnel to the dashboard is open")
    # A change in this checkout only: jobs use the submitted code, not the copies of `ray up`.
    cluster.call(f"sed -i 's/title=.*/title=\"From the job?\",/' {SCRIPT}")
    done = cluster.call(f"ray job submit --address http://127.0.0.1:8265 --working-dir . -- python {SWEEP}")
    cluster.hosts.stop(LAPTOP, "ray dashboard")
    tunnel.communicate(timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout
    assert "From the job?" in done.stdout
    sweeps = cluster.sweeps()
    (run,) = sweeps.keys() - known.keys()
    check_complete(sweeps[run])
    cluster.check_metrics(sweeps[run])


def test_sweep_survives_slow_host_and_stalled_folder(cluster: Cluster) -> None:
    known = cluster.sweeps()
    cluster.all_up()
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
    cluster.power_cycle("w1", "echo export RAY_CLOUD_INSTANCE_ID=i-w1 >>~/.bashrc")  # as set by a cloud's autoscaler
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
    wait_until(lambda: not cluster.trains("w1"), "the trial has exited")
    start = time.monotonic()
    while time.monotonic() < start + 10 and cluster.trains("head") and cluster.trains("w2"):
        assert not cluster.trains("w1")  # its core is free, but the trial waits for another node
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
    cluster.all_up()
    process = cluster.start(f"ray exec cluster.local.yaml 'python ~/fgst/{SWEEP}'")
    run, before = cluster.wait_for_training(process, set(known), "w1", "w2")
    cluster.hosts.kill("head")
    process.communicate(timeout=TIMEOUT)
    assert process.returncode != 0
    cluster.hosts.boot("head")
    done = cluster.call("ray up -y cluster.local.yaml")
    assert done.returncode == 0, done.stdout
    resume = f"python ~/fgst/{SCRIPT} --resume {run} --address auto --cpus-per-trial 1"
    done = cluster.call(f"ray exec cluster.local.yaml '{resume}'")
    assert done.returncode == 0, done.stdout
    sweeps = cluster.sweeps()
    check_complete(sweeps[run], before)
    cluster.check_metrics(sweeps[run])
    wait_until(lambda: cluster.nodes() == 3, "both workers have joined")


def test_down_leaves_no_processes(cluster: Cluster) -> None:
    done = cluster.call("ray exec cluster.local.yaml 'bash ~/fgst/cluster/local.sh stop'")
    assert done.returncode == 0, done.stdout
    done = cluster.call("ray down -y cluster.local.yaml")
    assert done.returncode == 0, done.stdout
    for name in cluster.hosts.names:
        if name == LAPTOP:
            continue
        running = [line for line in cluster.hosts.processes(name) if not line.startswith("sshd:")]
        assert [line for line in running if re.search("ray|mlflow|postgres|fgst", line)] == [], name
