"""What the tests of the network share: double precision, so that figures can be compared to the last digits."""

from collections.abc import Iterator

import pytest
import torch

# Eight-wide layers gain nothing from threads, and lose much where other processes have the cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    """Networks made in a test are float64 from the start, their sine encodings included."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
