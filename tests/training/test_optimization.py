"""Learning rate schedule, optimizer, moving average of the weights, and bfloat16 training."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fgst.config import TrainConfig, resolve
from fgst.data.dataset import ArrowDataset
from fgst.data.loader import ClipLoader, make_loaders
from fgst.evaluation.scoring import score
from fgst.model.card import ModelCard, load_model
from fgst.training.checkpoint import load_state
from fgst.training.optimizer import make_optimizer
from fgst.training.trainer import learning_rate, rotation_range
from tests.support.numerics import assert_close
from tests.support.small import small_config
from tests.training.helpers import CPU, run

SCHEDULE_ROUNDINGS = 2**5  # a handful of operations; the cosine amplifies the error of its argument


def test_default_learning_rate_matches_paper() -> None:
    """Section 4.2: linear warm-up to 0.01 in 5 epochs, then times 0.1 at epochs 50 and 70 of 80."""
    paper = TrainConfig()
    expected = {
        0: 0, 0.5: 0.001, 1: 0.002, 2.5: 0.005, 4: 0.008, 4.999: 0.009998,
        5: 0.01, 5.1: 0.01, 30: 0.01, 49.99: 0.01,
        50: 0.001, 50.01: 0.001, 60: 0.001, 69.99: 0.001,
        70: 0.0001, 75: 0.0001, 80: 0.0001,
    }  # fmt: skip
    for progress, rate in expected.items():
        assert_close(learning_rate(paper, progress), rate, terms=SCHEDULE_ROUNDINGS)


def test_schedule_scales_with_number_of_epochs() -> None:
    paper, short = TrainConfig(), TrainConfig(epochs=8)
    for tenth in range(0, 800, 7):
        assert_close(learning_rate(short, tenth / 100), learning_rate(paper, tenth / 10), terms=SCHEDULE_ROUNDINGS)


def test_cosine_schedule_decays_to_zero() -> None:
    config = TrainConfig(epochs=10, lr=0.2, warmup=0.2, schedule="cosine")
    expected = {1: 0.1, 2: 0.2, 4: 0.2 * (1 + math.cos(math.pi / 4)) / 2, 6: 0.1, 10: 0.0}
    for epochs, rate in expected.items():
        assert_close(learning_rate(config, epochs), rate, terms=SCHEDULE_ROUNDINGS, scale=config.lr)
    rates = [learning_rate(config, progress / 10) for progress in range(20, 101)]
    assert rates == sorted(rates, reverse=True)


def test_learning_rate_without_warm_up_starts_at_its_maximum() -> None:
    assert learning_rate(TrainConfig(warmup=0, schedule="step"), 0) == 0.01
    assert learning_rate(TrainConfig(warmup=0, schedule="cosine"), 0) == 0.01


def test_training_follows_schedule(dataset: ArrowDataset) -> None:
    """The reported learning rate is evaluated at the middle of the epoch's last step, here the third."""
    config = small_config(dataset, train__epochs=6, train__lr=0.03, train__warmup=1 / 3, train__decay_at=[0.55])
    rates = [result.metrics["lr"] for result in run(config)]
    assert_close(rates, [0.0125, 0.0275, 0.03, 0.003, 0.003, 0.003], terms=SCHEDULE_ROUNDINGS)


def test_optimizer_is_sgd_with_nesterov_momentum(tmp_path: Path, dataset: ArrowDataset) -> None:
    """Recompute one step: v = g + decay · w, and w - lr (v + momentum · v)."""
    config = small_config(
        dataset, train__epochs=1, train__batch_size=100, train__warmup=0, train__decay_at=[],
        train__lr=0.1, train__momentum=0.7, train__weight_decay=0.2,
    )  # fmt: skip
    run(config, tmp_path / "end")
    run(config.with_values({"train.lr": 1e-12}), tmp_path / "start")
    start, end = (load_file(tmp_path / name / "epoch-00001" / "model.safetensors") for name in ("start", "end"))
    state = load_state(tmp_path / "end" / "epoch-00001")["optimizer"]
    group = state["param_groups"][0]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.1, 0.7, 0.2, True)
    names = [name for name, _ in load_model(tmp_path / "end" / "epoch-00001")[0].named_parameters()]
    changed = 0
    for number, name in enumerate(names):
        velocity = state["state"][number]["momentum_buffer"]  # after one step: gradient and decay
        expected = start[name] - 0.1 * (velocity + 0.7 * velocity)
        scale = max(float(start[name].abs().max()), float(velocity.abs().max()))
        assert_close(end[name], expected, terms=8, scale=scale)
        changed += not torch.equal(end[name], start[name])
    assert changed == len(names)


