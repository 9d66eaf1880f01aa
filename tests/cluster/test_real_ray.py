"""Whole clusters of a real Ray, each in a namespace of its own, where it is alone on its machine.

Ray ends and finds its processes by name: it would be everybody's Ray otherwise, and ours everybody else's.
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
TEMPORARY = Path("/tmp/ray")  # where Ray keeps a session; the namespace has an empty one in its place


@pytest.fixture(autouse=True)
def namespaces() -> Iterator[None]:
    pytest.importorskip("opencensus", reason="install the extra: pip install -e '.[cluster]'")
    if os.geteuid() or not all(map(shutil.which, ("unshare", "ip", "mount"))):
        pytest.skip("needs root, unshare, mount and ip: a cluster gets namespaces of its own")
    if subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--fork", "true"], check=False, capture_output=True
    ).returncode:
        pytest.skip("namespaces cannot be made here")
    there = TEMPORARY.exists()
    TEMPORARY.mkdir(exist_ok=True)
    yield
    if not there:
        with suppress(OSError):
            TEMPORARY.rmdir()


def alone(script: str, folder: Path) -> str:
    """The last line of a script that has a namespace to itself; everything in it ends with it."""
    # What is killed with the namespace leaves its temporary files, which must not be everybody's; Ray's sockets need
    # a short path.
    (folder / "tmp").mkdir()
    temporary = {"TMPDIR": str(folder / "tmp"), "RAY_TMPDIR": str(TEMPORARY.parent)}
    done = subprocess.run(
        [
            *("unshare", "--mount", "--pid", "--net", "--fork", "--mount-proc", "--kill-child"),
            *(sys.executable, str(Path(__file__).with_name(script)), str(folder)),
        ],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | temporary,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


def test_a_sweep_as_a_job(tmp_path: Path) -> None:
    (tmp_path / "checkout").mkdir()
    for name in ("fgst", "data_prep", "sweeps", "pyproject.toml", ".rayignore"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / "checkout" / name)
    assert alone("job.py", tmp_path) == "the job is done"


def test_spot_machines_come_for_a_sweep_and_go(tmp_path: Path) -> None:
    pytest.importorskip("flask_wtf", reason="install the extra: pip install -e '.[server]'")
    assert alone("autoscale.py", tmp_path) == "up for a sweep, and down again"
