"""Clusters with a real Ray, each isolated in its own namespaces.

Ray finds and ends processes by name and would interfere with other instances on this machine without namespaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.cluster.config_checks import ROOT

pytestmark = pytest.mark.slow
TEMPORARY = Path("/tmp/ray")  # Ray's session folder; in the namespaces, an empty file system is mounted over it


@pytest.fixture(autouse=True)
def namespaces() -> Iterator[None]:
    pytest.importorskip("opencensus", reason="install the extra: pip install -e '.[cluster]'")
    if os.geteuid() or not all(map(shutil.which, ("unshare", "ip", "mount"))):
        pytest.skip("needs root, unshare, mount and ip to run a cluster in its own namespaces")
    if subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--fork", "true"], check=False, capture_output=True
    ).returncode:
        pytest.skip("this machine does not allow namespaces")
    existed = TEMPORARY.exists()
    TEMPORARY.mkdir(exist_ok=True)
    yield
    if not existed:
        with suppress(OSError):
            TEMPORARY.rmdir()


def run_isolated(script: str, folder: Path) -> str:
    """Run a script of tests/support/cluster in its own namespaces, and return its last line of output."""
    # Processes that are killed with their namespaces leave temporary files. The paths of Ray's sockets must be short.
    (folder / "tmp").mkdir()
    temporary = {"TMPDIR": str(folder / "tmp"), "RAY_TMPDIR": str(TEMPORARY.parent)}
    result = subprocess.run(
        [
            *("unshare", "--mount", "--pid", "--net", "--fork", "--mount-proc", "--kill-child"),
            *(sys.executable, str(ROOT / "tests" / "support" / "cluster" / script), str(folder)),
        ],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | temporary,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()[-1]


def test_sweep_runs_as_job(tmp_path: Path) -> None:
    (tmp_path / "checkout").mkdir()
    for name in ("fgst", "data_prep", "sweeps", "pyproject.toml", ".rayignore"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / "checkout" / name)
    assert run_isolated("job_script.py", tmp_path) == "the job is done"


def test_autoscaler_starts_and_terminates_spot_workers(tmp_path: Path) -> None:
    pytest.importorskip("flask_wtf", reason="install the extra: pip install -e '.[server]'")
    assert run_isolated("autoscale_script.py", tmp_path) == "the cluster scaled up for the sweep and down again"
