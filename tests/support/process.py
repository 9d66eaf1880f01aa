"""Python processes that tests start and kill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def start_python(
    script: str, *arguments: object, env_changes: dict[str, str] | None = None, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[str]:
    """Start a Python script in a process that can import ``tests`` and ``fgst``."""
    search_path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    environment = {**os.environ, "PYTHONPATH": search_path, "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment | (env_changes or {}),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_on_line(process: subprocess.Popen[str], line: str) -> None:
    """Send SIGKILL to a process as soon as it has printed a line."""
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        for printed in process.stdout:
            if printed.strip() == line:
                break
        else:
            raise AssertionError(f"the process ended before it printed {line!r}:\n{process.stderr.read()}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