def test_muon_updates_matrices_and_adamw_everything_else(dataset: ArrowDataset) -> None:
    """After one step from equal moments, an entry of AdamW moves by the learning rate, and Muon's update of a matrix
    has orthogonal rows or columns of a length that the matrix's shape determines.
    """
    config = small_config(
        dataset, train__optimizer="muon", train__lr=1e-3, train__weight_decay=0.0, train__momentum=0.9
    )
    model = ModelCard.describe(resolve(config, dataset), dataset).build()
    optimizer = make_optimizer(model, config.train)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)
    optimizer.step()
    seen = set()
    for name, weight in model.named_parameters():
        change = (weight.detach() - before[name]).double() / 1e-3
        seen.add(weight.ndim)
        if weight.ndim != 2:
            assert_close(change.abs(), torch.ones_like(change), terms=2**14, dtype=torch.float32)
            continue
        # RMS 0.2 where the update is orthogonal; the iteration only brings singular values to about 1.
        singular = torch.linalg.svdvals(change) / (0.2 * math.sqrt(max(weight.shape)))
        assert ((singular > 0.1) & (singular < 1.5)).all(), name
    assert seen >= {1, 2, 3, 4}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_decoupled_weight_decay_leaves_out_vectors(dataset: ArrowDataset, optimizer: str) -> None:
    config = small_config(dataset, train__optimizer=optimizer, train__lr=0.1, train__weight_decay=0.5)
    model = ModelCard.describe(resolve(config, dataset), dataset).build()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    make_optimizer(model, config.train).step()
    for name, weight in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if weight.ndim > 1 else 1.0
        assert_close(weight.detach(), before[name] * factor, terms=4, scale=float(before[name].abs().max()))


def test_rotation_range_grows_linearly_to_that_of_the_recipe() -> None:
    config = TrainConfig(epochs=10, rotation_ramp=0.5)
    ranges = [rotation_range(config, progress) for progress in (0, 2.5, 5, 7)]
    assert_close(ranges, [0.15, 0.575, 1.0, 1.0], terms=4)
    assert rotation_range(TrainConfig(), 0) == 1.0


