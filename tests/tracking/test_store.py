"""The tracking store: atomic creation, URIs, the user interface's address, and concurrent runs."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from fgst.errors import DeletedInMlflow, InputError
from fgst.tracking.connection import Connection
from fgst.tracking.run import TrackedRun
from fgst.tracking.store import TrackingStore
from fgst.tracking.uris import resolve_uri
from tests.support.process import start_python

CREATE = """
import sys
from fgst.tracking.store import TrackingStore
print("start", flush=True)
TrackingStore(sys.argv[1])
print("created")
"""
PAGE = "#/experiments/1/runs?workflowType=machine_learning"


def test_interrupted_creation_leaves_no_partial_store(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for delay in (0.3, 1.5):  # creation takes seconds
        process = start_python(CREATE, uri)
        assert process.stdout is not None
        assert process.stdout.readline() == "start\n"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        process.communicate()
    store = TrackingStore(uri)
    assert store.experiment("one") == store.experiment("one")


def test_concurrent_creation_yields_one_store(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    processes = [start_python(CREATE, uri) for _ in range(3)]
    assert [process.communicate()[0].splitlines()[-1] for process in processes] == ["created"] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    TrackingStore(uri).experiment("one")


def test_concurrent_runs_can_log_the_same_new_dataset(tracking_uri: str) -> None:
    """MLflow looks a data set up and then inserts it, which fails for all but one of several concurrent runs."""
    store = TrackingStore(tracking_uri)
    experiment = store.experiment("one")
    runs = [store.start(experiment, str(n), f"run {n}", {}) for n in range(4)]
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(runs))

    def log_datasets(run: TrackedRun) -> None:
        try:
            for n in range(20):
                barrier.wait()
                run.log_dataset(f"set {n}", "ab" * 32, "data")
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=log_datasets, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [len(store.run(run.run_id).inputs.dataset_inputs) for run in runs] == [20] * len(runs)


def test_start_continues_a_trials_run_and_reopens_it(tracking_uri: str) -> None:
    store = TrackingStore(tracking_uri)
    experiment = store.experiment("one")
    parent = store.start(experiment, "sweep", "a sweep", {}).run_id
    run = store.start(experiment, "trial", "a trial", {}, parent)
    run.finish("FAILED", "out of memory")
    assert store.start(experiment, "trial", "a trial", {}, parent).run_id == run.run_id
    reopened = store.run(run.run_id)
    assert reopened.info.status == "RUNNING"
    assert "fgst.reason" not in reopened.data.tags
    assert store.start(experiment, "other", "another trial", {}, parent).run_id != run.run_id


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (None, "sqlite:///{cwd}/mlflow.db"),
        ("runs.db", "sqlite:///{cwd}/runs.db"),
        ("sqlite:///runs.db", "sqlite:///{cwd}/runs.db"),
        ("sqlite:////data/runs.db", "sqlite:////data/runs.db"),
        ("http://host:5000", "http://host:5000"),
        ("postgresql://host/runs", "postgresql://host/runs"),
    ],
)
def test_uris_are_made_absolute(
    uri: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(uri) == expected.format(cwd=tmp_path)
    if uri is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert resolve_uri() == expected.format(cwd=tmp_path)


# The user interface


def store_with_uri(uri: str, monkeypatch: pytest.MonkeyPatch) -> TrackingStore:
    """A store with this URI that is not connected to a server or database."""
    connection = Connection(uri, SimpleNamespace(), SimpleNamespace())
    monkeypatch.setattr("fgst.tracking.store.connect", lambda resolved, wait: connection)
    return TrackingStore(uri)


@pytest.mark.parametrize("user", ["", "user:secret@"])
def test_artifact_page_on_a_server_is_a_url_without_password(user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_with_uri(f"https://{user}host/mlflow/", monkeypatch)
    run = SimpleNamespace(info=SimpleNamespace(experiment_id="3", artifact_uri="mlflow-artifacts:/3/5/artifacts"))
    monkeypatch.setattr(store, "run", lambda run_id: run)
    page = store.artifact_page("5", "report.html")
    assert page == "https://host/mlflow/#/experiments/3/runs/5/artifacts/report.html"


@pytest.mark.parametrize("uri", ["http://host:5000", "https://host/mlflow/"])
def test_ui_url_of_a_server_is_a_page_of_that_server(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store_with_uri(uri, monkeypatch).ui_url("1") == f"{uri.rstrip('/')}/{PAGE}"


@pytest.mark.parametrize("template", [None, "mlflow.db", "sqlite:///mlflow.db", "sqlite:///{cwd}/mlflow.db"])
def test_ui_url_of_the_checkouts_database_uses_make_ui(
    template: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = resolve_uri(template and template.format(cwd=tmp_path))
    # Elsewhere, `make ui` does not exist, or opens the checkout's database.
    assert store_with_uri(uri, monkeypatch).ui_url("1").startswith("mlflow ui --backend-store-uri sqlite:///")
    monkeypatch.setattr("fgst.tracking.store._CHECKOUT", tmp_path)
    page = f"http://127.0.0.1:5000/{PAGE}"
    assert store_with_uri(uri, monkeypatch).ui_url("1") == f"make ui, then {page} (or the port that it prints)"


def test_ui_url_of_the_environments_database_uses_make_ui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fgst.tracking.store._CHECKOUT", tmp_path)
    uri = f"sqlite:///{tmp_path}/other/runs.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert store_with_uri(uri, monkeypatch).ui_url("1").startswith("make ui, then http://127.0.0.1:5000/")
    # `make ui` would open the environment's store instead of the default one.
    default = f"sqlite:///{tmp_path}/mlflow.db"
    assert store_with_uri(default, monkeypatch).ui_url("1").startswith("mlflow ui ")


def test_ui_url_does_not_pass_a_path_in_the_environment_to_make_ui(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow takes ``runs.db`` without a scheme for a folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fgst.tracking.store._CHECKOUT", tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "runs.db")
    assert store_with_uri(resolve_uri(), monkeypatch).ui_url("1").startswith("mlflow ui --backend-store-uri sqlite:///")


@pytest.mark.parametrize("name", ["runs.db", "my runs; it's.db", "$HOME & co.db"])
def test_ui_url_of_another_database_is_a_command_with_its_uri(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"sqlite:///{tmp_path}/{name}"
    command, _, page = store_with_uri(uri, monkeypatch).ui_url("1").rpartition(", then ")
    assert page == f"http://127.0.0.1:5000/{PAGE}"
    assert shlex.split(command) == ["mlflow", "ui", "--backend-store-uri", uri]


@pytest.mark.slow
def test_printed_ui_command_opens_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "it's here"
    folder.mkdir()
    store = TrackingStore(f"sqlite:///{folder}/runs.db")
    experiment = store.experiment("one")
    command = store.ui_url(experiment).rpartition(", then ")[0]
    port = "5973"
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command} --port {port}"],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        start_new_session=True,
    )
    try:
        url, end = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id=", time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(url + experiment, timeout=10) as response:
                    assert b'"one"' in response.read()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.5)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# Artifacts


@pytest.mark.parametrize("uri", ["mlflow-artifacts:/1/x", "s3://bucket/x", "https://host/x", "file://other-host/x"])
def test_remote_artifacts_are_not_local(uri: str, tracking_uri: str) -> None:
    store = TrackingStore(tracking_uri)
    run = SimpleNamespace(info=SimpleNamespace(artifact_uri=uri))
    assert store.local_artifacts(run) is None
    run.info.artifact_uri = "file:///a%20b/c"
    assert store.local_artifacts(run) == Path("/a b/c")


def test_database_that_cannot_be_created_is_reported_in_one_line() -> None:
    if not Path("/proc/self").exists():
        pytest.skip("this platform has no /proc, where no file can be created")
    with pytest.raises(InputError, match=r"/proc/runs\.db cannot be created .* --tracking-uri"):
        TrackingStore("sqlite:////proc/runs.db")


# Run ids


def test_first_digits_of_a_run_id_are_enough(tracking_uri: str) -> None:
    store = TrackingStore(tracking_uri)
    experiments = [store.experiment(name) for name in ("one", "two")]
    ids = [store.start(experiments[n % 2], str(n), f"run {n}", {}).run_id for n in range(4)]
    for run_id in ids:
        length = next(n for n in range(4, 33) if sum(other.startswith(run_id[:n]) for other in ids) == 1)
        assert store.full_run_id(run_id[:length]) == run_id
        assert store.full_run_id(run_id) == run_id


def test_deleted_run_is_found_by_its_first_digits(tracking_uri: str) -> None:
    """Otherwise the message would be that it does not exist, instead of how to restore it."""
    store = TrackingStore(tracking_uri)
    run_id = store.start(store.experiment("one"), "0", "run", {}).run_id
    store.client.delete_run(run_id)
    with pytest.raises(DeletedInMlflow, match=run_id):
        store.run(store.full_run_id(run_id[:8]))


def test_ambiguous_first_digits_name_the_candidates(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids are random, so the search is replaced by one with two results."""
    store = TrackingStore(tracking_uri)
    ids = ["abcd" + "0" * 28, "abcd" + "1" * 28]
    found = [SimpleNamespace(info=SimpleNamespace(run_id=run_id)) for run_id in ids]
    monkeypatch.setattr(store, "_search", lambda *arguments: found)
    with pytest.raises(InputError, match=f"ids of 2 runs begin with abcd: {ids[0]}, {ids[1]}; type more digits"):
        store.full_run_id("abcd")


@pytest.mark.parametrize("text", ["", "abc", "abcx", "ABCD", "a" * 33, "%%%%", "abcd' or 1=1", "../../etc/passwd"])
def test_text_that_cannot_begin_a_run_id_is_rejected(tracking_uri: str, text: str) -> None:
    with pytest.raises(InputError, match="is not 32 hexadecimal digits, or the first four or more of them"):
        TrackingStore(tracking_uri).full_run_id(text)


def test_unknown_first_digits_are_rejected(tracking_uri: str) -> None:
    with pytest.raises(InputError, match="no run whose id begins with abcd"):
        TrackingStore(tracking_uri).full_run_id("abcd")
