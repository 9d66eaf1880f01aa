"""`ray up cluster.local.yaml`, a day of a small cluster, and `ray down`: the steps of docs/cluster-local.md.

The file is used as it is shipped, with the values at its top changed as its user would. One test after another on the
same hosts: the second looks whether the first one's figures come again, the last one whether anything is left.
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
TIMEOUT = 900.0  # hosts share the cores of one machine
TrialFactory = dict[str, dict[str, Any]]


class Cluster:
    """What a user does on the laptop; `python -m pytest -s` shows what they see."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.tracking = f"http://{hosts.addresses['head']}:5000"
        self.figures: dict[str, dict[str, float]] = {}

    def type(self, command: str) -> subprocess.CompletedProcess[str]:
        process = self.start(command)
        out, _ = process.communicate(timeout=TIMEOUT)
        print(out, flush=True)
        return subprocess.CompletedProcess(command, process.returncode, out, "")

    def start(self, command: str) -> subprocess.Popen[str]:
        print(f"\n$ {command}", flush=True)
        exports = f"export RAY_AUTH_MODE=token MLFLOW_TRACKING_URI={self.tracking}"
        return self.hosts.start(LAPTOP, f"cd ~/fgst && {exports} && {command}")

    def sweeps(self) -> dict[str, TrialFactory]:
        """The trials of each sweep by their keys, by the sweep's run id, in the order in which they began."""
        done = self.hosts.run(
            LAPTOP,
            f"MLFLOW_TRACKING_URI={self.tracking} PYTHONPATH=~/fgst:~/fgst/tests python ~/fgst/tests/cluster/look.py",
        )
        assert done.returncode == 0, done.stdout
        told = json.loads(done.stdout.splitlines()[-1].removeprefix("sweeps:"))
        return {sweep["run"]: {trial["key"]: trial for trial in sweep["trials"]} for sweep in told}

    def nodes(self) -> int:
        """How many the head counts."""
        done = self.hosts.run("head", ". ~/.fgst_env && ray status")
        match = re.search(r"Active:\s+(\d+) local", done.stdout)
        return int(match[1]) if match else 0

    def trains(self, name: str) -> bool:
        return any(re.match(r"ray::\w+\.train", line) for line in self.hosts.processes(name))

    def all_up(self) -> None:
        """Whoever is off is switched on, and taken in by itself."""
        for name in ("w1", "w2"):
            if name not in self.hosts.names:
                self.hosts.boot(name)
        wait_until(lambda: self.nodes() == 3, "both workers are there")

    def power_cycle(self, name: str, command: str = "true", tmp_size: str = "") -> None:
        """A host is switched off and on, with a command before; it and whoever else is off are taken in again."""
        if name in self.hosts.names:
            self.hosts.run(name, command)
            self.hosts.kill(name)
            others = [other for other in self.hosts.names if other != LAPTOP]
            wait_until(lambda: self.nodes() == len(others), "the head has noticed")
        self.hosts.boot(name, tmp_size)
        self.all_up()

    def as_ever(self, trials: TrialFactory) -> None:
        """Every sweep here is the same one, whatever happened to it: so are its figures."""
        found = {key: trial["figures"] for key, trial in trials.items()}
        self.figures = self.figures or found
        assert found == self.figures

    def files(self, where: str) -> list[str]:
        """In a folder, which may not exist; with further conditions of ``find``."""
        done = self.hosts.run(LAPTOP, f"find {where} -type f")
        return sorted(line for line in done.stdout.splitlines() if not line.startswith("find:"))

    def middle(self, process: subprocess.Popen[str], known: set[str], *names: str) -> tuple[str, TrialFactory]:
        """The sweep's run id and trials, once each of the hosts trains one that has three epochs behind it."""

        def come_so_far() -> bool:
            assert process.poll() is None, process.communicate()[0]
            done = self.hosts.run(LAPTOP, f"ls -d {STORAGE}/*/*/epoch-*")
            paths = [Path(line) for line in done.stdout.splitlines() if line.startswith(STORAGE)]
            far = {path.parent for path in paths if path.parts[-3] not in known and int(path.name[-5:]) >= 3}
            return len(far) >= len(names) and all(map(self.trains, names))

        wait_until(come_so_far, "trials in the middle")
        sweeps = self.sweeps()
        (run,) = sweeps.keys() - known
        return run, sweeps[run]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(1)


