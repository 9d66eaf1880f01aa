"""What --dry-run prints adds up, and comes from one timed step."""

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
from fgst.sweep.definition import EarlyStop, Parameter, SweepDefinition, SweepSpec, TrialFactory, build_spec
from fgst.sweep.planning import cost, plan
from fgst.sweep.planning.cost import Calibration
from fgst.sweep.planning.plan import Plan, estimate, expected_share, last_end, make_plan, print_plan, random_point
from fgst.training.checkpoint import latest_checkpoint
from fgst.training.trainer import fit
from tests.support import small


def settings(params: Mapping[str, Any], base: TrialConfig) -> Mapping[str, Any]:
    fields = {"K": "model.focal_joints", "lr": "train.lr", "epochs": "train.epochs", "P": "model.parts"}
    return {fields[name]: value for name, value in params.items()}


def ask(*parameters: Parameter, search: str = "grid") -> SweepDefinition:
    def of(skeleton: Skeleton, base: TrialConfig) -> tuple[Parameter, ...]:
        return parameters

    return SweepDefinition("focal_k", "How many?", of, settings, search=search)


GRID = ask(Parameter("K", (2, 4, 6)))
SPACE = ask(Parameter("K", low=2, high=9), Parameter("lr", low=1e-3, high=0.1, log=True), search="random")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


def planned(
    question: SweepDefinition,
    dataset: ArrowDataset,
    *,
    values: Mapping[str, Any] | None = None,
    price: float | None = None,
    together: int = 2,
    **asked: Any,
) -> Plan:
    base = small.small_config(dataset, **(values or {}))
    spec = build_spec(question, base, dataset, **asked)
    trials = TrialFactory(question, base, dataset)
    return make_plan(spec, trials, device="cpu", threads=1, together=together, price_per_hour=price)


@pytest.fixture
def timed(dataset: ArrowDataset, monkeypatch: pytest.MonkeyPatch) -> Calibration:
    """A step of 8 clips of the small network takes a second, whatever this machine does."""
    step = Calibration(1.0, 8, cost.work(small.small_config(dataset), dataset), 0.0)
    monkeypatch.setattr(cost, "calibrate", lambda *arguments: step)
    return step


def test_grid_sums_are_those_of_its_trials(dataset: ArrowDataset, timed: Calibration) -> None:
    found = planned(GRID, dataset, seeds=2, price=0.5)
    assert [e.name for e in found.trials] == [f"K={k} joint s{s}" for k in (2, 4, 6) for s in (0, 1)]
    for e, k in zip(found.trials, (2, 2, 4, 4, 6, 6), strict=True):
        assert e.size == cost.model_cost(small.small_config(dataset, model__focal_joints=k), dataset)
    assert found.trials[0].minutes == found.trials[1].minutes < found.trials[2].minutes < found.trials[4].minutes
    assert found.device_hours * 60 == pytest.approx(sum(e.minutes for e in found.trials))
    assert found.price == pytest.approx(found.device_hours / 2)
    # Of six trials two by two, each with its equal, the wall shows half.
    assert found.wall_hours == pytest.approx(found.device_hours / 2)
    assert found.disk == sum(e.artifacts for e in found.trials) + 2 * 2 * found.trials[-1].checkpoint
    assert found.kept is None
    assert "model.focal_joints" not in found.same
    assert "train.seed" not in found.same
    assert found.same["train.epochs"] == 4


def test_minutes_are_steps_and_scorings(dataset: ArrowDataset, timed: Calibration) -> None:
    """x-sub holds one of four subjects out: 18 of 36 clips train, 6 validate, 12 test, 8 a step, 1 s a step."""
    config = small.small_config(dataset)
    splits = cost.splits_of(config.data, dataset)
    sizes = [len(splits.train), len(splits.val), len(splits.test)]
    assert sizes == [18, 6, 12]
    clip = 1 / 8  # seconds a clip; without a backward pass a third of it
    training, scoring = 18 * clip, (6 * clip / 3, 12 * clip / 3)
    for epochs in (4, 8, 400):
        found = estimate("", config.with_values({"train.epochs": epochs}), dataset, timed, on_gpu=False)
        assert 60 * found.minutes == pytest.approx(epochs * (training + scoring[0]) + scoring[1])


def test_batch_size_changes_memory_and_not_time(dataset: ArrowDataset, timed: Calibration) -> None:
    few, many = (
        estimate("", small.small_config(dataset, train__batch_size=size), dataset, timed, on_gpu=False)
        for size in (8, 16)
    )
    assert few.minutes == pytest.approx(many.minutes)
    activations = 8 * cost.activation_bytes(small.small_config(dataset), dataset)
    assert many.memory - few.memory == pytest.approx(plan.PEAK * activations)
    on_gpu = estimate("", small.small_config(dataset), dataset, timed, on_gpu=True)
    assert on_gpu.memory - few.memory == pytest.approx(sum(dataset.clip(row).nbytes for row in range(36)))


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_disk_is_what_a_training_writes(dataset: ArrowDataset, timed: Calibration, tmp_path: Path, ema: float) -> None:
    wide = {"model__channels": (64, 64, 128, 128)}  # beside its weights what else is in a file hardly counts
    config = small.small_config(dataset, train__epochs=1, train__ema=ema, **wide)
    found = estimate("", config, dataset, timed, on_gpu=False)
    [result] = fit(config, dataset=dataset, device="cpu", checkpoints=tmp_path)
    folder = latest_checkpoint(tmp_path)
    assert folder is not None
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert found.checkpoint == pytest.approx(sum(sizes.values()), rel=0.1)
    assert isinstance(result.test, Scores)
    result.test.save(tmp_path / "scores.arrow")
    written = sizes["model.safetensors"] + (tmp_path / "scores.arrow").stat().st_size
    assert found.artifacts - plan.FIGURE_BYTES == pytest.approx(written, rel=0.1)


