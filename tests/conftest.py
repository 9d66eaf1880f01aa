"""Data that several tests share. Tests of real recordings are skipped, and say so, where the recordings are not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fgst.data.dataset import ArrowDataset
from fgst.data.formats.nw_ucla import prepare
from fgst.data.synthetic import make_demo

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def nw_ucla_zip() -> Path:
    """The downloaded all_sqe.zip: in $FGST_TEST_DATA/nw-ucla, or in shared/datasets beside the repository."""
    folders = [ROOT.parent / "shared" / "datasets"]
    if named := os.environ.get("FGST_TEST_DATA"):
        folders.insert(0, Path(named))
    for folder in folders:
        if (path := folder / "nw-ucla" / "all_sqe.zip").is_file():
            return path
    pytest.skip("no nw-ucla/all_sqe.zip: name the folder that holds nw-ucla/ in FGST_TEST_DATA")


@pytest.fixture(scope="session")
def nw_ucla(nw_ucla_zip: Path, tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    """The real recordings as a data set."""
    return prepare(nw_ucla_zip, tmp_path_factory.mktemp("prepared") / "nw-ucla")[0]


@pytest.fixture(scope="session")
def _fresh_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty tracking store. MLflow takes seconds to make one, so tests get copies."""
    from fgst.tracking.store import TrackingStore

    folder = tmp_path_factory.mktemp("store")
    TrackingStore(f"sqlite:///{folder}/mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def tracking_uri(_fresh_store: Path, tmp_path: Path) -> str:
    """An empty tracking store of the test's own, ``mlflow.db`` in ``tmp_path``."""
    shutil.copy(_fresh_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    """A small generated data set: 48 clips of 4 classes, the second of them with two persons."""
    return make_demo(tmp_path_factory.mktemp("prepared") / "demo", clips=48, classes=4)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """An empty bucket "motion" that the environment leads to, and the cache in ``tmp_path``."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "a user",
        "AWS_SECRET_ACCESS_KEY": "a secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "FGST_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("FGST_CACHE_LIMIT", raising=False)
    store = boto3.client("s3")
    store.create_bucket(Bucket="motion")
    yield store
    server.stop()
