"""Tests of the cost of a trial: parameters, FLOPs, activations, latency, and timed training steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fgst.config import PRESETS, TrialConfig, resolve
from fgst.data.dataset import ArrowDataset
from fgst.data.loader import ClipLoader
from fgst.errors import InputError
from fgst.model import FGSTFormer
from fgst.model.shapes import InputShape
from fgst.model.summary import summarize
from fgst.sweep.planning.cost import (
    ModelCost,
    activation_bytes,
    calibrate,
    data_bytes,
    latency_ms,
    model_cost,
    training_steps,
    work_per_clip,
)
from tests.support import small


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


def build(config: TrialConfig, dataset: ArrowDataset) -> FGSTFormer:
    frames = resolve(config, dataset).data.frames
    assert frames is not None
    return FGSTFormer(config.model, dataset.skeleton, dataset.num_classes, frames=frames)


@pytest.mark.parametrize(
    "values",
    [{}, {"model__temporal": "convolution"}, {"model__focal_joints": 2, "model__norm": "layer"}, {"data__frames": 13}],
)
def test_model_cost_matches_the_network(dataset: ArrowDataset, values: dict[str, object]) -> None:
    config = small.small_config(dataset, **values)
    cost = model_cost(config, dataset)
    assert cost.parameters == sum(p.numel() for p in build(config, dataset).parameters())
    shape = InputShape("small", 2, config.data.frames or 0, dataset.skeleton, dataset.num_classes)
    assert dataset.max_persons == 2
    assert cost == ModelCost(cost.parameters, 2 * summarize(config.model, shape).flops / 1e9)


def test_default_number_of_frames_is_that_of_the_recipe(dataset: ArrowDataset) -> None:
    default, explicit = (small.small_config(dataset, data__frames=frames) for frames in (None, 128))
    assert model_cost(default, dataset) == model_cost(explicit, dataset)


def test_counting_is_cached_and_draws_no_random_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.float32)
    dataset = small.write_small(tmp_path / "data", (c for c in small.motion_clips(12)))
    config = PRESETS["paper"].with_values(
        {"data.dataset": str(dataset.path), "data.frames": 52, "model.focal_joints": 6, "model.parts": 3}
    )
    torch.manual_seed(3)
    before = torch.get_rng_state()
    counted = model_cost(config, dataset)
    monkeypatch.setattr("fgst.sweep.planning.cost.FGSTFormer", None)  # another count would fail
    assert model_cost(config.with_values({"train.lr": 0.5}), dataset) == counted
    assert torch.equal(torch.get_rng_state(), before)


def test_network_that_does_not_fit_the_skeleton_is_rejected(dataset: ArrowDataset) -> None:
    with pytest.raises(InputError, match=r"model\.focal_joints is 7"):
        model_cost(small.small_config(dataset, model__focal_joints=7), dataset)


def test_activation_bytes_include_the_inputs_of_linear_layers(dataset: ArrowDataset) -> None:
    """Each matrix product saves its input; activations grow with the number of frames."""
    config = small.small_config(dataset)
    model, sizes = build(config, dataset), []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].nbytes))
    model(torch.zeros(1, 1, 8, 6, 3))
    assert sum(sizes) < activation_bytes(config, dataset) / 2 < 10 * sum(sizes)
    double = activation_bytes(small.small_config(dataset, data__frames=16), dataset)
    assert 1.9 < double / activation_bytes(config, dataset) < 3
    assert work_per_clip(config, dataset) > model_cost(config, dataset).gflops


def test_data_bytes_count_the_frames_of_all_splits(dataset: ArrowDataset) -> None:
    config = resolve(small.small_config(dataset), dataset)
    sizes = [dataset.clip(row).nbytes for row in range(len(dataset))]  # x-sub uses every clip
    assert data_bytes(config.data, dataset) == sum(sizes)
    splits = dataset.splits_for(config.data)
    assert len(splits.train) + len(splits.val) + len(splits.test) == len(dataset)
    assert len(dataset.splits_for(config.with_values({"data.protocol": "paper"}).data).val) == 0


def test_latency_grows_with_the_network_and_preserves_its_state(dataset: ArrowDataset) -> None:
    narrow = small.small_config(dataset)
    wide = narrow.with_values({"model.channels": (128, 128, 256, 256), "data.frames": 64})
    latencies = []
    for config in (narrow, wide):
        model = build(config, dataset).train()
        statistics = model.input_norm.running_mean
        assert statistics is not None
        before = statistics.clone()
        batch = ClipLoader(dataset, np.arange(3), config.data, torch.device("cpu")).batch(np.arange(3))
        latencies.append(latency_ms(model, batch))
        assert model.training
        assert torch.equal(statistics, before)
    assert 0 < 2 * latencies[0] < latencies[1] < 10_000


def test_training_steps_continue_across_passes_over_the_clips(dataset: ArrowDataset) -> None:
    """18 training clips in batches of 8 are about two steps per pass."""
    config, counts = small.small_config(dataset), []

    def should_continue(steps: int) -> bool:
        counts.append(steps)
        return steps < 5

    training_steps(config, dataset, "cpu", max_steps=9, should_continue=should_continue)
    assert counts == [1, 2, 3, 4, 5]


def test_training_steps_stop_at_the_maximum(dataset: ArrowDataset) -> None:
    counts: list[int] = []

    def should_continue(steps: int) -> bool:
        counts.append(steps)
        return True

    training_steps(small.small_config(dataset), dataset, "cpu", max_steps=3, should_continue=should_continue)
    assert counts == [1, 2, 3]


def test_calibration_predicts_other_steps(dataset: ArrowDataset) -> None:
    step = calibrate(small.small_config(dataset), dataset, "cpu")
    assert step.clips == 8
    assert 0 < step.floor < 2
    assert 0 < step.seconds < 2
    big = 1000 * step.work
    assert step.step_seconds(8, big) == pytest.approx(1000 * step.seconds)
    assert step.step_seconds(16, big) == pytest.approx(2000 * step.seconds)
    assert step.step_seconds(8, step.work / 1e6) == step.floor