def complete(trials: TrialFactory, before: TrialFactory | None = None) -> None:
    """Each trial is finished in the run that it began, has each epoch once, and left all that it should."""
    assert len(trials) == 3
    for trial in trials.values():
        assert (trial["status"], trial["ending"]) == ("FINISHED", "finished")
        assert trial["epochs"] == list(range(1, EPOCHS + 1))
        assert trial["files"] == ["checkpoint/model.safetensors", "scores/test.arrow", "figures/confusion.png"]
    for key, trial in (before or {}).items():
        assert trials[key]["run"] == trial["run"]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if reason := missing():
        pytest.skip(reason)
    pytest.importorskip("aiohttp_cors", reason="install the extra: pip install -e '.[cluster]'")
    found = Hosts(Path(tempfile.mkdtemp(prefix="fgst-hosts-")) / "state", "head", "w1", "w2")
    try:
        yield found
    finally:
        folder = found.folder
        found.end()
        folder.parent.rmdir()
        assert not found.left()


@pytest.fixture(scope="module")
def cluster(hosts: Hosts) -> Cluster:
    """Up, of a head and one worker; a second one is off."""
    for name in (LAPTOP, "head", "w1"):
        hosts.boot(name)
    here = Cluster(hosts)
    # What a user changes at the top of the file, and nothing else.
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
        done = here.type(command)
        assert done.returncode == 0, done.stdout
    wait_until(lambda: here.nodes() == 2, "the worker is there")
    here.type("ray exec cluster.local.yaml 'ray status'")
    left = here.files(f"{SHARED} -not -path '{DATA}*' -not -name .own")
    assert left == [f"{SHARED}/.fgst-head"]
    return here


def test_whoever_has_no_token_and_no_password_is_refused(cluster: Cluster) -> None:
    without = "RAY_AUTH_MODE=disabled python -c 'import ray; ray.init(address=\"auto\", log_to_driver=False)'"
    aside = f"mv ~/.ray/auth_token ~/.ray/away; {without}; mv ~/.ray/away ~/.ray/auth_token"
    done = cluster.hosts.run("head", f". ~/.fgst_env && {{ {aside}; }}")
    assert "uthentication" in done.stdout, done.stdout
    head = cluster.hosts.addresses["head"]
    knock = f"python -c 'import socket; socket.create_connection((\"{head}\", %d), 5)'"
    assert "refused" in cluster.hosts.run(LAPTOP, knock % 8265).stdout
    assert cluster.hosts.run(LAPTOP, knock % 5000).returncode == 0
    users = f"{cluster.tracking}/api/2.0/mlflow/users/get"
    ask = f"python -c 'import requests; print(requests.get(\"{users}\").status_code)'"
    assert cluster.hosts.run(LAPTOP, ask).stdout.strip() == "401"


def test_a_sweep_goes_on_when_a_host_dies_and_another_joins(cluster: Cluster) -> None:
    process = cluster.start(f"ray exec cluster.local.yaml 'python ~/fgst/{SWEEP}'")
    run, before = cluster.middle(process, set(), "head", "w1")  # one core each: two trials
    cluster.hosts.kill("w1")
    cluster.hosts.boot("w2")
    out, _ = process.communicate(timeout=TIMEOUT)
    print(out, flush=True)
    assert process.returncode == 0, out
    assert "python -m fgst.evaluate --run-id" in out
    trials = cluster.sweeps()[run]
    complete(trials, before)
    cluster.as_ever(trials)
    assert not cluster.files(f"{STORAGE}/{run}")  # a whole sweep leaves no checkpoints behind: MLflow has the models


