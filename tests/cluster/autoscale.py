"""A cluster that starts a spot machine for a task and ends it again (`test_real_ray.py` gives this a namespace).

Ray is whole here: `ray up` starts a head, and its autoscaler asks "AWS" for a worker when something waits for a GPU,
sets it up over "ssh" and starts Ray on it. What moto calls machines are folders, and all of them this one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
PATIENCE = 300.0


def main() -> None:
    folder = Path(sys.argv[1])
    for command in (("ip", "link", "set", "lo", "up"), ("mount", "-t", "tmpfs", "tmpfs", "/tmp/ray")):
        subprocess.run(command, check=True)
    os.chdir(ROOT)
    os.environ |= {"FGST_RAY": str(Path(sys.executable).with_name("ray")), "RAY_AUTH_MODE": "token"}
    from cloud import an_account
    from nodes import Nodes

    with an_account(
        folder, os.environ.__setitem__, **{"idle_timeout_minutes: 10": "idle_timeout_minutes: 0.1"}
    ) as account:
        nodes = Nodes(folder / "nodes")
        done = account.ray("up", "-y", "--no-config-cache", str(account.file))
        assert done.returncode == 0, done.stdout + done.stderr
        (head,) = account.instances()
        import ray

        ray.init(address="127.0.0.1:6379", logging_level="ERROR", log_to_driver=False)
        try:
            assert not ray.cluster_resources().get("CPU")
            assert not ray.cluster_resources().get("GPU")

            def where() -> str:
                return os.environ["RAY_CLOUD_INSTANCE_ID"]

            task = ray.remote(num_gpus=1)(where)
            found = ray.get(task.remote(), timeout=PATIENCE)
            (worker,) = account.instances(**{"ray-node-type": "worker"})
            assert worker["InstanceId"] == found != head["InstanceId"]
            assert (worker["InstanceLifecycle"], worker["InstanceType"]) == ("spot", "g6.xlarge")
            calls = [call.line for call in nodes.calls(worker["PrivateIpAddress"])]
            assert any(line.startswith("uv pip install") for line in calls), calls
            end = time.monotonic() + PATIENCE
            while account.instances(**{"ray-node-type": "worker"}):
                assert time.monotonic() < end, "it is never ended"
                time.sleep(1)
        except BaseException:
            for log in sorted(Path("/tmp/ray/session_latest/logs").glob("monitor*")):
                print(log.name, log.read_text()[-6000:], file=sys.stderr)
            raise
        finally:
            ray.shutdown()
        done = account.ray("down", "-y", str(account.file))
        assert done.returncode == 0, done.stdout + done.stderr
        assert account.instances() == []
    print("up for a task, and down again")


if __name__ == "__main__":
    main()
