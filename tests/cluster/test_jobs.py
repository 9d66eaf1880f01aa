"""`ray job submit --working-dir .`, with a token, of a real Ray cluster of one node."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checks import ROOT


@pytest.mark.slow
def test_a_sweep_as_a_job(tmp_path: Path) -> None:
    pytest.importorskip("opencensus", reason="install the extra: pip install -e '.[cluster]'")
    if os.geteuid() or not all(map(shutil.which, ("unshare", "ip", "mount"))):
        pytest.skip("needs root, unshare and ip: Ray gets a machine of its own, or it would be everybody's on this one")
    # The job finds the project in what was submitted, not in this environment.
    (tmp_path / "checkout").mkdir()
    for name in ("fgst", "data_prep", "sweeps", "pyproject.toml", ".rayignore"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / "checkout" / name)
    done = subprocess.run(
        [
            *("unshare", "--mount", "--pid", "--net", "--fork", "--mount-proc", "--kill-child"),
            *(sys.executable, str(Path(__file__).with_name("job.py")), str(tmp_path)),
        ],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "the job is done"
