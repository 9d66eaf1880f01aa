"""A tracking server for a team, with PostgreSQL and a password, on a port of this machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from fgst.errors import InputError
from fgst.ops.postgres import find_postgres

PASSWORD = "correct horse battery staple"
TIMEOUT = 180


class TeamServer:
    """A tracking server that can be stopped or killed, and restarted on the same data."""

    def __init__(self) -> None:
        try:
            find_postgres()
        except InputError:
            pytest.skip("install postgresql: apt-get install postgresql")
        pytest.importorskip("flask_wtf", reason="install the extra: pip install -e '.[server]'")
        # Outside pytest's private folders: if the tests run as root, PostgreSQL runs as another user.
        self.folder = Path(tempfile.mkdtemp(prefix="fgst-team-"))
        self.folder.chmod(0o755)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.environment = {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        }
        self.process: subprocess.Popen[str] | None = None

    def start(self, *options: str) -> None:
        """Start ``python -m fgst.server`` with further options, and wait until it is ready."""
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "fgst.server"),
                *("--dir", str(self.folder / "data"), "--port", str(self.port), *options),
            ],
            env={**os.environ, "FGST_SERVER_PASSWORD": PASSWORD},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "tracking server on" in line, line + self.process.communicate()[1]

    def processes(self) -> list[psutil.Process]:
        """Return all its processes, including those of PostgreSQL, which is a daemon."""
        processes = []
        if self.process is not None and self.process.poll() is None:
            parent = psutil.Process(self.process.pid)
            processes = [*parent.children(recursive=True), parent]
        pid = self.folder / "data" / "postgres" / "postmaster.pid"
        if pid.exists():
            try:
                postgres = psutil.Process(int(pid.read_text().splitlines()[0]))
                processes += [*postgres.children(recursive=True), postgres]
            except psutil.NoSuchProcess:
                pass
        return processes

    def kill(self) -> None:
        """Kill all processes at once, like a power failure."""
        processes = self.processes()
        _kill(processes)
        _, alive = psutil.wait_procs(processes, timeout=30)
        assert not alive
        assert self.process is not None
        self.process.communicate()

    def stop(self) -> str:
        """Stop the server with Ctrl-C and return its output."""
        assert self.process is not None
        processes = self.processes()
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=TIMEOUT)
        assert self.process.returncode == 0, err
        _, alive = psutil.wait_procs(processes, timeout=10)
        assert not alive
        return out + err

    def end(self) -> None:
        """Kill the server if it is running, and delete its data."""
        processes = self.processes()
        _kill(processes)
        psutil.wait_procs(processes, timeout=30)
        if self.process is not None:
            self.process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)


def _kill(processes: list[psutil.Process]) -> None:
    for process in reversed(processes):  # parents first, as they would restart their children
        with suppress(psutil.NoSuchProcess):
            process.kill()
