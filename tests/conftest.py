"""Data that several tests share. Tests of real recordings are skipped, and say so, where the recordings are not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from data_prep.demo import make_demo
from data_prep.nw_ucla import prepare
from fgst.dataset import ArrowDataset

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
    from fgst.tracking import Tracking

    folder = tmp_path_factory.mktemp("store")
    Tracking(f"sqlite:///{folder}/mlflow.db")
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
