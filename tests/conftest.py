"""Fixtures for all tests. Tests of real recordings are skipped, with instructions, where the recordings are missing."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fgst.cli.command import configure_logging
from fgst.data.dataset import ArrowDataset
from fgst.data.formats.nw_ucla import prepare
from fgst.data.synthetic import make_demo

ROOT = Path(__file__).parents[1]
SLOW_TIMEOUT = 1200  # seconds; the limit of quick tests is in pyproject.toml


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start long files first, and give slow tests more time.

    With pytest-xdist, a process that started a long file last would keep the others waiting.
    """
    items.sort(key=lambda item: item.get_closest_marker("long") is None)  # stable
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Let the processes that tests start receive Ctrl-C: shells start background jobs with SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _logging() -> None:
    """Print log messages to standard error even if a test calls a command's function without ``run_command``."""
    configure_logging()


@pytest.fixture(scope="session")
def nw_ucla_zip() -> Path:
    """The downloaded ``all_sqe.zip``, from ``$FGST_TEST_DATA/nw-ucla`` or ``../shared/datasets/nw-ucla``."""
    folders = [ROOT.parent / "shared" / "datasets"]
    if test_data := os.environ.get("FGST_TEST_DATA"):
        folders.insert(0, Path(test_data))
    for folder in folders:
        if (path := folder / "nw-ucla" / "all_sqe.zip").is_file():
            return path
    pytest.skip("nw-ucla/all_sqe.zip not found: set FGST_TEST_DATA to the folder that contains nw-ucla/")


@pytest.fixture(scope="session")
def nw_ucla(nw_ucla_zip: Path, tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    """The real NW-UCLA recordings as a data set."""
    return prepare(nw_ucla_zip, tmp_path_factory.mktemp("prepared") / "nw-ucla")[0]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of an empty tracking store, which tests copy because MLflow takes seconds to create one."""
    from fgst.tracking.store import TrackingStore

    folder = tmp_path_factory.mktemp("store")
    TrackingStore(f"sqlite:///{folder}/mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def tracking_uri(empty_database: Path, tmp_path: Path) -> str:
    """An empty tracking store for one test: ``mlflow.db`` in ``tmp_path``."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="module")
def module_tracking_uri(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An empty tracking store shared by the tests of a module: ``mlflow.db`` in a temporary folder."""
    folder = tmp_path_factory.mktemp("module")
    shutil.copy(empty_database, folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    """A small generated data set of 48 clips and 4 classes; clips of the second class have two persons."""
    return make_demo(tmp_path_factory.mktemp("prepared") / "demo", clips=48, classes=4)


@pytest.fixture(scope="session")
def object_store_url() -> Iterator[str]:
    """The address of an S3 server in this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(object_store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3 client with an empty bucket ``motion``.

    Environment variables configure clients for its server, and ``FGST_CACHE`` is a folder in ``tmp_path``.
    """
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": object_store_url,
        "AWS_ACCESS_KEY_ID": "a user",
        "AWS_SECRET_ACCESS_KEY": "a secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "FGST_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("FGST_CACHE_LIMIT", raising=False)
    client = boto3.client("s3")
    client.create_bucket(Bucket="motion")
    yield client
    for listing in client.get_paginator("list_objects_v2").paginate(Bucket="motion"):
        for content in listing.get("Contents", ()):
            client.delete_object(Bucket="motion", Key=content["Key"])
    client.delete_bucket(Bucket="motion")
