"""Fixtures for the tests of training: a single thread, a small data set and an untrained network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fgst.data.dataset import ArrowDataset
from fgst.model import FGSTFormer
from fgst.model.card import ModelCard
from tests.support.small import CLASSES, SKELETON, small_config, write_small


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    return write_small(tmp_path_factory.mktemp("sets") / "small")


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return ModelCard(small_config(Path("/sets/small")), SKELETON, CLASSES, 2, "small", "0" * 64)


@pytest.fixture
def model(card: ModelCard) -> FGSTFormer:
    torch.manual_seed(3)
    return card.build()
