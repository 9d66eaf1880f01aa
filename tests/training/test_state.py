"""A training resumes from a state of its own only: anything else is one line, never another training in silence."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fgst.config import TrialConfig
from fgst.data.dataset import ArrowDataset
from fgst.errors import InputError, Preempted
from fgst.training.checkpoint import load_state
from tests.model.small_networks import VARIANTS
from tests.support.digests import adapt_digests, remove_digests
from tests.support.small import small_config
from tests.training.helpers import assert_same_result, run

Edit = Callable[[dict[str, Any]], Any]


def put(value: Any, *path: Any) -> Edit:
    """Return a function that replaces an entry of a state."""

    def edit(state: dict[str, Any]) -> dict[str, Any]:
        inner: Any = state
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value(inner[path[-1]]) if callable(value) else value
        return state

    return edit


def drop(*path: Any) -> Edit:
    def edit(state: dict[str, Any]) -> dict[str, Any]:
        inner: Any = state
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        return state

    return edit


GROUP = ("optimizer", "param_groups", 0)
MOMENTUM = ("optimizer", "state", 3, "momentum_buffer")
EDITS: dict[str, tuple[Edit, str]] = {
    "epoch inf": (put(math.inf, "epoch"), "epoch is inf instead of 2"),
    "epoch -1": (put(-1, "epoch"), "epoch is -1 instead of 2"),
    "epoch of the checkpoint before": (put(1, "epoch"), "epoch is 1 instead of 2"),
    "epoch True": (put(True, "epoch"), "epoch is True instead of 2"),
    "epoch text": (put("2", "epoch"), "epoch is '2' instead of 2"),
    "epoch float": (put(2.0, "epoch"), r"epoch is 2\.0 instead of 2"),
    "no epoch": (drop("epoch"), "has no entry 'epoch'"),
    "momentum of another shape": (put(lambda value: value[None], *MOMENTUM), "momentum_buffer is .* instead of"),
    "momentum of another type": (put(torch.Tensor.double, *MOMENTUM), "momentum_buffer is torch.float64"),
    "momentum of integers": (put(torch.Tensor.long, *MOMENTUM), "momentum_buffer is torch.int64"),
    "sparse momentum": (put(torch.Tensor.to_sparse, *MOMENTUM), "momentum_buffer is .*, not a tensor"),
    "momentum without memory": (put(lambda value: value.to("meta"), *MOMENTUM), "momentum_buffer is .*, not a tensor"),
    "no momentum of a parameter": (drop(*MOMENTUM[:-1]), "optimizer.state has no entry 3"),
    "momentum of an unknown parameter": (
        put({}, "optimizer", "state", 999),
        "optimizer.state has an unknown entry 999",
    ),
    "momentum is None": (put(None, *MOMENTUM), "momentum_buffer is None, not a tensor"),
    "another momentum": (put(0.5, *GROUP, "momentum"), r"momentum is 0\.5 instead of 0\.9"),
    "another weight decay": (put(0.0, *GROUP, "weight_decay"), r"weight_decay is 0\.0 instead of"),
    "not Nesterov": (put(False, *GROUP, "nesterov"), "nesterov is False instead of True"),
    "maximize": (put(True, *GROUP, "maximize"), "maximize is True instead of False"),
    "dampening": (put(0.9, *GROUP, "dampening"), r"dampening is 0\.9 instead of 0"),
    "learning rate nan": (put(math.nan, *GROUP, "lr"), "lr is nan, not a finite number"),
    "learning rate is a tensor": (put(torch.tensor(0.1), *GROUP, "lr"), "lr is Tensor, not a finite number"),
    "parameters in another order": (put(lambda value: value[::-1], *GROUP, "params"), "params.* instead of 0"),
    "two groups": (put(lambda value: value * 2, "optimizer", "param_groups"), "not a list of 1"),
    "loss nan": (put(math.nan, "metrics", "train/loss"), "train/loss is nan"),
    "negative minutes": (put(-1.0, "metrics", "minutes"), r"minutes is -1\.0"),
    "no metrics": (put({}, "metrics"), "metrics has no entry"),
    "another metric": (put(1.0, "metrics", "evil"), "metrics has an unknown entry 'evil'"),
    "metrics is a list": (put([], "metrics"), "metrics is list, not a dictionary"),
    "average's weights of another type": (
        put(lambda value: {name: tensor.double() for name, tensor in value.items()}, "weights"),
        "weights.* is torch.float64",
    ),
    "no weights in addition to the average": (drop("weights"), "has no entry 'weights'"),
    "an unknown entry": (put(1, "more"), "has an unknown entry 'more'"),
    "a list": (lambda state: [state], "is not the state of a training"),
    "steps of an epoch that is over": (put({"steps": 1}, "begun"), "has an unknown entry 'begun'"),
}
BEGUN_EDITS: dict[str, tuple[Edit, str]] = {
    "other steps": (put(1, "begun", "steps"), "begun.steps is 1 instead of 2"),
    "other clips": (put(15, "begun", "clips"), "begun.clips is 15 instead of 16"),
    "seconds inf": (put(math.inf, "begun", "seconds"), "begun.seconds is inf"),
    "loss is a number": (put(1.0, "begun", "loss_sum"), "begun.loss_sum is 1.0, not a tensor"),
    "loss of another shape": (put(torch.zeros(2), "begun", "loss_sum"), "begun.loss_sum is"),
    "no random state": (drop("begun", "random"), "begun has no entry 'random'"),
    "random state of another size": (put(lambda value: value[1:], "begun", "random"), "begun.random is"),
    "random state of zeros": (put(torch.zeros_like, "begun", "random"), "begun.random is not the state"),
    "no epoch was begun": (drop("begun"), "has no entry 'begun'"),
}


@pytest.fixture(scope="module")
def config(dataset: ArrowDataset) -> TrialConfig:
    return small_config(dataset, train__ema=0.9)


@pytest.fixture(scope="module")
def trained(config: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint after epoch 2."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    run(config, folder, epochs=2)
    return folder


@pytest.fixture(scope="module")
def interrupted(config: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint after step 2 of the first epoch."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("interrupted")
    steps = iter((False, False, True))
    with pytest.raises(Preempted):
        run(config, folder, should_stop=lambda: next(steps))
    return folder


def change_state(checkpoint: Path, edit: Edit) -> None:
    torch.save(edit(load_state(checkpoint)), checkpoint / "state.pt")
    adapt_digests(checkpoint)


def test_names_of_the_fixtures(trained: Path, interrupted: Path) -> None:
    assert [path.name for path in trained.iterdir()] == ["epoch-00002"]
    assert [path.name for path in interrupted.iterdir()] == ["epoch-00000-step-00002"]


@pytest.mark.parametrize("name", EDITS)
def test_wrong_state_is_rejected(tmp_path: Path, trained: Path, config: TrialConfig, name: str) -> None:
    edit, fault = EDITS[name]
    shutil.copytree(trained, tmp_path / "run")
    change_state(tmp_path / "run" / "epoch-00002", edit)
    with pytest.raises(InputError, match=rf"epoch-00002/state\.pt: .*{fault}.*remove {tmp_path}/run$"):
        run(config, tmp_path / "run")


@pytest.mark.parametrize("name", BEGUN_EDITS)
def test_wrong_state_within_an_epoch_is_rejected(
    tmp_path: Path, interrupted: Path, config: TrialConfig, name: str
) -> None:
    edit, fault = BEGUN_EDITS[name]
    shutil.copytree(interrupted, tmp_path / "run")
    change_state(tmp_path / "run" / "epoch-00000-step-00002", edit)
    with pytest.raises(InputError, match=rf"step-00002/state\.pt: .*{fault}.*remove {tmp_path}/run$"):
        run(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put(lambda step: step + 1, "optimizer", 1, "state", 0, "step"), "step is .* instead of"),
        (put(lambda parts: parts[::-1], "optimizer"), r"optimizer\[0\]"),
        (put(lambda parts: parts[0], "optimizer"), "optimizer is dict, not a list of 2"),
        (put(0.5, "optimizer", 1, "param_groups", 1, "weight_decay"), r"weight_decay is 0\.5"),
    ],
)
def test_wrong_state_of_muon_is_rejected(tmp_path: Path, dataset: ArrowDataset, edit: Edit, message: str) -> None:
    config = small_config(dataset, train__epochs=3, train__optimizer="muon")
    run(config, tmp_path, epochs=2)
    change_state(tmp_path / "epoch-00002", edit)
    with pytest.raises(InputError, match=message):
        run(config, tmp_path)


@pytest.mark.parametrize("name", ["epoch-00003", "epoch-00000", "epoch-99999", "epoch-00002-step-00001"])
def test_renamed_checkpoint_is_rejected(tmp_path: Path, trained: Path, config: TrialConfig, name: str) -> None:
    shutil.copytree(trained / "epoch-00002", tmp_path / name)
    with pytest.raises(InputError, match=rf"{name}/state\.pt: is not the state of this training"):
        run(config, tmp_path)


def test_checkpoint_after_an_impossible_step_is_rejected(
    tmp_path: Path, interrupted: Path, config: TrialConfig
) -> None:
    shutil.copytree(interrupted / "epoch-00000-step-00002", tmp_path / "epoch-00000-step-00099")
    change_state(tmp_path / "epoch-00000-step-00099", put(99, "begun", "steps"))
    with pytest.raises(InputError, match=r"state\.pt: is not the state of this training \(an epoch has 3 steps"):
        run(config, tmp_path)


# Damage


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "state.pt"])
def test_damaged_checkpoint_is_replaced_by_the_one_before(
    tmp_path: Path, dataset: ArrowDataset, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that was killed after it saved leaves two checkpoints."""
    config = small_config(dataset, train__epochs=3)
    uninterrupted = run(config, tmp_path / "uninterrupted")
    run(config, tmp_path / "run", epochs=1)
    shutil.copytree(tmp_path / "run" / "epoch-00001", tmp_path / "epoch-00001")
    run(config, tmp_path / "run", epochs=2)
    (tmp_path / "epoch-00001").rename(tmp_path / "run" / "epoch-00001")
    damaged = tmp_path / "run" / "epoch-00002" / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    resumed = run(config, tmp_path / "run")
    assert [(result.epoch, result.is_replay) for result in resumed] == [(1, True), (2, False), (3, False)]
    assert_same_result(tmp_path / "run", resumed, tmp_path / "uninterrupted", uninterrupted)
    [message] = [record.getMessage() for record in caplog.records]
    assert str(damaged) in message
    assert message.endswith("; resuming from epoch-00001 instead")


