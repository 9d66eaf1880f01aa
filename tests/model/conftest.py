"""Fixtures for the tests of the network, which run in double precision to allow tight tolerances."""

from collections.abc import Iterator

import pytest
import torch

# Layers of eight channels do not benefit from threads, which are slow if other processes use the cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    """Build all networks in float64, including their sine encodings."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
