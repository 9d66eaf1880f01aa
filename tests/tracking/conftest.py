from __future__ import annotations

from pathlib import Path

import pytest

from tests.tracking.sample_runs import SampleRuns


@pytest.fixture
def runs(tracking_uri: str, tmp_path: Path) -> SampleRuns:
    """A writer of runs into an empty tracking store."""
    return SampleRuns(tracking_uri, tmp_path)
