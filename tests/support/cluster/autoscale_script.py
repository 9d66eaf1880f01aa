"""Run a sweep on an autoscaling cluster that starts without workers.

`test_real_ray.py` runs this script in its own namespaces. Ray is real: `ray up cluster.yaml` starts a head, whose
autoscaler requests a spot instance from moto when trials wait for a GPU, sets it up over "ssh", starts Ray on it, and
terminates it when it is idle. Instances are folders of this machine (folder_nodes.py). Data and checkpoints are in
moto's bucket; the tracking server is real and is accessed with the credentials file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))
TIMEOUT = 600.0  # seconds
ADDRESS = "10.77.0.1"  # of all nodes; sweeps reject a tracking server on a loopback address


def main() -> None:
    folder = Path(sys.argv[1])
    for command in (
        ("ip", "link", "set", "lo", "up"),
        ("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"),
        ("mount", "-t", "tmpfs", "tmpfs", "/tmp/ray"),
    ):
        subprocess.run(command, check=True)
    os.chdir(ROOT)
    os.environ |= {
        "AWS_DEFAULT_REGION": "us-east-1",
        "FGST_RAY": str(Path(sys.executable).with_name("ray")),
        "MLFLOW_TRACKING_URI": f"http://{ADDRESS}:5000",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
    }
    from tests.support.cluster.aws_account import aws_account

    changes = {"idle_timeout_minutes: 10": "idle_timeout_minutes: 0.1"}
    with aws_account(folder, os.environ.__setitem__, **changes) as account:
        server = start_tracking_server(folder)
        try:
            run(folder, account)
        finally:
            server.terminate()
            server.wait()
    print("the cluster scaled up for the sweep and down again")


def start_tracking_server(folder: Path) -> subprocess.Popen[str]:
    from tests.support.cluster.aws_account import PASSWORD

    command = [sys.executable, "-m", "fgst.server", "--sqlite", "--host", "0.0.0.0", "--dir", str(folder / "server")]
    server = subprocess.Popen(
        command, env={**os.environ, "FGST_SERVER_PASSWORD": PASSWORD}, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    assert "tracking server on" in server.stdout.readline()
    return server


def run(folder: Path, account: object) -> None:
    """Start the cluster, run a sweep, wait until the workers are terminated, and shut the cluster down."""
    import boto3

    from fgst.tracking.store import TrackingStore
    from tests.support.cluster.aws_account import BUCKET, Account
    from tests.support.cluster.folder_nodes import Nodes
    from tests.support.small import write_small
    from tests.support.workspace import TINY

    assert isinstance(account, Account)
    bucket = boto3.resource("s3", "us-east-1").create_bucket(Bucket=BUCKET)
    for file in write_small(folder / "data").path.iterdir():
        bucket.upload_file(str(file), f"fgst/datasets/small/{file.name}")
    nodes = Nodes(folder / "nodes")
    result = account.ray("up", "-y", "--no-config-cache", str(account.file))
    assert result.returncode == 0, result.stdout + result.stderr
    (head,) = account.instances()
    sweep = subprocess.run(
        [
            *(sys.executable, str(ROOT / "sweeps" / "focal_k.py"), "--address", "auto"),
            *("--preset", "tiny", "--epochs", "2"),
            *("--dataset", f"s3://{BUCKET}/fgst/datasets/small", "--storage", f"s3://{BUCKET}/fgst/sweeps"),
            *("--values", "2,4", "--gpus-per-trial", "0.5", *TINY),
        ],
        cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    logs = "".join(log.read_text()[-4000:] for log in Path("/tmp/ray/session_latest/logs").glob("monitor*"))
    assert sweep.returncode == 0, sweep.stdout + sweep.stderr + logs
    workers = [i for i in account.instances() if i["InstanceId"] != head["InstanceId"]]
    for worker in workers:
        assert (worker["InstanceLifecycle"], worker["InstanceType"]) == ("spot", "g6.xlarge")
        calls = [call.line for call in nodes.calls(worker["PrivateIpAddress"])]
        assert any(line.startswith("uv pip install") for line in calls), calls
    store = TrackingStore()
    experiments = [e.experiment_id for e in store.client.search_experiments()]
    (parent,) = store.client.search_runs(experiments, "tags.`fgst.kind` = 'sweep'")
    assert [child.info.status for child in store.children(parent.info.run_id)] == ["FINISHED"] * 2
    deadline = time.monotonic() + TIMEOUT
    while len(account.instances()) > 1:
        assert time.monotonic() < deadline, f"idle workers were not terminated: {logs}"
        time.sleep(1)
    result = account.ray("down", "-y", str(account.file))
    assert result.returncode == 0, result.stdout + result.stderr
    assert account.instances() == []


if __name__ == "__main__":
    main()
