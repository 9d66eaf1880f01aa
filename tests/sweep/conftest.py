from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import small
from tests.support.place import Place


@pytest.fixture
def place(tmp_path: Path, tracking_uri: str) -> Iterator[Place]:
    """A working directory with a data set and an empty tracking store."""
    del tracking_uri  # it lies in the working directory, where the script looks first
    small.write_small(tmp_path / "data")
    here = Place(tmp_path)
    yield here
    here.end()
