"""The team's server: a password, many writers, a second start, and what is said where something is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from fgst.errors import InputError
from fgst.ops.server import _artifacts, main
from fgst.tracking.store import TrackingStore
from tests.support.small import start_python
from tests.support.team import Team

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


@pytest.fixture(scope="module")
def team() -> Iterator[Team]:
    team = Team()
    try:
        team.start()
        yield team
    finally:
        team.end()


@pytest.fixture
def store(team: Team, monkeypatch: pytest.MonkeyPatch) -> TrackingStore:
    for name, value in team.environment.items():
        monkeypatch.setenv(name, value)
    return TrackingStore()


@pytest.mark.slow
def test_many_writers_at_once_lose_nothing(store: TrackingStore, tmp_path: Path) -> None:
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
def test_a_wrong_password_is_refused_before_anything_starts(team: Team, store: TrackingStore, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "sweeps" / "focal_k.py"
    wrong = {**os.environ, "MLFLOW_TRACKING_PASSWORD": "wrong"}
    command = [sys.executable, str(script), "--preset", "tiny", "--epochs", "1", "--values", "3"]
    done = subprocess.run(command, cwd=tmp_path, env=wrong, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: the tracking server {team.uri} refuses these credentials")
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in done.stderr
    assert not (tmp_path / "ray_results").exists()
    del store


@pytest.mark.slow
def test_a_second_start_takes_up_the_same_data(team: Team, store: TrackingStore) -> None:
    run = store.start(store.experiment("kept"), "kept", "kept", {"note": "here"})
    assert "the data stay in" in team.stop()
    assert not (team.folder / "data" / "postgres" / "postmaster.pid").exists()
    team.start()
    assert TrackingStore().run(run.run_id).data.tags["note"] == "here"
    secrets = ["secret", "password"]
    for name in secrets:
        file = team.folder / "data" / name
        assert not file.exists() or file.stat().st_mode & 0o077 == 0


def test_missing_postgres_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flask_wtf")
    monkeypatch.setattr("fgst.ops.server.shutil.which", lambda name: None)
    monkeypatch.setattr("fgst.ops.server.Path.glob", lambda path, pattern: iter(()))
    with pytest.raises(InputError, match="apt-get install postgresql, or start with --sqlite"):
        main(["--dir", str(tmp_path / "data")])
    assert not (tmp_path / "data").exists()


def test_a_short_password_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flask_wtf")
    monkeypatch.setenv("FGST_SERVER_PASSWORD", "short")
    with pytest.raises(InputError, match="12 characters"):
        main(["--sqlite", "--port", "0", "--dir", str(tmp_path / "data")])
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) in ([], ["lock"])


@pytest.mark.parametrize(
    ("uri", "word"),
    [
        ("artifacts", "name a URI"),
        ("s3://key:secret@bucket/x", "holds a secret"),
        ("nonsense://x/y", "cannot be written"),
        ("file:///proc/nothing", "cannot be written"),
    ],
)
def test_a_place_for_artifacts_that_cannot_be_is_one_message(uri: str, word: str, tmp_path: Path) -> None:
    pytest.importorskip("flask_wtf")
    with pytest.raises(InputError, match=word) as error:
        main(["--sqlite", "--port", "0", "--dir", str(tmp_path / "data"), "--artifacts", uri])
    assert "secret@" not in str(error.value)
    assert not (tmp_path / "data").exists()


def test_artifacts_stay_where_they_were_begun(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    assert _artifacts(folder, "s3://wrong/x") == "s3://wrong/x"  # a start that came to nothing may be made good
    assert _artifacts(folder, "s3://bucket/x/") == "s3://bucket/x"
    (folder / "known").touch()
    assert _artifacts(folder, "s3://bucket/x") == "s3://bucket/x"
    for other in (None, "s3://bucket/y"):
        with pytest.raises(InputError, match="begun with --artifacts s3://bucket/x; start it as before"):
            _artifacts(folder, other)
    (folder / "artifacts.uri").unlink()
    assert _artifacts(folder, None) == str(folder / "artifacts")
    with pytest.raises(InputError, match="begun without --artifacts"):
        _artifacts(folder, "s3://bucket/x")


@pytest.mark.slow
def test_artifacts_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flask_wtf")
    s3 = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    s3.start()
    host, port = s3.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3").create_bucket(Bucket="weights")
    team = Team()
    try:
        team.start("--artifacts", "s3://weights/mlflow")
        for name, value in team.environment.items():
            monkeypatch.setenv(name, value)
        store = TrackingStore()
        run = store.start(store.experiment("bucket"), "bucket", "bucket", {})
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "note.txt").write_text("here")
        run.log_artifacts(tmp_path / "out")
        (key,) = [item.key for item in bucket.objects.all() if not item.key.endswith("/")]
        assert key.startswith("mlflow/")
        assert key.endswith(f"{run.run_id}/artifacts/note.txt")
        with store.artifacts(run.run_id, "note.txt") as note:
            assert note.read_text() == "here"
        assert not (team.folder / "data" / "artifacts").exists()
    finally:
        team.end()
        s3.stop()


@pytest.mark.slow
def test_a_fresh_sqlite_store_with_four_processes_at_once(tmp_path: Path) -> None:
    script = (
        "import sys; from fgst.tracking.store import TrackingStore; print(TrackingStore(sys.argv[1]).experiment('one'))"
    )
    processes = [start_python(script, f"sqlite:///{tmp_path}/mlflow.db") for _ in range(4)]
    answers = {process.communicate()[0].splitlines()[-1] for process in processes}
    assert len(answers) == 1
    assert [process.returncode for process in processes] == [0] * 4
