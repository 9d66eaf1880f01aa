"""The tracking server of a team: authentication, concurrent writers, restarts, artifact locations, error messages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from fgst.cli.server import main
from fgst.errors import InputError
from fgst.ops.server import artifact_root
from fgst.tracking.store import TrackingStore
from tests.support.process import start_python
from tests.support.team_server import TeamServer

WRITERS, STEPS = 16, 10
WRITE = """
import sys
from pathlib import Path
from fgst.tracking.store import TrackingStore
number, experiment, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
run = TrackingStore().start(experiment, f"writer-{number}", f"writer {number}", {})
for step in range(1, int(sys.argv[4]) + 1):
    run.log_metrics({"train/loss": number + step / 100, "val/top1": float(step)}, step)
(folder / "note.txt").write_text(str(number))
run.log_artifacts(folder)
run.finish()
print(run.run_id)
"""
CREATE_EXPERIMENT = """
import sys
from fgst.tracking.store import TrackingStore
print(TrackingStore(sys.argv[1]).experiment("one"))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[TeamServer]:
    server = TeamServer()
    try:
        server.start()
        yield server
    finally:
        server.end()


@pytest.fixture
def store(server: TeamServer, monkeypatch: pytest.MonkeyPatch) -> TrackingStore:
    """A client of the server, with the admin's credentials in the environment."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return TrackingStore()


@pytest.mark.slow
def test_runs_of_concurrent_writers_are_complete(store: TrackingStore, tmp_path: Path) -> None:
    experiment = store.experiment("writers")
    processes = []
    for number in range(WRITERS):
        (tmp_path / str(number)).mkdir()
        processes.append(start_python(WRITE, number, experiment, tmp_path / str(number), STEPS))
    for number, process in enumerate(processes):
        out, err = process.communicate()
        assert process.returncode == 0, err
        run = store.run(out.strip())
        assert run.info.status == "FINISHED"
        history = store.client.get_metric_history(run.info.run_id, "train/loss")
        assert [(m.step, m.value) for m in history] == [(s, number + s / 100) for s in range(1, STEPS + 1)]
        with store.artifacts(run.info.run_id, "note.txt") as note:
            assert note.read_text() == str(number)
    assert len(store.client.search_runs([experiment])) == WRITERS


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_wrong_password_is_rejected_before_sweep_starts(server: TeamServer, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "sweeps" / "focal_k.py"
    environment = {**os.environ, "MLFLOW_TRACKING_PASSWORD": "wrong"}
    command = [sys.executable, str(script), "--preset", "tiny", "--epochs", "1", "--values", "3"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].startswith(
        f"error: the tracking server {server.uri} refuses these credentials"
    )
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in result.stderr
    assert not (tmp_path / "ray_results").exists()


@pytest.mark.slow
def test_restart_reuses_data(server: TeamServer, store: TrackingStore) -> None:
    run = store.start(store.experiment("restart"), "restart", "restart", {"note": "text"})
    assert "all data remains in" in server.stop()
    assert not (server.folder / "data" / "postgres" / "postmaster.pid").exists()
    server.start()
    assert TrackingStore().run(run.run_id).data.tags["note"] == "text"
    for name in ("secret", "password"):
        file = server.folder / "data" / name
        assert not file.exists() or file.stat().st_mode & 0o077 == 0


def test_missing_postgres_is_reported_with_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flask_wtf")
    monkeypatch.setattr("fgst.ops.postgres.shutil.which", lambda name: None)
    monkeypatch.setattr("fgst.ops.postgres.Path.glob", lambda path, pattern: iter(()))
    with pytest.raises(InputError, match="apt-get install postgresql, or start with --sqlite"):
        main(["--dir", str(tmp_path / "data")])
    assert not (tmp_path / "data").exists()


def test_short_password_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flask_wtf")
    monkeypatch.setenv("FGST_SERVER_PASSWORD", "short")
    with pytest.raises(InputError, match="12 characters"):
        main(["--sqlite", "--port", "0", "--dir", str(tmp_path / "data")])
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) in ([], ["lock"])


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("artifacts", "not a URI"),
        ("s3://key:secret@bucket/x", "contains a secret"),
        ("nonsense://x/y", "cannot be written"),
        ("file:///proc/nothing", "cannot be written"),
    ],
)
def test_unusable_artifact_location_is_rejected(uri: str, message: str, tmp_path: Path) -> None:
    pytest.importorskip("flask_wtf")
    with pytest.raises(InputError, match=message) as error:
        main(["--sqlite", "--port", "0", "--dir", str(tmp_path / "data"), "--artifacts", uri])
    assert "secret@" not in str(error.value)
    assert not (tmp_path / "data").exists()


def test_artifact_location_is_fixed_after_first_start(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    assert (
        artifact_root(folder, "s3://wrong/x") == "s3://wrong/x"
    )  # the location can change until the first start of the server
    assert artifact_root(folder, "s3://bucket/x/") == "s3://bucket/x"
    (folder / "known").touch()
    assert artifact_root(folder, "s3://bucket/x") == "s3://bucket/x"
    for other in (None, "s3://bucket/y"):
        with pytest.raises(InputError, match="created with --artifacts s3://bucket/x; start the server as before"):
            artifact_root(folder, other)
    (folder / "artifacts.uri").unlink()
    assert artifact_root(folder, None) == str(folder / "artifacts")
    with pytest.raises(InputError, match="created without --artifacts"):
        artifact_root(folder, "s3://bucket/x")


@pytest.mark.slow
def test_artifacts_are_stored_in_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flask_wtf")
    s3 = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    s3.start()
    host, port = s3.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "user", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3").create_bucket(Bucket="weights")
    server = TeamServer()
    try:
        server.start("--artifacts", "s3://weights/mlflow")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        store = TrackingStore()
        run = store.start(store.experiment("bucket"), "bucket", "bucket", {})
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "note.txt").write_text("text")
        run.log_artifacts(tmp_path / "out")
        (key,) = [item.key for item in bucket.objects.all() if not item.key.endswith("/")]
        assert key.startswith("mlflow/")
        assert key.endswith(f"{run.run_id}/artifacts/note.txt")
        with store.artifacts(run.run_id, "note.txt") as note:
            assert note.read_text() == "text"
        assert not (server.folder / "data" / "artifacts").exists()
    finally:
        server.end()
        s3.stop()


@pytest.mark.slow
def test_four_processes_create_sqlite_store_concurrently(tmp_path: Path) -> None:
    processes = [start_python(CREATE_EXPERIMENT, f"sqlite:///{tmp_path}/mlflow.db") for _ in range(4)]
    experiments = {process.communicate()[0].splitlines()[-1] for process in processes}
    assert len(experiments) == 1
    assert [process.returncode for process in processes] == [0] * 4
