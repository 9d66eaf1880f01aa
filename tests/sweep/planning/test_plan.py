"""Tests of the plan that --dry-run prints: sums, extrapolation from one timed step, and output."""

from __future__ import annotations

import dataclasses
import math
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fgst.config import TrialConfig
from fgst.data.dataset import ArrowDataset
from fgst.data.skeleton import Skeleton
from fgst.errors import InputError
from fgst.evaluation.metrics import Scores
from fgst.sweep.definition import Parameter, SweepDefinition, TrialFactory
from fgst.sweep.planning import cost, plan
from fgst.sweep.planning.cost import Calibration
from fgst.sweep.planning.plan import (
    Plan,
    estimate_trial,
    expected_fraction,
    make_plan,
    makespan,
    print_plan,
    sample_params,
)
from fgst.sweep.spec import EarlyStopping, SweepSpec, build_spec
from fgst.training.checkpoint import latest_checkpoint
from fgst.training.trainer import fit
from tests.support import small


def settings(params: Mapping[str, Any], base: TrialConfig) -> Mapping[str, Any]:
    fields = {"K": "model.focal_joints", "lr": "train.lr", "epochs": "train.epochs", "P": "model.parts"}
    return {fields[name]: value for name, value in params.items()}


def define_sweep(*parameters: Parameter, search: str = "grid") -> SweepDefinition:
    def get_parameters(skeleton: Skeleton, base: TrialConfig) -> tuple[Parameter, ...]:
        return parameters

    return SweepDefinition("focal_k", "How many?", get_parameters, settings, search=search)


GRID = define_sweep(Parameter("K", (2, 4, 6)))
SPACE = define_sweep(Parameter("K", low=2, high=9), Parameter("lr", low=1e-3, high=0.1, log=True), search="random")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


def plan_sweep(
    definition: SweepDefinition,
    dataset: ArrowDataset,
    *,
    settings: Mapping[str, Any] | None = None,
    price: float | None = None,
    concurrency: int = 2,
    **options: Any,
) -> Plan:
    base = small.small_config(dataset, **(settings or {}))
    spec = build_spec(definition, base, dataset, **options)
    trials = TrialFactory(definition, base, dataset)
    return make_plan(spec, trials, device="cpu", threads=1, concurrency=concurrency, price_per_hour=price)


@pytest.fixture
def calibration(dataset: ArrowDataset, monkeypatch: pytest.MonkeyPatch) -> Calibration:
    """Replace the measurement: a step of 8 clips of the small network takes exactly one second."""
    step = Calibration(1.0, 8, cost.work_per_clip(small.small_config(dataset), dataset), 0.0)
    monkeypatch.setattr(cost, "calibrate", lambda *arguments: step)
    return step


def test_grid_totals_are_sums_over_trials(dataset: ArrowDataset, calibration: Calibration) -> None:
    result = plan_sweep(GRID, dataset, seeds=2, price=0.5)
    assert [e.name for e in result.trials] == [f"K={k} joint s{s}" for k in (2, 4, 6) for s in (0, 1)]
    for estimate, k in zip(result.trials, (2, 2, 4, 4, 6, 6), strict=True):
        assert estimate.size == cost.model_cost(small.small_config(dataset, model__focal_joints=k), dataset)
    minutes = [estimate.minutes for estimate in result.trials]
    assert minutes[0] == minutes[1] < minutes[2] < minutes[4]
    assert result.device_hours * 60 == pytest.approx(sum(minutes))
    assert result.price == pytest.approx(result.device_hours / 2)
    # Two trials run at a time, both seeds of a value together, so that the sweep takes half of the device hours.
    assert result.wall_hours == pytest.approx(result.device_hours / 2)
    assert (
        result.disk_bytes == sum(e.artifact_bytes for e in result.trials) + 2 * 2 * result.trials[-1].checkpoint_bytes
    )
    assert result.expected_fraction is None
    assert "model.focal_joints" not in result.common_settings
    assert "train.seed" not in result.common_settings
    assert result.common_settings["train.epochs"] == 4


