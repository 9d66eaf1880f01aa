"""A damaged network of a run is one line that names the file, for each command that uses networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fgst.cli import evaluate, explain, predict
from fgst.data.dataset import ArrowDataset
from fgst.tracking.store import TrackingStore
from tests.evaluation.helpers import error_of, log_network, npy_bytes
from tests.support import small


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    torch.set_num_threads(1)
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("command", [predict, evaluate, explain], ids=["predict", "evaluate", "explain"])
def test_flipped_bit_is_one_line(
    command: Any,
    file: str,
    dataset: ArrowDataset,
    tmp_path: Path,
    tracking_uri: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = small.save_untrained_network(dataset, tmp_path / "network")
    content = bytearray((checkpoint / file).read_bytes())
    position = content.index(b"left hand") if file == "config.json" else len(content) // 2
    content[position] ^= 1
    (checkpoint / file).write_bytes(content)
    run_id = log_network(TrackingStore(tracking_uri), checkpoint)
    (tmp_path / "a.npy").write_bytes(npy_bytes(dataset.clip(0)))
    more = [str(tmp_path / "a.npy")] if command is predict else []
    error = error_of(command.main, ["--run-id", run_id, "--tracking-uri", tracking_uri, *more], capsys)
    place = f"run {run_id}/{file}" if command is predict else f"run {run_id}, artifact checkpoint/{file}"
    assert error.startswith(f"error: {place}: ")
    assert "was modified after it was written (SHA-256 mismatch)" in error