def test_rotation_ramp_reaches_the_clips(dataset: ArrowDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step uses the range at its middle."""
    used: list[float] = []
    batch = ClipLoader.batch

    def recording(self: ClipLoader, rows: Any, generator: Any = None, rotation_range: float = 1.0) -> Any:
        if generator is not None:
            used.append(rotation_range)
        return batch(self, rows, generator, rotation_range)

    monkeypatch.setattr(ClipLoader, "batch", recording)
    config = small_config(dataset, train__epochs=2, train__rotation_ramp=1.0)
    run(config)
    steps = len(used)
    assert_close(used, [0.15 + 0.85 * (step + 0.5) / steps for step in range(steps)], terms=2**4)


def test_gradient_is_clipped_to_norm(tmp_path: Path, dataset: ArrowDataset) -> None:
    """The clipped gradient has the same direction, and the norm that is logged is that before the clipping."""
    config = small_config(
        dataset, train__epochs=1, train__batch_size=100, train__warmup=0, train__decay_at=[], train__weight_decay=0
    )

    def gradient(clip_norm: float) -> tuple[torch.Tensor, dict[str, float]]:
        folder = tmp_path / str(clip_norm)
        [result] = run(config.with_values({"train.clip_norm": clip_norm}), folder)
        momenta = load_state(folder / "epoch-00001")["optimizer"]["state"].values()  # after one step: the gradients
        return torch.cat([momentum["momentum_buffer"].flatten() for momentum in momenta]), result.metrics

    whole, metrics = gradient(0.0)
    norm = float(whole.norm())
    assert_close(metrics["train/grad_norm"], norm, terms=2**10, dtype=torch.float32)
    assert metrics["train/grad_norm_max"] == metrics["train/grad_norm"]  # of a single step
    for clip_norm in (norm / 4, norm * 2):
        clipped, clipped_metrics = gradient(clip_norm)
        assert clipped_metrics["train/grad_norm"] == metrics["train/grad_norm"]
        assert_close(clipped, whole * min(1.0, clip_norm / norm), terms=2**10, scale=float(whole.abs().max()))


def test_logged_gradient_norms_are_median_and_maximum_of_epoch(tmp_path: Path, dataset: ArrowDataset) -> None:
    """The same three steps as one epoch of three passes, and as epochs that are stopped after one and two passes."""
    clips = len(make_loaders(dataset, resolve(small_config(dataset), dataset).data, CPU)["train"])
    config = small_config(
        dataset, train__epochs=1, train__batch_size=clips, train__warmup=0, train__decay_at=[],
        train__momentum=0, train__weight_decay=0, train__lr=0.5,
    )  # fmt: skip
    norms, weights = [], []
    for steps in (0, 1, 2, 3):
        folder = tmp_path / str(steps)
        values: dict[str, Any] = {"train.repeat": steps} if steps else {"train.lr": 1e-30}
        last = run(config.with_values(values), folder)[-1].metrics
        weights.append(load_model(folder / "epoch-00001")[0])
    for before, after in itertools.pairwise(weights):  # a step without momentum: the gradient is (before - after) / lr
        changes = [a.detach() - b.detach() for a, b in zip(before.parameters(), after.parameters(), strict=True)]
        norms.append(math.sqrt(sum(float(change.double().square().sum()) for change in changes)) / 0.5)
    assert len(set(norms)) == 3
    # The subtraction loses digits of the weights, which are larger than the steps.
    assert_close(last["train/grad_norm"], sorted(norms)[1], terms=2**14, dtype=torch.float32)
    assert_close(last["train/grad_norm_max"], max(norms), terms=2**14, dtype=torch.float32)


def test_moving_average_is_scored_and_saved(tmp_path: Path, dataset: ArrowDataset) -> None:
    """Recompute the average of three steps from the weights after one, two and three steps."""
    config = small_config(dataset, train__epochs=1, train__ema=0.15)
    clips = len(make_loaders(dataset, resolve(config, dataset).data, CPU)["train"])
    config = config.with_values({"train.batch_size": clips})
    weights_after: list[dict[str, torch.Tensor]] = []  # after one, two and three steps
    for steps in (1, 2, 3):
        # Order, augmentation and learning rate are equal; only the number of passes per epoch differs.
        folder = tmp_path / str(steps)
        values: dict[str, Any] = {"train.repeat": steps, "train.warmup": 0, "train.decay_at": []}
        last = run(config.with_values(values), folder)[-1]
        weights_after.append(load_state(folder / "epoch-00001")["weights"])
    saved = load_file(folder / "epoch-00001" / "model.safetensors")
    run(config.with_values({"train.lr": 1e-30, "train.ema": 0}), tmp_path / "start")
    start = load_file(tmp_path / "start" / "epoch-00001" / "model.safetensors")
    averaged = 0
    for name, mean in start.items():
        if not mean.is_floating_point() or "running" in name:
            continue
        for step, weights in enumerate(weights_after):
            mean = mean + (1 - min(0.15, (1 + step) / (10 + step))) * (weights[name] - mean)
        assert_close(saved[name], mean, terms=2**5, scale=max(1.0, float(mean.abs().max())))
        averaged += not torch.allclose(saved[name], weights_after[-1][name])
    assert averaged > 20
    assert last.test is not None
    model, card = load_model(folder / "epoch-00001")
    loader = make_loaders(dataset, card.config.data, CPU)["test"]
    assert score(model, loader).scores.tobytes() == last.test.scores.tobytes()


def test_bfloat16_training_approximates_float32(tmp_path: Path, dataset: ArrowDataset) -> None:
    """The network is saved and scored in float32."""
    config = small_config(dataset, train__epochs=2)
    exact, rounded = run(config), run(config.with_values({"train.precision": "bfloat16"}), tmp_path)
    for expected, result in zip(exact, rounded, strict=True):
        assert result.metrics["train/loss"] != expected.metrics["train/loss"]
        # Rounding errors have random signs and average out in the mean over clips.
        assert_close(result.metrics["train/loss"], expected.metrics["train/loss"], terms=2, dtype=torch.bfloat16)
    weights = load_file(tmp_path / "epoch-00002" / "model.safetensors")
    assert {w.dtype for w in weights.values() if w.is_floating_point()} == {torch.float32}
    model, card = load_model(tmp_path / "epoch-00002")
    loader = make_loaders(dataset, card.config.data, CPU)["test"]
    assert rounded[-1].test is not None
    assert score(model, loader).scores.tobytes() == rounded[-1].test.scores.tobytes()