def test_minutes_consist_of_training_and_scoring(dataset: ArrowDataset, calibration: Calibration) -> None:
    """x-sub holds out one of four subjects: 18 of 36 clips train, 6 validate and 12 test; 8 clips take 1 s."""
    config = small.small_config(dataset)
    splits = dataset.splits_for(config.data)
    assert [len(splits.train), len(splits.val), len(splits.test)] == [18, 6, 12]
    clip_seconds = 1 / 8  # scoring takes a third of it, because it has no backward pass
    training, validation, test = 18 * clip_seconds, 6 * clip_seconds / 3, 12 * clip_seconds / 3
    for epochs in (4, 8, 400):
        config = config.with_values({"train.epochs": epochs})
        estimate = estimate_trial("", config, dataset, calibration, on_gpu=False)
        assert 60 * estimate.minutes == pytest.approx(epochs * (training + validation) + test)


def test_batch_size_affects_memory_but_not_time(dataset: ArrowDataset, calibration: Calibration) -> None:
    small_batch, large_batch = (
        estimate_trial("", small.small_config(dataset, train__batch_size=size), dataset, calibration, on_gpu=False)
        for size in (8, 16)
    )
    assert small_batch.minutes == pytest.approx(large_batch.minutes)
    activations = 8 * cost.activation_bytes(small.small_config(dataset), dataset)
    assert large_batch.memory_bytes - small_batch.memory_bytes == pytest.approx(plan.PEAK_FACTOR * activations)
    on_gpu = estimate_trial("", small.small_config(dataset), dataset, calibration, on_gpu=True)
    frames = sum(dataset.clip(row).nbytes for row in range(36))
    assert on_gpu.memory_bytes - small_batch.memory_bytes == pytest.approx(frames)


@pytest.mark.parametrize(("ema", "optimizer"), [(0.0, "sgd"), (0.9, "sgd"), (0.0, "adamw"), (0.9, "adamw")])
def test_disk_estimate_matches_the_files_of_a_training(
    dataset: ArrowDataset, calibration: Calibration, tmp_path: Path, ema: float, optimizer: str
) -> None:
    # With these channels the weights are 0.5 MB or more, and the rest of the files is less than a tenth of that.
    wide = {"model__channels": (64, 64, 128, 128)}
    config = small.small_config(dataset, train__epochs=1, train__ema=ema, train__optimizer=optimizer, **wide)
    estimate = estimate_trial("", config, dataset, calibration, on_gpu=False)
    [result] = fit(config, dataset=dataset, device="cpu", checkpoints=tmp_path)
    folder = latest_checkpoint(tmp_path)
    assert folder is not None
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert estimate.checkpoint_bytes == pytest.approx(sum(sizes.values()), rel=0.1)
    assert isinstance(result.test, Scores)
    result.test.save(tmp_path / "scores.arrow")
    written = sizes["model.safetensors"] + (tmp_path / "scores.arrow").stat().st_size
    assert estimate.artifact_bytes - plan.PICTURE_BYTES == pytest.approx(written, rel=0.1)


@pytest.mark.parametrize(
    ("epochs", "stop", "trained"),
    [
        (27, EarlyStopping(3, 3), 3 + 6 / 3 + 18 / 9),  # rungs at 3 and 9; stopping at epoch 27 saves nothing
        (28, EarlyStopping(3, 3), 3 + 6 / 3 + 18 / 9 + 1 / 27),
        (16, EarlyStopping(1, 2), 1 + 1 / 2 + 2 / 4 + 4 / 8 + 8 / 16),
        (3, EarlyStopping(3, 3), 3),
        (2, EarlyStopping(3, 3), 2),
    ],
)
def test_expected_fraction_of_successive_halving(epochs: int, stop: EarlyStopping, trained: float) -> None:
    assert expected_fraction(epochs, stop) == pytest.approx(trained / epochs)


def test_makespan_starts_jobs_in_order() -> None:
    assert makespan([3, 1, 1, 1], 2) == 3
    assert makespan([1, 1, 1, 3], 2) == 4
    assert makespan([2.0, 2.0, 2.0], 1) == 6


