from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import small
from tests.support.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path, tracking_uri: str) -> Iterator[Workspace]:
    """A working directory with a data set and an empty tracking store."""
    del tracking_uri  # its database is in the working directory, where sweeps find it by default
    small.write_small(tmp_path / "data")
    workspace = Workspace(tmp_path)
    yield workspace
    workspace.kill_all()
