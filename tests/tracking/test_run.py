"""Runs that are written while their tracking server is unavailable."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fgst.errors import StoreUnavailable
from fgst.tracking import spool
from fgst.tracking.connection import Connection
from fgst.tracking.run import TrackedRun, flush_spools
from fgst.tracking.spool import RetryingClient
from fgst.tracking.tags import Tags


class FakeClient:
    """The part of MLflow's client that a run uses, with a server that can be unavailable."""

    def __init__(self) -> None:
        self.available = True
        self.tags: dict[str, str] = {}
        self.metrics: list[tuple[str, float, int]] = []
        self.files: list[str] = []
        self.status = "RUNNING"

    def _require_server(self) -> None:
        if not self.available:
            raise ConnectionError("refused")

    def get_run(self, run_id: str) -> Any:
        self._require_server()
        info = SimpleNamespace(artifact_uri="mlflow-artifacts:/1/a/artifacts")
        return SimpleNamespace(info=info, data=SimpleNamespace(tags=dict(self.tags), metrics={}))

    def update_run(self, run_id: str, status: str) -> None:
        self._require_server()
        self.status = status

    def delete_tag(self, run_id: str, tag: str) -> None:
        self._require_server()
        del self.tags[tag]

    def log_batch(self, run_id: str, metrics: list[Any], params: list[Any], tags: list[Any]) -> None:
        self._require_server()
        self.metrics += [(metric.key, metric.value, metric.step) for metric in metrics]
        self.tags |= {tag.key: tag.value for tag in tags}

    def log_artifacts(self, run_id: str, folder: str) -> None:
        self._require_server()
        self.files += sorted(path.name for path in Path(folder).iterdir())

    def set_terminated(self, run_id: str, status: str, end_time: int) -> None:
        self._require_server()
        self.status = status

    def get_metric_history(self, run_id: str, metric: str) -> list[Any]:
        self._require_server()
        return [SimpleNamespace(step=step, value=value) for key, value, step in self.metrics if key == metric]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    monkeypatch.setattr(spool, "RETRY_PAUSES", (0.01, 0.02))
    return FakeClient()


@pytest.fixture
def connection(client: FakeClient) -> Connection:
    def is_unavailable(error: BaseException) -> bool:
        return isinstance(error, ConnectionError)

    return Connection("http://tracking.example", client, RetryingClient(client, is_unavailable))


def test_records_of_an_outage_are_sent_in_order(client: FakeClient, connection: Connection, tmp_path: Path) -> None:
    run = TrackedRun(connection, "a" * 32)
    run.enable_spool(tmp_path / "spool")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "scores.arrow").write_text("scores")
    run.log_metrics({"loss": 1.0}, 1)
    client.available = False
    run.log_metrics({"loss": 0.5}, 2)
    run.log_artifacts(tmp_path / "files")
    client.available = True
    run.log_metrics({"loss": 0.25}, 3)
    assert client.metrics == [("loss", 1.0, 1), ("loss", 0.5, 2), ("loss", 0.25, 3)]
    assert client.files == ["scores.arrow"]
    assert client.tags[Tags.SPOOLED] == "2"
    assert run.metric_history("loss") == {1: 1.0, 2: 0.5, 3: 0.25}


def test_killed_run_leaves_its_records_for_the_next_process(
    client: FakeClient, connection: Connection, tmp_path: Path
) -> None:
    run = TrackedRun(connection, "a" * 32)
    run.enable_spool(tmp_path / "spool")
    client.available = False
    run.log_metrics({"loss": 0.5}, 1)
    run.finish("KILLED", "interrupted")  # does not block
    client.available = True
    TrackedRun(connection, "a" * 32).enable_spool(tmp_path / "spool")
    assert client.metrics == [("loss", 0.5, 1)]
    assert client.status == "RUNNING"
    assert Tags.REASON not in client.tags


def test_finish_waits_for_the_server(
    client: FakeClient, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TrackedRun(connection, "a" * 32)
    run.enable_spool(tmp_path / "spool")
    client.available = False
    run.log_metrics({"loss": 0.5}, 1)
    clock = iter(range(0, 1_000_000, 100))  # each reading is 100 s later
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(StoreUnavailable, match="has not responded for 10 minutes"):
        run.finish()
    assert client.status == "RUNNING"


def test_flush_spools_sends_the_records_of_earlier_runs(
    client: FakeClient, connection: Connection, tmp_path: Path
) -> None:
    client.available = False
    for run_id in ("a" * 32, "b" * 32):
        run = TrackedRun(connection, run_id)
        run.enable_spool(tmp_path / "spool")
        run.log_metrics({run_id[0]: 0.5}, 1)
        run.finish("KILLED")
    client.available = True
    flush_spools(connection, tmp_path / "spool")
    assert client.metrics == [("a", 0.5, 1), ("b", 0.5, 1)]
    assert client.status == "KILLED"
    assert not list((tmp_path / "spool").rglob("records.jsonl"))
