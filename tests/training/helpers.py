"""Trainings of a small network, and comparisons of their results bit by bit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fgst.config import TrialConfig
from fgst.model import FGSTFormer
from fgst.model.card import ModelCard
from fgst.training.checkpoint import load_state, save_checkpoint
from fgst.training.trainer import EpochResult, fit

TIMING_METRICS = ("clips_per_second", "minutes")
CPU = torch.device("cpu")


def run(
    config: TrialConfig, folder: Path | None = None, epochs: int | None = None, **options: Any
) -> list[EpochResult]:
    """Return the results of a training, or of its first ``epochs`` only, after which it is closed."""
    training = fit(config, device="cpu", checkpoints=folder, **options)
    assert isinstance(training, Generator)
    results = list(itertools.islice(training, epochs))
    training.close()
    return results


def metrics_of(result: EpochResult) -> dict[str, float]:
    """Return the metrics of an epoch without timings."""
    return {name: value for name, value in result.metrics.items() if name not in TIMING_METRICS}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield path and value of each tensor (as bytes) and plain value in nested dicts and lists, without timings."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from leaves(item, f"{path}/{number}")
    elif isinstance(value, torch.Tensor):
        yield path, (value.dtype, tuple(value.shape), value.numpy().tobytes())
    elif not path.endswith(TIMING_METRICS):
        yield path, value


def checkpoint_bits(folder: Path) -> dict[str, Any]:
    """Return weights, optimizer state and metrics of the checkpoint in a folder, bit by bit."""
    (directory,) = folder.glob("epoch-*")
    content = dict(leaves({"weights": load_file(directory / "model.safetensors"), "state": load_state(directory)}))
    assert any(path.endswith(("/state/0/momentum_buffer", "/state/0/exp_avg")) for path in content)
    return content


def assert_same_result(
    folder: Path, results: list[EpochResult], expected_folder: Path, expected_results: list[EpochResult]
) -> None:
    """Assert that two trainings have the same bits in their checkpoints, and the same metrics in every epoch."""
    assert checkpoint_bits(folder) == checkpoint_bits(expected_folder)
    metrics, expected_metrics = (
        {result.epoch: metrics_of(result) for result in each} for each in (results, expected_results)
    )
    assert metrics == expected_metrics
    test, expected_test = results[-1].test, expected_results[-1].test
    assert test is not None
    assert expected_test is not None
    assert test.clip_ids.tolist() == expected_test.clip_ids.tolist()
    assert test.scores.tobytes() == expected_test.scores.tobytes()


def classifier_bias(model: FGSTFormer) -> torch.Tensor:
    classifier = model.head[-1]
    assert isinstance(classifier, torch.nn.Linear)
    return classifier.bias


def save(folder: Path, epoch: int, model: FGSTFormer, card: ModelCard) -> Path:
    """Save a checkpoint in which every file contains the epoch."""
    with torch.no_grad():
        classifier_bias(model).fill_(epoch)
    state = {"epoch": epoch, "momentum": torch.full((1000,), float(epoch)), "metrics": {"lr": 0.1}}
    return save_checkpoint(folder, epoch, model, dataclasses.replace(card, dataset_digest=f"{epoch}"), state)
