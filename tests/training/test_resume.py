"""Resuming trainings: bit-exact after interruptions, preemption and kills; unsuitable checkpoints are rejected."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fgst.config import resolve
from fgst.data.dataset import ArrowDataset
from fgst.data.loader import make_loaders
from fgst.errors import InputError, Preempted
from fgst.evaluation.scoring import score
from fgst.model.card import load_model
from fgst.training.checkpoint import load_state
from fgst.training.trainer import EpochResult, fit
from tests.support.digests import adapt_digests
from tests.support.process import kill_on_line, start_python
from tests.support.small import motion_clips, small_config, write_small
from tests.training.helpers import CPU, assert_same_result, checkpoint_bits, run

RESUMABLE: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"model__dropout": 0.3},
    "moving average": {"train__ema": 0.9},
    "bfloat16": {"train__precision": "bfloat16"},
    "clipped gradients": {"train__clip_norm": 0.5},
    "adamw": {"train__optimizer": "adamw", "train__lr": 0.002},
    "muon, rotation ramp": {"train__optimizer": "muon", "train__lr": 0.002, "train__rotation_ramp": 0.6},
    "cosine, nw-ucla": {
        "train__schedule": "cosine",
        "train__label_smoothing": 0.1,
        "data__recipe": "nw-ucla",
        "data__modality": "bone_motion",
    },
}


@pytest.mark.parametrize("variant", RESUMABLE)
def test_resume_between_epochs_is_bit_exact(tmp_path: Path, dataset: ArrowDataset, variant: str) -> None:
    config = small_config(dataset, **RESUMABLE[variant])
    uninterrupted = run(config, tmp_path / "uninterrupted")
    resumed = run(config, tmp_path / "resumed", epochs=2)
    torch.manual_seed(99)  # a new process has another random state
    resumed += run(config, tmp_path / "resumed")[1:]
    assert [result.epoch for result in resumed] == [1, 2, 3, 4]
    assert_same_result(tmp_path / "resumed", resumed, tmp_path / "uninterrupted", uninterrupted)
    # The network is trained: its loss changes in every epoch.
    assert len({result.metrics["train/loss"] for result in uninterrupted}) == 4


def test_resume_after_interrupt_at_every_step_is_bit_exact(tmp_path: Path, dataset: ArrowDataset) -> None:
    """The training is interrupted by Ctrl-C at each step of each epoch."""
    config = small_config(dataset, train__epochs=3, model__dropout=0.2)
    uninterrupted = run(config, tmp_path / "uninterrupted")
    results: dict[int, EpochResult] = {}

    def train(on_step: Callable[[int, int, int], None] | None = None) -> None:
        for result in fit(config, device="cpu", checkpoints=tmp_path / "interrupted", on_step=on_step):
            results[result.epoch] = result

    for position in itertools.product((1, 2, 3), (1, 2, 3)):

        def interrupt(epoch: int, step: int, steps: int, position: tuple[int, int] = position) -> None:
            if (epoch, step) == position:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(interrupt)
    train()
    assert_same_result(
        tmp_path / "interrupted", [results[epoch] for epoch in (1, 2, 3)], tmp_path / "uninterrupted", uninterrupted
    )


@pytest.mark.parametrize("variant", RESUMABLE)
def test_preemption_after_every_step_is_bit_exact(tmp_path: Path, dataset: ArrowDataset, variant: str) -> None:
    """A training that is stopped after every step runs each step exactly once and ends with the same bits."""
    config = small_config(dataset, **({"model__dropout": 0.2} | RESUMABLE[variant]), train__epochs=3)
    uninterrupted = run(config, tmp_path / "uninterrupted")
    results: dict[int, EpochResult] = {}
    steps: list[tuple[int, int]] = []

    def has_new_step(previous: int) -> bool:
        return len(steps) > previous

    for _ in range(100):
        torch.manual_seed(99)  # a new process has another random state
        previous = len(steps)
        training = fit(
            config,
            device="cpu",
            checkpoints=tmp_path / "stopped",
            on_step=lambda epoch, step, _: steps.append((epoch, step)),
            should_stop=functools.partial(has_new_step, previous),
        )
        try:
            for result in training:
                results[result.epoch] = result
        except Preempted:
            continue
        break
    assert steps == list(itertools.product((1, 2, 3), (1, 2, 3)))
    assert_same_result(
        tmp_path / "stopped", [results[epoch] for epoch in (1, 2, 3)], tmp_path / "uninterrupted", uninterrupted
    )


def test_checkpoint_within_epoch_has_step_in_name(tmp_path: Path, dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__epochs=2)
    run(config, tmp_path, epochs=1)
    steps: list[int] = []
    with pytest.raises(Preempted):
        list(
            fit(
                config,
                device="cpu",
                checkpoints=tmp_path,
                on_step=lambda _epoch, step, _steps: steps.append(step),
                should_stop=lambda: len(steps) == 2,
            )
        )
    assert [entry.name for entry in tmp_path.iterdir()] == ["epoch-00001-step-00002"]
    # The format is fixed, so that checkpoints of earlier versions can be resumed.
    state = load_state(tmp_path / "epoch-00001-step-00002")
    assert set(state) == {"epoch", "optimizer", "metrics", "begun"}
    names = {"steps", "clips", "seconds", "loss_sum", "correct", "grad_norms", "random", "random_of_device"}
    assert set(state["begun"]) == names
    assert (state["epoch"], state["begun"]["steps"], state["begun"]["clips"]) == (1, 2, 16)
    first, last = run(config, tmp_path)
    assert (first.epoch, first.is_replay, last.epoch) == (1, True, 2)


TRAIN_AND_HANG = """
import sys, time
from pathlib import Path
import torch
from tests.support.small import small_config
from fgst.training.trainer import fit