def test_the_same_by_the_job_api_gives_the_same_figures(cluster: Cluster) -> None:
    """With the laptop's own checkout, on a host that came back by itself."""
    known = cluster.sweeps()
    cluster.all_up()
    tunnel = cluster.start("ray dashboard cluster.local.yaml")
    knock = "python -c 'import socket; socket.create_connection((\"127.0.0.1\", 8265))'"
    wait_until(lambda: cluster.hosts.run(LAPTOP, knock).returncode == 0, "the dashboard's tunnel is there")
    # Something that only this checkout has: the job is run from it, not from what `ray up` copied.
    cluster.type(f"sed -i 's/title=.*/title=\"From the job?\",/' {SCRIPT}")
    done = cluster.type(f"ray job submit --address http://127.0.0.1:8265 --working-dir . -- python {SWEEP}")
    cluster.hosts.stop(LAPTOP, "ray dashboard")
    tunnel.communicate(timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout
    assert "From the job?" in done.stdout
    sweeps = cluster.sweeps()
    (run,) = sweeps.keys() - known.keys()
    complete(sweeps[run])
    cluster.as_ever(sweeps[run])


def test_a_slow_host_and_a_folder_that_stalls_cost_nothing(cluster: Cluster) -> None:
    known = cluster.sweeps()
    cluster.all_up()
    process = cluster.start(f"ray exec cluster.local.yaml 'python ~/fgst/{SWEEP}'")
    run, before = cluster.middle(process, set(known), "w1", "w2")
    with cluster.hosts.frozen("w1"):
        time.sleep(20)
    if cluster.hosts.can_stall:
        with cluster.hosts.stalled():
            time.sleep(30)
    out, _ = process.communicate(timeout=TIMEOUT)
    print(out, flush=True)
    assert process.returncode == 0, out
    sweeps = cluster.sweeps()
    complete(sweeps[run], before)
    cluster.as_ever(sweeps[run])
    assert cluster.nodes() == 3


def test_a_spot_warning_moves_the_trials_before_the_host_goes(cluster: Cluster) -> None:
    known = cluster.sweeps()
    cluster.power_cycle("w1", "echo export RAY_CLOUD_INSTANCE_ID=i-w1 >>~/.bashrc")  # as a cloud's autoscaler says it
    laptop = cluster.hosts.addresses[LAPTOP]
    service = cluster.start(f"exec python tests/cluster/imds.py {laptop} 8111 i-w1")
    watch = cluster.hosts.start(
        "w1", f". ~/.fgst_env && exec python -m fgst.ops.spot_watcher --every 1 --metadata http://{laptop}:8111"
    )
    process = cluster.start(f"ray exec cluster.local.yaml 'python ~/fgst/{SWEEP}'")
    run, before = cluster.middle(process, set(known), "head", "w1", "w2")
    warn = f"import urllib.request as r; r.urlopen('http://{laptop}:8111/', b'90')"
    assert cluster.hosts.run(LAPTOP, f'python -c "{warn}"').returncode == 0
    said, _ = watch.communicate(timeout=TIMEOUT)
    print(said, flush=True)
    assert re.search(r"terminate in \d+ s\n1 processes were told to end", said)
    wait_until(lambda: not cluster.trains("w1"), "the trial has left")
    waited = time.monotonic()
    while time.monotonic() < waited + 10 and cluster.trains("head") and cluster.trains("w2"):
        assert not cluster.trains("w1")  # it has a free place, and the trial waits for another
        time.sleep(1)
    cluster.hosts.kill("w1")
    out, _ = process.communicate(timeout=TIMEOUT)
    print(out, flush=True)
    cluster.hosts.stop(LAPTOP, "imds.py")
    service.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, out
    sweeps = cluster.sweeps()
    complete(sweeps[run], before)
    cluster.as_ever(sweeps[run])


def test_a_host_whose_disk_is_full_is_done_without(cluster: Cluster) -> None:
    known = cluster.sweeps()
    cluster.power_cycle("w1", tmp_size="64m")
    process = cluster.start(f"ray exec cluster.local.yaml 'python ~/fgst/{SWEEP}'")
    run, before = cluster.middle(process, set(known), "w1", "w2")
    assert "No space left" in cluster.hosts.run("w1", "cat /dev/zero >/tmp/full").stdout
    out, _ = process.communicate(timeout=TIMEOUT)
    print(out, flush=True)
    cluster.hosts.kill("w1")
    assert process.returncode == 0, out
    assert "the disk is full on w1: what ran there goes on elsewhere" in out
    sweeps = cluster.sweeps()
    complete(sweeps[run], before)
    cluster.as_ever(sweeps[run])


def test_a_sweep_goes_on_after_the_head_was_restarted(cluster: Cluster) -> None:
    known = cluster.sweeps()
    cluster.all_up()
    process = cluster.start(f"ray exec cluster.local.yaml 'python ~/fgst/{SWEEP}'")
    run, before = cluster.middle(process, set(known), "w1", "w2")
    cluster.hosts.kill("head")
    process.communicate(timeout=TIMEOUT)
    assert process.returncode != 0
    cluster.hosts.boot("head")
    done = cluster.type("ray up -y cluster.local.yaml")
    assert done.returncode == 0, done.stdout
    resume = f"python ~/fgst/{SCRIPT} --resume {run} --address auto --cpus-per-trial 1"
    done = cluster.type(f"ray exec cluster.local.yaml '{resume}'")
    assert done.returncode == 0, done.stdout
    sweeps = cluster.sweeps()
    complete(sweeps[run], before)
    cluster.as_ever(sweeps[run])
    wait_until(lambda: cluster.nodes() == 3, "both workers are there again")


def test_down_leaves_nothing(cluster: Cluster) -> None:
    done = cluster.type("ray exec cluster.local.yaml 'bash ~/fgst/cluster/local.sh stop'")
    assert done.returncode == 0, done.stdout
    done = cluster.type("ray down -y cluster.local.yaml")
    assert done.returncode == 0, done.stdout
    for name in cluster.hosts.names:
        if name == LAPTOP:
            continue
        running = [line for line in cluster.hosts.processes(name) if not line.startswith("sshd:")]
        assert [line for line in running if re.search("ray|mlflow|postgres|fgst", line)] == [], name