def test_search_is_estimated_from_random_points(dataset: ArrowDataset, calibration: Calibration) -> None:
    """The skeleton has 6 joints and the space reaches up to K = 9: larger values of K are skipped."""
    options: dict[str, Any] = {"limit": 20, "initial_points": [{"K": 4, "lr": 0.01}], "early_stop": EarlyStopping(1, 3)}
    result = plan_sweep(SPACE, dataset, **options)
    assert len(result.trials) == 50
    assert {int(e.name.split()[0].removeprefix("K=")) for e in result.trials} == {2, 3, 4, 5, 6}
    assert [e.name for e in result.initial_points] == ["K=4 lr=0.01"]
    mean = sum(e.minutes for e in result.trials) / 50
    assert result.device_hours == pytest.approx(20 * mean / 60)
    assert result.wall_hours == pytest.approx(10 * mean / 60)
    assert result.expected_fraction == pytest.approx((1 + 2 / 3 + 1 / 9) / 4)
    assert "train.lr" not in result.common_settings
    repeated = plan_sweep(SPACE, dataset, **options)
    assert dataclasses.replace(repeated, spec=result.spec) == result


def test_space_without_valid_points_is_rejected(dataset: ArrowDataset, calibration: Calibration) -> None:
    with pytest.raises(InputError, match=r"none of 1000 random points is valid; .* model\.focal_joints is [78]"):
        plan_sweep(define_sweep(Parameter("K", low=7, high=8), search="random"), dataset)


def test_sampled_params_respect_ranges_and_conditions() -> None:
    parameters = (
        Parameter("temporal", ("fg", "attention")),
        Parameter("k", low=1, high=4, condition=("temporal", ("fg",))),
        Parameter("lr", low=1e-4, high=1.0, log=True),
    )
    generator = random.Random(0)
    samples = [sample_params(parameters, generator) for _ in range(400)]
    assert all(("k" in params) == (params["temporal"] == "fg") for params in samples)
    assert {params.get("k") for params in samples} == {None, 1, 2, 3, 4}
    logs = [math.log10(params["lr"]) for params in samples]
    assert -4 <= min(logs) <= max(logs) <= 0
    # Each of the four decades has a quarter of the samples: 100 ± 26, which is three binomial standard deviations.
    for decade in range(-4, 0):
        assert sum(decade <= value < decade + 1 for value in logs) == pytest.approx(100, abs=26)


def test_printed_plan_of_a_grid(dataset: ArrowDataset, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    result = plan_sweep(GRID, dataset, price=2.0, settings={"train__epochs": 400}, concurrency=1)
    assert torch.get_num_threads() == threads
    assert 0.01 < result.trials[0].minutes < 1000
    print_plan(result)
    out = capsys.readouterr().out
    for text in ("How many? On small x-sub", "K=4 joint s0", "400", "core hours", "cost", "MiB per trial", "±30 %"):
        assert text in out
    assert "cpu with 1 thread," in out
    assert max(map(len, out.splitlines())) <= 100
    assert SweepSpec.from_json(result.spec.to_json()) == result.spec


def test_printed_plan_of_a_search(
    dataset: ArrowDataset, calibration: Calibration, capsys: pytest.CaptureFixture[str]
) -> None:
    print_plan(
        plan_sweep(SPACE, dataset, limit=20, initial_points=[{"K": 4, "lr": 0.01}], early_stop=EarlyStopping(1, 3))
    )
    out = capsys.readouterr().out
    for text in (
        "tried first",
        "K=4 lr=0.01",
        "50 random points",
        "median",
        "at most 20",
        "reduces this to about 44 %",
    ):
        assert text in out
    assert "cost" not in out


def test_planning_imports_neither_ray_nor_mlflow() -> None:
    script = (
        "import sys, fgst.sweep.planning.plan, fgst.sweep.planning.gpu_sharing; "
        "print({'ray', 'mlflow'} & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert process.stdout == "set()\n"
