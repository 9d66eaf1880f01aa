"""URIs of tracking stores: odd paths, and words that are no store."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from fgst.errors import InputError
from fgst.tracking.store import TrackingStore
from fgst.tracking.uris import database_path, resolve_existing_uri, resolve_uri, sqlite_uri

ODD_NAMES = ["a b", "a%20b", "what?", "a#b", "ä é", "a@b:c", "a?b=c&d", "a%3Fb", "it's; $HOME"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_database_in_an_odd_folder_is_that_file(name: str, tmp_path: Path) -> None:
    import sqlalchemy

    (tmp_path / name).mkdir()
    database = tmp_path / name / "mlflow.db"
    for uri in (sqlite_uri(database), resolve_uri(str(database))):
        assert database_path(uri) == database
    with sqlalchemy.create_engine(sqlite_uri(database)).begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE names (name TEXT)"))
    assert [path.name for path in tmp_path.rglob("*")] == [name, "mlflow.db"]
    assert sqlite3.connect(database).execute("SELECT name FROM sqlite_master").fetchall() == [("names",)]


def test_store_in_an_odd_folder_is_created_and_read(tmp_path: Path) -> None:
    folder = tmp_path / "100%20? #1"
    folder.mkdir()
    store = TrackingStore(str(folder / "runs.db"))
    run = store.start(store.experiment("one"), "trial", "name", {})
    (folder / "results").mkdir()
    (folder / "results" / "table.csv").write_text("1,2")
    run.log_artifacts(folder / "results")
    with TrackingStore.existing(str(folder / "runs.db")).artifacts(run.run_id, "table.csv") as file:
        assert file.read_text() == "1,2"
    assert {path.name for path in folder.iterdir()} >= {"runs.db", "mlruns"}


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("localhost:5000", "or a server with its scheme, http://localhost:5000"),
        ("mlflow.example.com", "http://mlflow.example.com"),
        ("server:5000/mlflow", "http://server:5000/mlflow"),
        ("databricks", "is not a tracking store"),
        ("databricks://profile", "no tracking store with scheme databricks"),
        ("htp://server:5000", "scheme htp"),
        ("s3://bucket/runs", "scheme s3"),
        ("  ", "is not a tracking store"),
        ("mlruns", "is a folder; name a database in it, e.g. mlruns/mlflow.db"),
        ("http:/localhost:5000", "or a server with its scheme, http://localhost:5000"),
        ("https:example.com/mlflow", "https://example.com/mlflow"),
        ("sqlite://", "names no database"),
        ("sqlite:///mlruns", "is a folder; name a database in it, e.g. sqlite:///mlruns/mlflow.db"),
        ("file:///mlruns", "MLflow no longer supports folders as stores"),
        ("file:mlruns", "MLflow no longer supports folders as stores"),
    ],
)
@pytest.mark.parametrize("from_environment", [False, True])
def test_what_is_no_store_is_refused(
    uri: str, message: str, from_environment: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").mkdir()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if from_environment:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=message) as raised:
        resolve_uri(None if from_environment else uri)
    assert str(raised.value).startswith("MLFLOW_TRACKING_URI" if from_environment else "--tracking-uri")
    assert [path.name for path in tmp_path.iterdir()] == ["mlruns"]


@pytest.mark.parametrize("word", ["runs", "mlruns_folder"])
def test_word_that_is_no_host_is_not_taken_for_a_server(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is not a tracking store") as raised:
        resolve_uri(word)
    assert "http" not in str(raised.value)


def test_empty_option_is_refused_and_an_empty_variable_is_unset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert resolve_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(InputError, match="--tracking-uri is empty"):
        resolve_uri("")


def test_existing_database_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    assert resolve_existing_uri("runs") == f"sqlite:///{tmp_path}/runs"


def test_unreachable_database_server_is_reported_at_once_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow itself would try to connect for minutes."""
    monkeypatch.setattr("fgst.tracking.connection.MlflowClient", None)  # is not called
    with pytest.raises(InputError, match=r"cannot connect to the database postgresql://bob:\*\*\*@127\.0\.0\.1:1/runs"):
        TrackingStore("postgresql://bob:secret@127.0.0.1:1/runs")
