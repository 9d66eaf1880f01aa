"""What a trial costs is what its network says, and what a training of it takes."""

from __future__ import annotations

import time
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
    splits_of,
    training_steps,
    work,
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
def test_size_is_the_networks(dataset: ArrowDataset, values: dict[str, object]) -> None:
    config = small.small_config(dataset, **values)
    found = model_cost(config, dataset)
    assert found.parameters == sum(p.numel() for p in build(config, dataset).parameters())
    shape = InputShape("small", 2, config.data.frames or 0, dataset.skeleton, dataset.num_classes)
    assert dataset.max_persons == 2
    assert found == ModelCost(found.parameters, 2 * summarize(config.model, shape).flops / 1e9)


def test_frames_left_open_are_the_recipes(dataset: ArrowDataset) -> None:
    left, given = (small.small_config(dataset, data__frames=frames) for frames in (None, 128))
    assert model_cost(left, dataset) == model_cost(given, dataset)


def test_counting_is_quick_remembered_and_draws_nothing(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    dataset = small.write_small(tmp_path / "data", (c for c in small.motion_clips(12)))
    config = PRESETS["paper"].with_values(
        {"data.dataset": str(dataset.path), "data.frames": 52, "model.focal_joints": 6, "model.parts": 3}
    )
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model_cost(small.small_config(dataset), dataset)  # what PyTorch imports at its first count is not counting
    began = time.process_time()
    model_cost(config, dataset)
    counted = time.process_time()
    model_cost(config.with_values({"train.lr": 0.5}), dataset)
    assert counted - began < 1  # 0.2 s where nothing else runs
    assert time.process_time() - counted < 0.01
    assert torch.equal(torch.get_rng_state(), before)


def test_what_does_not_fit_the_skeleton_is_named(dataset: ArrowDataset) -> None:
    with pytest.raises(InputError, match=r"model\.focal_joints is 7"):
        model_cost(small.small_config(dataset, model__focal_joints=7), dataset)


def test_kept_bytes_hold_the_inputs_of_the_blocks(dataset: ArrowDataset) -> None:
    """More than the inputs of all linear layers, which each product keeps; and they grow as the frames do."""
    config = small.small_config(dataset)
    model, inputs = build(config, dataset), []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, given: inputs.append(given[0].nbytes))
    model(torch.zeros(1, 1, 8, 6, 3))
    assert sum(inputs) < activation_bytes(config, dataset) / 2 < 10 * sum(inputs)
    double = activation_bytes(small.small_config(dataset, data__frames=16), dataset)
    assert 1.9 < double / activation_bytes(config, dataset) < 3
    assert work(config, dataset) > model_cost(config, dataset).gflops


def test_data_are_the_frames_of_the_splits(dataset: ArrowDataset) -> None:
    config = resolve(small.small_config(dataset), dataset)
    sizes = [dataset.clip(row).nbytes for row in range(len(dataset))]  # x-sub: every clip trains, validates or tests
    assert data_bytes(config.data, dataset) == sum(sizes)
    splits = splits_of(config.data, dataset)
    assert len(splits.train) + len(splits.val) + len(splits.test) == len(dataset)
    assert len(splits_of(config.with_values({"data.protocol": "paper"}).data, dataset).val) == 0


def test_latency_grows_with_the_network_and_leaves_its_mode(dataset: ArrowDataset) -> None:
    narrow = small.small_config(dataset)
    wide = narrow.with_values({"model.channels": (128, 128, 256, 256), "data.frames": 64})
    found = []
    for config in (narrow, wide):
        model = build(config, dataset).train()
        statistics = model.input_norm.running_mean
        assert statistics is not None
        before = statistics.clone()
        batch = ClipLoader(dataset, np.arange(3), config.data, torch.device("cpu")).batch(np.arange(3))
        found.append(latency_ms(model, batch))
        assert model.training
        assert torch.equal(statistics, before)
    assert 0 < 2 * found[0] < found[1] < 10_000


def test_steps_are_counted_across_passes_over_the_clips(dataset: ArrowDataset) -> None:
    """16 training clips in batches of 8 are two steps a pass; no epoch ends in between."""
    config, told = small.small_config(dataset), []

    def more(done: int) -> bool:
        told.append(done)
        return done < 5

    training_steps(config, dataset, "cpu", most=9, more=more)
    assert told == [1, 2, 3, 4, 5]
    training_steps(config, dataset, "cpu", most=3, more=lambda done: True)


def test_a_timed_step_stands_for_others(dataset: ArrowDataset) -> None:
    step = calibrate(small.small_config(dataset), dataset, "cpu")
    assert step.clips == 8
    assert 0 < step.floor < 2
    assert 0 < step.seconds < 2
    big = 1000 * step.work
    assert step.step_seconds(8, big) == pytest.approx(1000 * step.seconds)
    assert step.step_seconds(16, big) == pytest.approx(2000 * step.seconds)
    assert step.step_seconds(8, step.work / 1e6) == step.floor
