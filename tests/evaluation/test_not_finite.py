"""A clip or a network whose scores are not finite is reported by name; NaN is never a prediction."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from fgst.cli import evaluate, explain, predict
from fgst.data.dataset import ArrowDataset
from fgst.errors import InputError
from fgst.evaluation.ensemble import EnsembleCard, Member
from fgst.evaluation.inference import Predictor
from fgst.evaluation.prediction import predict_files
from fgst.tracking.store import TrackingStore
from fgst.training.trainer import DivergedError, fit
from tests.evaluation.helpers import error_of, log_network, npy_bytes
from tests.support import small
from tests.support.digests import adapt_digests

CPU = torch.device("cpu")
HUGE = np.float32(3e38)
FAULT = "the network's scores of this clip are not finite; are its coordinates in metres?"


def with_huge_clip(out: Path, number: int) -> ArrowDataset:
    """Write the small data set with huge coordinates in one clip."""
    clips = list(small.motion_clips())
    joints = clips[number].joints.copy()
    joints[:, ::2] = HUGE
    joints[:, 1::2] = -HUGE
    clips[number] = dataclasses.replace(clips[number], joints=joints)
    return small.write_small(out, clips)


def spoil_weights(checkpoint: Path, name: str = "embedding.weight") -> None:
    """Make one weight NaN, as in a network that diverged."""
    weights = load_file(checkpoint / "model.safetensors")
    weights[name].view(-1)[0] = torch.nan
    save_file(weights, checkpoint / "model.safetensors")
    adapt_digests(checkpoint)


# Clips


@pytest.mark.parametrize("recipe", ["ntu", "nw-ucla"])
def test_huge_clip_is_a_fault_and_others_are_predicted(dataset: ArrowDataset, tmp_path: Path, recipe: str) -> None:
    predictor = Predictor.load(small.save_untrained_network(dataset, tmp_path / "network", data__recipe=recipe))
    names = []
    for number in range(3):
        clip = dataset.clip(number).copy()
        clip[:, ::2] = HUGE if number == 1 else clip[:, ::2]
        clip[:, 1::2] = -HUGE if number == 1 else clip[:, 1::2]
        names.append(str(tmp_path / f"{number}.npy"))
        Path(names[-1]).write_bytes(npy_bytes(clip))
    rows = list(predict_files(predictor, names, 5, CPU))
    [first, last] = predict_files(predictor, [names[0], names[2]], 5, CPU)
    assert rows[1] == {"file": names[1], "fault": rows[1]["fault"]}
    for row, expected in ((rows[0], first), (rows[2], last)):
        probabilities, others = ([entry["probability"] for entry in each["top"]] for each in (row, expected))
        assert probabilities == pytest.approx(others, rel=1e-5)
    json.dumps(rows, allow_nan=False)


def test_probabilities_of_huge_clip_are_refused(dataset: ArrowDataset, checkpoint: Path) -> None:
    predictor = Predictor.load(checkpoint)
    huge = np.where(np.arange(9)[None, :, None, None] % 2, HUGE, -HUGE).repeat(6, 2).repeat(3, 3)
    with pytest.raises(InputError, match=f"clip 1: {FAULT.replace('?', '.')}"):
        predictor.probabilities([dataset.clip(0), huge])
    assert predictor.top([huge, dataset.clip(0)], 2)[0] == []
    assert len(predictor.top([huge, dataset.clip(0)], 2)[1]) == 2


def test_served_model_reports_huge_clip(dataset: ArrowDataset, checkpoint: Path) -> None:
    from fgst.tracking.serving import ServedModel  # MLflow takes seconds to import

    served = ServedModel()
    served.load_context(SimpleNamespace(artifacts={"networks": str(checkpoint)}))
    clip = dataset.clip(0).copy()
    good = base64.b64encode(npy_bytes(clip)).decode()
    clip[:, ::2], clip[:, 1::2] = HUGE, -HUGE
    huge = base64.b64encode(npy_bytes(clip)).decode()
    rows = served.predict(None, pd.DataFrame([{"name": "a", "content": huge}, {"name": "b", "content": good}]))
    assert rows[0].keys() == {"name", "top", "fault"}
    assert rows[0]["top"] == []
    assert len(rows[1]["top"]) == 3
    json.dumps(rows, allow_nan=False)


@pytest.mark.parametrize("main", [evaluate.main, explain.main], ids=["evaluate", "explain"])
def test_huge_clip_of_data_set_is_named(
    main: Any, dataset: ArrowDataset, tmp_path: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    number = int(dataset.splits().test[0])
    huge = with_huge_clip(tmp_path / "huge", number)
    checkpoint = small.save_untrained_network(dataset, tmp_path / "network")
    run_id = log_network(TrackingStore(tracking_uri), checkpoint)
    arguments = ["--run-id", run_id, "--dataset", str(huge.path), "--tracking-uri", tracking_uri]
    assert f"clip {dataset.clip_ids[number]}: {FAULT}" in error_of(main, arguments, capsys)


@pytest.mark.parametrize("split", ["val", "test"])
def test_training_names_huge_clip(dataset: ArrowDataset, tmp_path: Path, split: str) -> None:
    number = int(getattr(dataset.splits(), split)[0])
    huge = with_huge_clip(tmp_path / "huge", number)
    with pytest.raises(DivergedError, match=rf"epoch 1, {split} clips: clip {huge.clip_ids[number]}: .*not finite"):
        list(fit(small.small_config(huge, train__epochs=1)))


# Networks


@pytest.mark.parametrize("command", ["predict", "evaluate", "explain"])
def test_network_with_nan_is_named(
    command: str, dataset: ArrowDataset, tmp_path: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = small.save_untrained_network(dataset, tmp_path / "network")
    spoil_weights(checkpoint)
    run_id = log_network(TrackingStore(tracking_uri), checkpoint)
    (tmp_path / "a.npy").write_bytes(npy_bytes(dataset.clip(0)))
    mains = {"predict": predict.main, "evaluate": evaluate.main, "explain": explain.main}
    more = {"predict": ["--json", str(tmp_path / "a.npy")], "evaluate": ["--json"], "explain": []}[command]
    error = error_of(mains[command], ["--run-id", run_id, "--tracking-uri", tracking_uri, *more], capsys)
    assert error == "error: the network's weights embedding.weight are not finite, so it cannot classify any clip\n"


def test_ensemble_with_nan_is_named(
    dataset: ArrowDataset, tmp_path: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store, members = TrackingStore(tracking_uri), []
    for modality in ("joint", "bone"):
        checkpoint = small.save_untrained_network(dataset, tmp_path / modality, data__modality=modality)
        if modality == "bone":
            spoil_weights(checkpoint)
        members.append(Member(modality, log_network(store, checkpoint, modality), 0.5))
    ensemble = store.start(store.experiment("small x-sub"), "ensemble", "an ensemble", {"fgst.kind": "ensemble"})
    (tmp_path / "ensemble").mkdir()
    EnsembleCard(tuple(members)).write(tmp_path / "ensemble" / "ensemble.json")
    ensemble.log_artifacts(tmp_path / "ensemble")
    (tmp_path / "a.npy").write_bytes(npy_bytes(dataset.clip(0)))
    for main, more in ((predict.main, [str(tmp_path / "a.npy")]), (evaluate.main, ["--json"])):
        arguments = ["--run-id", ensemble.run_id, "--tracking-uri", tracking_uri, *more]
        assert "weights embedding.weight are not finite" in error_of(main, arguments, capsys)