torch.set_num_threads(1)

def on_step(epoch, step, steps):
    if (epoch, step) == (3, 2):
        print("within an epoch", flush=True)
        time.sleep(60)

for result in fit(
    small_config(Path(sys.argv[1]), model__dropout=0.3), device="cpu", checkpoints=Path(sys.argv[2]), on_step=on_step
):
    print("epoch", result.epoch, flush=True)
"""


def test_resume_after_kill_is_bit_exact(tmp_path: Path, dataset: ArrowDataset) -> None:
    config = small_config(dataset, model__dropout=0.3)
    uninterrupted = run(config, tmp_path / "uninterrupted")
    kill_on_line(start_python(TRAIN_AND_HANG, dataset.path, tmp_path / "killed"), "within an epoch")
    assert [entry.name for entry in (tmp_path / "killed").iterdir()] == ["epoch-00002"]
    resumed = run(config, tmp_path / "killed")
    assert [(result.epoch, result.is_replay) for result in resumed] == [(2, True), (3, False), (4, False)]
    assert_same_result(tmp_path / "killed", resumed, tmp_path / "uninterrupted", uninterrupted[1:])


def test_resume_replays_epoch_of_checkpoint(tmp_path: Path, dataset: ArrowDataset) -> None:
    config = small_config(dataset)
    first = run(config, tmp_path, epochs=2)
    second = run(config, tmp_path)
    assert [(result.epoch, result.is_replay) for result in first] == [(1, False), (2, False)]
    assert [(result.epoch, result.is_replay) for result in second] == [(2, True), (3, False), (4, False)]
    assert second[0].metrics == first[-1].metrics  # including timings
    assert second[0].checkpoint == first[-1].checkpoint
    assert second[-1].metrics["minutes"] > second[0].metrics["minutes"]


def test_finished_training_replays_last_epoch(tmp_path: Path, dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__epochs=2)
    uninterrupted = run(config, tmp_path)
    expected = checkpoint_bits(tmp_path)
    (replay,) = run(config, tmp_path)
    assert (replay.epoch, replay.is_replay) == (2, True)
    assert replay.metrics == uninterrupted[-1].metrics
    assert replay.test is not None
    assert uninterrupted[-1].test is not None
    assert replay.test.scores.tobytes() == uninterrupted[-1].test.scores.tobytes()
    assert checkpoint_bits(tmp_path) == expected


def test_checkpoint_is_saved_before_result_is_yielded(tmp_path: Path, dataset: ArrowDataset) -> None:
    for result in fit(small_config(dataset, train__epochs=3), device="cpu", checkpoints=tmp_path / "run"):
        assert result.checkpoint == tmp_path / "run" / f"epoch-{result.epoch:05d}"
        assert list((tmp_path / "run").iterdir()) == [result.checkpoint]
        assert load_state(result.checkpoint)["epoch"] == result.epoch


def test_loaded_checkpoint_has_same_scores(tmp_path: Path, dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__epochs=2)
    last = run(config, tmp_path)[-1]
    assert last.checkpoint is not None
    assert last.test is not None
    model, card = load_model(last.checkpoint)
    assert card.config == resolve(config, dataset)
    assert (card.dataset_digest, card.dataset_name, card.classes) == (dataset.digest, "small", dataset.classes)
    loader = make_loaders(dataset, card.config.data, CPU)["test"]
    assert score(model, loader).scores.tobytes() == last.test.scores.tobytes()


def test_no_checkpoints_without_folder(tmp_path: Path, dataset: ArrowDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = run(small_config(dataset, train__epochs=2))
    assert [result.checkpoint for result in results] == [None, None]
    assert list(tmp_path.iterdir()) == []


# Rejected checkpoints


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.seed", 5),
        ("train.lr", 0.02),
        ("train.epochs", 5),
        ("train.batch_size", 9),
        ("train.clip_norm", 0.5),
        ("train.ema", 0.9),
        ("train.precision", "bfloat16"),
        ("model.focal_joints", 3),
        ("model.temporal", "convolution"),
        ("model.dropout", 0.1),
        ("model.focal_gate", False),
        ("data.modality", "bone"),
        ("data.protocol", "paper"),
        ("data.benchmark", "x-view"),
        ("data.validation_seed", 1),
        ("data.frames", 9),
    ],
)
def test_resume_with_other_configuration_is_rejected(
    tmp_path: Path, dataset: ArrowDataset, name: str, value: Any
) -> None:
    config = small_config(dataset)
    run(config, tmp_path, epochs=1)
    expected = checkpoint_bits(tmp_path)
    with pytest.raises(InputError, match=rf"epoch-00001: was trained with {name} = .*not {value}"):
        run(config.with_values({name: value}), tmp_path)
    assert checkpoint_bits(tmp_path) == expected


def test_resume_with_other_data_is_rejected(tmp_path: Path, dataset: ArrowDataset) -> None:
    run(small_config(dataset), tmp_path / "run", epochs=1)
    other = write_small(tmp_path / "other", motion_clips(seed=1))
    with pytest.raises(InputError, match=rf"epoch-00001: .*different data.*{dataset.digest[:12]}"):
        run(small_config(other), tmp_path / "run")


def test_resume_after_moving_data_set_is_bit_exact(tmp_path: Path, dataset: ArrowDataset) -> None:
    uninterrupted = run(small_config(dataset, train__epochs=2), tmp_path / "uninterrupted")
    shutil.copytree(dataset.path, tmp_path / "before")
    run(small_config(tmp_path / "before", train__epochs=2), tmp_path / "run", epochs=1)
    (tmp_path / "before").rename(tmp_path / "after")
    resumed = run(small_config(tmp_path / "after", train__epochs=2), tmp_path / "run")
    assert_same_result(tmp_path / "run", resumed, tmp_path / "uninterrupted", uninterrupted)


@pytest.mark.parametrize(
    "damage", ["state truncated", "weights truncated", "no weights", "a list", "no optimizer", "other optimizer"]
)
def test_damaged_checkpoint_is_rejected_with_file_name(tmp_path: Path, dataset: ArrowDataset, damage: str) -> None:
    config = small_config(dataset)
    run(config, tmp_path, epochs=1)
    state, weights = (tmp_path / "epoch-00001" / name for name in ("state.pt", "model.safetensors"))
    content = load_state(state.parent)
    expected_file = state
    if damage == "state truncated":
        os.truncate(state, state.stat().st_size // 2)
    elif damage == "weights truncated":
        os.truncate(weights, weights.stat().st_size // 2)
        expected_file = weights
    elif damage == "no weights":
        weights.unlink()
        expected_file = weights
    elif damage == "a list":
        torch.save([1, 2], state)
    elif damage == "no optimizer":
        torch.save({"epoch": 1, "metrics": content["metrics"]}, state)
    else:
        groups = [content["optimizer"]["param_groups"][0] | {"params": [0]}]
        torch.save(content | {"optimizer": {"state": {}, "param_groups": groups}}, state)
    with pytest.raises(InputError, match=rf"epoch-00001/{expected_file.name}: .*remove {tmp_path}"):
        run(config, tmp_path)
    adapt_digests(state.parent)
    with pytest.raises(InputError, match=rf"epoch-00001/{expected_file.name}: .*remove {tmp_path}"):
        run(config, tmp_path)
