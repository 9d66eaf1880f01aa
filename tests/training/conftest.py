"""Fixtures for the tests of training: a single thread and a small data set."""

from __future__ import annotations

import pytest
import torch

from fgst.data.dataset import ArrowDataset
from tests.support.small import write_small


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    return write_small(tmp_path_factory.mktemp("sets") / "small")
