"""A tracking server as a team runs it, real and on this machine alone: PostgreSQL, MLflow, a password."""

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
from fgst.ops.server import find_postgres

PASSWORD = "correct horse battery staple"
TIMEOUT = 180


class TeamServer:
    """A server that can be killed and started again over the same data."""

    def __init__(self) -> None:
        try:
            find_postgres()
        except InputError:
            pytest.skip("install postgresql: apt-get install postgresql")
        pytest.importorskip("flask_wtf", reason="install the extra: pip install -e '.[server]'")
        # Not among pytest's folders: PostgreSQL runs as another user where the tests run as root.
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
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "fgst.server",
                "--dir",
                str(self.folder / "data"),
                "--port",
                str(self.port),
                *options,
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
        """All that belong to it, PostgreSQL's too, which are nobody's children."""
        found = []
        if self.process is not None and self.process.poll() is None:
            parent = psutil.Process(self.process.pid)
            found = [*parent.children(recursive=True), parent]
        pid = self.folder / "data" / "postgres" / "postmaster.pid"
        if pid.exists():
            try:
                postgres = psutil.Process(int(pid.read_text().splitlines()[0]))
                found += [*postgres.children(recursive=True), postgres]
            except psutil.NoSuchProcess:
                pass
        return found

    def kill(self) -> None:
        """Everything at once, as a power cut would."""
        found = self.processes()
        _kill(found)
        _, alive = psutil.wait_procs(found, timeout=30)
        assert not alive
        assert self.process is not None
        self.process.communicate()

    def stop(self) -> str:
        """Ctrl-C; what it says."""
        assert self.process is not None
        found = self.processes()
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=TIMEOUT)
        assert self.process.returncode == 0, err
        _, alive = psutil.wait_procs(found, timeout=10)
        assert not alive
        return out + err

    def end(self) -> None:
        found = self.processes()
        _kill(found)
        psutil.wait_procs(found, timeout=30)
        if self.process is not None:
            self.process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)


def _kill(processes: list[psutil.Process]) -> None:
    for process in reversed(processes):  # parents first: they would start their children again
        with suppress(psutil.NoSuchProcess):
            process.kill()