@pytest.mark.parametrize(
    ("epochs", "stop", "trained"),
    [
        (27, EarlyStop(3, 3), 3 + 6 / 3 + 18 / 9),  # rungs at 3 and 9; at 27 there is nothing left to stop
        (28, EarlyStop(3, 3), 3 + 6 / 3 + 18 / 9 + 1 / 27),
        (16, EarlyStop(1, 2), 1 + 1 / 2 + 2 / 4 + 4 / 8 + 8 / 16),
        (3, EarlyStop(3, 3), 3),
        (2, EarlyStop(3, 3), 2),
    ],
)
def test_expected_share_of_successive_halving(epochs: int, stop: EarlyStop, trained: float) -> None:
    assert expected_share(epochs, stop) == pytest.approx(trained / epochs)


def test_last_end() -> None:
    assert last_end([3, 1, 1, 1], 2) == 3
    assert last_end([1, 1, 1, 3], 2) == 4
    assert last_end([2.0, 2.0, 2.0], 1) == 6


def test_search_is_told_by_points_of_its_space(dataset: ArrowDataset, timed: Calibration) -> None:
    """Joints are 2 to 6; the space asks for up to 9, and those are passed over."""
    asked: dict[str, Any] = {"limit": 20, "initial_points": [{"K": 4, "lr": 0.01}], "early_stop": EarlyStop(1, 3)}
    found = planned(SPACE, dataset, **asked)
    assert len(found.trials) == 50
    kept = {int(e.name.split()[0].removeprefix("K=")) for e in found.trials}
    assert kept == {2, 3, 4, 5, 6}
    assert [e.name for e in found.first] == ["K=4 lr=0.01"]
    mean = sum(e.minutes for e in found.trials) / 50
    assert found.device_hours == pytest.approx(20 * mean / 60)
    assert found.wall_hours == pytest.approx(10 * mean / 60)
    assert found.kept == pytest.approx((1 + 2 / 3 + 1 / 9) / 4)
    assert "train.lr" not in found.same
    assert found == dataclasses.replace(planned(SPACE, dataset, **asked), spec=found.spec)  # the same each time


def test_impossible_space_is_refused(dataset: ArrowDataset, timed: Calibration) -> None:
    with pytest.raises(InputError, match=r"none of 1000 random points .* model\.focal_joints is [78]"):
        planned(ask(Parameter("K", low=7, high=8), search="random"), dataset)


def test_random_points_fill_their_ranges_and_conditions() -> None:
    parameters = (
        Parameter("temporal", ("fg", "attention")),
        Parameter("k", low=1, high=4, condition=("temporal", ("fg",))),
        Parameter("lr", low=1e-4, high=1.0, log=True),
    )
    draw = random.Random(0)
    points = [random_point(parameters, draw) for _ in range(400)]
    assert all(("k" in params) == (params["temporal"] == "fg") for params in points)
    assert {params.get("k") for params in points} == {None, 1, 2, 3, 4}
    logs = [math.log10(params["lr"]) for params in points]
    assert sum(-4 <= value < -3 for value in logs) == pytest.approx(100, abs=30)
    assert min(logs) >= -4
    assert max(logs) <= 0


def test_a_real_plan_in_print(dataset: ArrowDataset, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    found = planned(GRID, dataset, price=2.0, values={"train__epochs": 400}, together=1)
    assert torch.get_num_threads() == threads
    assert 0.01 < found.trials[0].minutes < 1000
    print_plan(found)
    out = capsys.readouterr().out
    for word in ("How many? On small x-sub", "K=4 joint s0", "400", "core hours", "cost", "MiB a trial", "±30 %"):
        assert word in out
    assert "cpu with 1 thread," in out
    assert max(map(len, out.splitlines())) <= 100
    assert SweepSpec.from_json(found.spec.to_json()) == found.spec


def test_a_search_in_print(dataset: ArrowDataset, timed: Calibration, capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(planned(SPACE, dataset, limit=20, initial_points=[{"K": 4, "lr": 0.01}], early_stop=EarlyStop(1, 3)))
    out = capsys.readouterr().out
    for word in ("tried first", "K=4 lr=0.01", "of 50 random points", "median", "at most 20", "leaves about 44 %"):
        assert word in out
    assert "cost" not in out


def test_neither_ray_nor_mlflow_is_imported() -> None:
    script = "import sys, fgst.sweep.plan, fgst.sweep.packing; print({'ray', 'mlflow'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "set()\n"
    )