def test_all_checkpoints_are_damaged(tmp_path: Path, trained: Path, config: TrialConfig) -> None:
    for name in ("epoch-00001", "epoch-00002"):
        shutil.copytree(trained / "epoch-00002", tmp_path / name)
        (tmp_path / name / "state.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"epoch-00002/state\.pt: was modified.*remove"):
        run(config, tmp_path)


def test_checkpoint_of_earlier_version_is_resumed(tmp_path: Path, dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__epochs=2)
    uninterrupted = run(config, tmp_path / "uninterrupted")
    run(config, tmp_path / "run", epochs=1)
    remove_digests(tmp_path / "run" / "epoch-00001")
    resumed = run(config, tmp_path / "run")
    assert_same_result(tmp_path / "run", resumed, tmp_path / "uninterrupted", uninterrupted)


# What a state consists of


@pytest.mark.parametrize("name", [name for name in VARIANTS if "K=" not in name and "P=" not in name])
def test_each_variant_accepts_its_own_state(tmp_path: Path, dataset: ArrowDataset, name: str) -> None:
    """Each parameter has a momentum, i.e. a gradient, in every variant of the network."""
    values = {f"model__{field}": value for field, value in VARIANTS[name].items()}
    config = small_config(dataset, train__epochs=2, **({"model__stage1_layers": 2} | values))
    run(config, tmp_path, epochs=1)
    assert [result.epoch for result in run(config, tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    "values",
    [
        {"train__momentum": 0.0},
        {"data__protocol": "paper"},
        {"train__precision": "bfloat16"},
        {"train__optimizer": "adamw"},
        {"train__optimizer": "muon", "train__ema": 0.9},
    ],
)
def test_each_kind_of_training_accepts_its_own_state(
    tmp_path: Path, dataset: ArrowDataset, values: dict[str, Any]
) -> None:
    config = small_config(dataset, train__epochs=2, **values)
    run(config, tmp_path, epochs=1)
    assert [result.epoch for result in run(config, tmp_path)] == [1, 2]
