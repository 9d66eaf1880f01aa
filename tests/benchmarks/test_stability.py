"""The benchmark of stability: its clips, and how it records trainings that diverge."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import stability
from fgst.data.dataset import ArrowDataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    torch.set_num_threads(1)
    return stability.make_clips(tmp_path_factory.mktemp("clips") / "clips", 80)


def test_ten_of_sixty_classes_occur(dataset: ArrowDataset) -> None:
    assert dataset.num_classes == 60
    assert np.unique(dataset.columns["label"]).tolist() == list(range(10))
    assert set(dataset.columns["num_persons"].tolist()) == {1, 2}
    assert dataset.recipe == "ntu"


def test_divergence_is_told_from_training(dataset: ArrowDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = stability.train(dataset, "tiny", 2, {"train.lr": 0.05, "train.batch_size": 8, "data.frames": 8})
    assert (trained["diverged"], trained["epochs"]) == ("", 2)
    assert 0 < trained["grad_norm"] <= trained["grad_norm_max"]
    assert "the training diverged" in stability.train(dataset, "tiny", 1, {"train.lr": 1e30})["diverged"]
    # An untrained network is finite, but about as good as guessing among 60 classes, and worse than among 50.
    monkeypatch.setattr(stability, "CLASSES", 50)
    untrained = stability.train(dataset, "tiny", 1, {"train.lr": 1e-9, "data.frames": 8})
    assert untrained["diverged"].startswith("the training loss is 4.")


def test_recorded_trainings_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    command = "stability --presets tiny --rates 0.05 --recipes ntu --clips 80 --epochs 2 --set data.frames=8"
    monkeypatch.setattr(
        "sys.argv", [*command.split(), "--set", "train.batch_size=8", "--log", str(log), "--seeds", "1"]
    )
    stability.main()
    first = json.loads(log.read_text())
    assert first["preset"] == "tiny"
    sys.argv[-1] = "2"
    stability.main()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[0] == first
    assert [line["seed"] for line in lines] == [0, 1]
    assert "| tiny | 2 epochs data.frames=8 train.batch_size=8 | ntu | 0.05 | 0 of 2 |" in capsys.readouterr().out
