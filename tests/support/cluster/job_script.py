"""Submit a sweep through the job API of a Ray cluster that requires a token.

`test_real_ray.py` runs this script in its own namespaces, where it sees no other Ray processes and leaves none behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))
RAY = str(Path(sys.executable).with_name("ray"))
DASHBOARD = "http://127.0.0.1:8265"


def call(*command: str, fails: bool = False, **environment: str) -> str:
    """Run a command that must succeed, or fail if ``fails``, and return its output."""
    result = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=400, check=False
    )
    assert bool(result.returncode) is fails, f"{command}: exit {result.returncode}\n{result.stdout}{result.stderr}"
    return result.stdout + result.stderr


def main() -> None:
    folder = Path(sys.argv[1])
    call("ip", "link", "set", "lo", "up")
    call("mount", "-t", "tmpfs", "tmpfs", "/tmp/ray")
    os.environ |= {
        "HOME": str(folder),
        "PATH": f"{Path(RAY).parent}{os.pathsep}{os.environ['PATH']}",  # as cluster/setup.sh sets it on a node
        "FGST_CACHE": str(folder / "cache"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    call(RAY, "get-auth-token", "--generate")
    assert len((folder / ".ray" / "auth_token").read_text()) == 64
    from tests.support.small import write_small
    from tests.support.workspace import TINY

    write_small(folder / "data")
    os.environ["RAY_AUTH_MODE"] = "token"
    call(RAY, "start", "--head", "--num-cpus=2", "--dashboard-host=127.0.0.1", "--object-store-memory=100000000")
    submit = (RAY, "job", "submit", "--address", DASHBOARD, "--working-dir", str(folder / "checkout"), "--")
    output = call(*submit, "true", fails=True, RAY_AUTH_TOKEN="wrong")
    assert "401" in output or "403" in output or "auth" in output.lower(), output
    output = call(
        *submit, "python", "sweeps/focal_k.py", "--address", "auto", "--dataset", (folder / "data").as_uri(),
        "--preset", "tiny", "--values", "2,4", "--epochs", "2", "--storage", str(folder / "storage"), *TINY,
    )  # fmt: skip
    assert "succeeded" in output, output
    assert "python -m fgst.evaluate --run-id" in output, output
    from fgst.tracking.store import TrackingStore

    store = TrackingStore()
    experiments = [e.experiment_id for e in store.client.search_experiments()]
    (sweep,) = store.client.search_runs(experiments, "tags.`fgst.kind` = 'sweep'")
    assert [run.info.status for run in store.children(sweep.info.run_id)] == ["FINISHED"] * 2
    print(output[-3000:])
    print("the job is done")


if __name__ == "__main__":
    main()
