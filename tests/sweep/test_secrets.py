"""The passwords of the tracking server and of the study's database are nowhere in what a sweep prints and records."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from fgst.ops.postgres import find_postgres, running_postgres
from fgst.tracking.store import TrackingStore
from tests.support import small
from tests.support.team_server import PASSWORD, TeamServer
from tests.support.workspace import ROOT, TINY, Workspace

STUDY_PASSWORD = "squeamish-ossifrage"
SECRETS = ("battery", STUDY_PASSWORD)  # a word of the server's password, which URLs quote


@pytest.fixture
def server() -> Iterator[TeamServer]:
    server = TeamServer()
    try:
        server.start("--sqlite")
        yield server
    finally:
        server.end()


def files_with_secrets(folder: Path) -> list[Path]:
    """Files below a folder that contain a password."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(secret.encode() in path.read_bytes() for secret in SECRETS)]


@pytest.mark.slow
def test_passwords_are_neither_printed_nor_recorded(
    server: TeamServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = server.uri.replace("http://", f"http://admin:{quote(PASSWORD)}@")
    postgres = Path(tempfile.mkdtemp(prefix="fgst-study-"))
    postgres.chmod(0o755)
    ray_files = Path(tempfile.mkdtemp(prefix="fgst-ray-"))
    monkeypatch.setenv("RAY_TMPDIR", str(ray_files))
    small.write_small(tmp_path / "data")
    workspace = Workspace(tmp_path)
    try:
        with running_postgres(postgres, find_postgres()) as (url, _):
            study = url.replace("fgst@", f"fgst:{STUDY_PASSWORD}@")
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
            workspace.store = TrackingStore()
            options = ["--dataset", "data", "--values", "2,4", "--max-concurrent", "1", "--epochs", "30"]
            process = workspace.start(*options, "--study-storage", study, *TINY)
            workspace.wait_for_first_epoch(process)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=300)
            assert process.returncode == 130, err
            printed = out + err
            command = re.findall(r"^interrupted\. .* Resume with: (.+)$", err, re.M)[0]
            assert "postgresql+psycopg2://fgst:***@" in command
            assert f"http://admin:***@127.0.0.1:{server.port}" in err
            # The printed command works once the environment has the password.
            words = [sys.executable, *shlex.split(command)[1:]]
            refused = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert refused.returncode == 2
            assert "set FGST_STUDY_STORAGE" in refused.stderr
            monkeypatch.setenv("FGST_STUDY_STORAGE", study)
            done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            printed += refused.stderr + done.stdout + done.stderr
            failing = workspace.sweep(*options, "--study-storage", f"postgresql://u:{STUDY_PASSWORD}@nowhere.invalid/x")
            assert failing.returncode == 2, failing.stderr
            printed += failing.stderr
        recorded = [str(run.to_dictionary()) for run in workspace.store.runs(list(workspace.store.experiments()))]
        assert len(recorded) == 3  # the sweep and two trials; a sweep whose study cannot be opened leaves no run
        assert [secret for secret in SECRETS if secret in printed + "".join(recorded)] == []
        assert files_with_secrets(tmp_path) == []
        assert files_with_secrets(ray_files) == []
        artifacts = server.folder / "data" / "artifacts"
        assert list(artifacts.rglob("report.html"))
        assert files_with_secrets(artifacts) == []
    finally:
        workspace.kill_all()
        shutil.rmtree(postgres, ignore_errors=True)
        shutil.rmtree(ray_files, ignore_errors=True)


def test_error_lines_and_tracebacks_leave_passwords_out() -> None:
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"http://admin:{STUDY_PASSWORD}@127.0.0.1:1"}
    listing = subprocess.run(
        [sys.executable, "-m", "fgst.runs", "list"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert listing.returncode == 2
    assert "http://admin:***@127.0.0.1:1" in listing.stderr
    assert STUDY_PASSWORD not in listing.stderr
    code = (
        "from fgst.cli.command import run_command\n"
        f"def main(): raise RuntimeError('postgresql://u:{STUDY_PASSWORD}@host/db')\n"
        "run_command(main)"
    )
    crash = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert crash.returncode == 1
    assert "RuntimeError: postgresql://u:***@host/db" in crash.stderr
    assert STUDY_PASSWORD not in crash.stderr.replace(code, "")
