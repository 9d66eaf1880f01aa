from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import small
from tests.support.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path, tracking_uri: str) -> Iterator[Workspace]:
    """A working directory with a data set and an empty tracking store."""
    del tracking_uri  # it lies in the working directory, where the script looks first
    small.write_small(tmp_path / "data")
    here = Workspace(tmp_path)
    yield here
    here.kill_all()
