"""Fixtures for the tests of evaluation: a single thread, a small data set and an untrained network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fgst.data.dataset import ArrowDataset
from tests.support import small


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    torch.set_num_threads(1)
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture(scope="module")
def checkpoint(dataset: ArrowDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained network."""
    return small.save_untrained_network(dataset, tmp_path_factory.mktemp("network"))
