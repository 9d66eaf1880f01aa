"""Training: results that depend on the configuration and their own clips only, reported metrics, and learning."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fgst.config import resolve
from fgst.data.dataset import ArrowDataset, Clip
from fgst.data.loader import make_loaders
from fgst.errors import DivergedError, InputError
from fgst.evaluation.scoring import score
from fgst.model.card import load_model
from fgst.training.trainer import fit
from tests.support.numerics import assert_close, tolerance
from tests.support.small import motion_clips, small_config, write_small
from tests.training.helpers import CPU, TIMING_METRICS, leaves, metrics_of, run

# Reproducibility and independence


def test_results_are_reproducible_and_depend_on_seed(dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__epochs=2, model__dropout=0.2)
    first, second, other = run(config), run(config), run(config.with_values({"train.seed": 1}))
    for result, repeated, other_seed in zip(first, second, other, strict=True):
        assert metrics_of(result) == metrics_of(repeated)
        assert result.metrics["train/loss"] != other_seed.metrics["train/loss"]
    scores = [results[-1].test.scores.tobytes() for results in (first, second, other) if results[-1].test is not None]
    assert scores[0] == scores[1] != scores[2]


def test_epochs_differ_in_order_and_augmentation(dataset: ArrowDataset) -> None:
    """The loss of a network that does not learn varies by far more than rounding between epochs."""
    losses = [result.metrics["train/loss"] for result in run(small_config(dataset, train__lr=1e-12))]
    assert min(np.diff(sorted(losses))) > 1e-5


def test_interleaved_trainings_are_independent(dataset: ArrowDataset) -> None:
    first = small_config(dataset, train__epochs=3, model__dropout=0.2)
    second = first.with_values({"train.seed": 1, "model.focal_joints": 3})
    expected = [[metrics_of(result) for result in run(config)] for config in (first, second)]
    interleaved: list[list[dict[str, float]]] = [[], []]
    for results in zip(fit(first, device="cpu"), fit(second, device="cpu"), strict=True):
        for metrics, result in zip(interleaved, results, strict=True):
            metrics.append(metrics_of(result))
        torch.manual_seed(5)
        np.random.seed(5)
        torch.rand(3)
    assert interleaved == expected


def clips_with_noise(clip_ids: set[str]) -> Iterator[Clip]:
    """Generate the clips of the data set, with noise in place of the given ones."""
    rng = np.random.default_rng(11)
    for clip in motion_clips():
        joints = clip.joints
        if clip.clip_id in clip_ids:
            joints = rng.normal(size=joints.shape).astype(np.float32)
        yield dataclasses.replace(clip, joints=joints)


@pytest.mark.parametrize(("split", "unaffected"), [("test", ("train/", "val/")), ("val", ("train/", "test/"))])
def test_evaluation_clips_affect_only_their_own_metrics(
    tmp_path: Path, dataset: ArrowDataset, split: str, unaffected: tuple[str, ...]
) -> None:
    rows = getattr(dataset.splits(), split)
    other = write_small(tmp_path / "set", clips_with_noise(set(dataset.clip_ids[rows])))
    results, others = (run(small_config(each, train__epochs=3), tmp_path / each.path.name) for each in (dataset, other))
    for result, other_result in zip(results, others, strict=True):
        for name in result.metrics:
            if name.startswith(unaffected):
                assert result.metrics[name] == other_result.metrics[name], name
    assert results[-1].metrics[f"{split}/loss"] != others[-1].metrics[f"{split}/loss"]
    weights = [
        dict(leaves(load_file(tmp_path / each.path.name / "epoch-00003" / "model.safetensors")))
        for each in (dataset, other)
    ]
    assert weights[0] == weights[1]


def test_open_data_set_replaces_configured_path(dataset: ArrowDataset) -> None:
    config = small_config(Path("nowhere"), train__epochs=1)
    (passed,) = run(config, dataset=dataset)
    (opened,) = run(small_config(dataset, train__epochs=1))
    assert metrics_of(passed) == metrics_of(opened)
    with pytest.raises(InputError, match="nowhere"):
        run(config)


# Reported metrics


def test_test_clips_are_scored_after_last_epoch_only(dataset: ArrowDataset) -> None:
    results = run(small_config(dataset))
    common = {"train/loss", "train/top1", "val/loss", "val/top1", "val/top5", "lr", *TIMING_METRICS}
    common |= {"train/grad_norm", "train/grad_norm_max"}
    test = {"test/loss", "test/top1", "test/top5"}
    assert [result.epoch for result in results] == [1, 2, 3, 4]
    assert [set(result.metrics) for result in results] == [common] * 3 + [common | test]
    assert [result.test is None for result in results] == [True, True, True, False]
    assert all(math.isfinite(value) for result in results for value in result.metrics.values())
    last = results[-1]
    assert last.test is not None
    assert last.test.clip_ids.tolist() == dataset.clip_ids[dataset.splits().test].tolist()
    assert last.test.labels.tolist() == dataset.columns["label"][dataset.splits().test].tolist()
    assert last.metrics["test/top1"] == last.test.top(1)
    assert last.metrics["test/top5"] == last.test.top(5) == 100
    assert last.metrics["test/loss"] == last.test.loss()
    assert all(result.metrics["clips_per_second"] > 0 for result in results)
    minutes = [result.metrics["minutes"] for result in results]
    assert minutes == sorted(minutes)
    assert 0 < minutes[0] < minutes[-1] < 1


def test_paper_protocol_has_no_validation(dataset: ArrowDataset) -> None:
    steps: list[tuple[int, int, int]] = []
    results = run(
        small_config(dataset, data__protocol="paper", train__epochs=2),
        on_step=lambda epoch, step, total: steps.append((epoch, step, total)),
    )
    assert not [name for result in results for name in result.metrics if name.startswith("val")]
    assert results[-1].metrics["test/top1"] >= 0
    assert steps == [(epoch, step, 3) for epoch in (1, 2) for step in (1, 2, 3)]  # 24 clips instead of 18


@pytest.mark.parametrize(
    ("batch_size", "repeat", "steps"), [(8, 1, 3), (8, 2, 5), (18, 1, 1), (17, 1, 1), (17, 2, 3), (100, 3, 1)]
)
def test_on_step_is_called_after_every_step(dataset: ArrowDataset, batch_size: int, repeat: int, steps: int) -> None:
    """There are 18 training clips; a last batch with a single clip is dropped."""
    calls: list[tuple[int, int, int]] = []
    config = small_config(dataset, train__epochs=2, train__batch_size=batch_size, train__repeat=repeat)
    run(config, on_step=lambda *numbers: calls.append(numbers))
    assert calls == [(epoch, step, steps) for epoch in (1, 2) for step in range(1, steps + 1)]


def test_training_loss_is_smoothed_cross_entropy(dataset: ArrowDataset) -> None:
    """Without learning, the loss is near that of random guessing, ln 3, and linear in the label smoothing."""
    smoothings = (0.0, 0.45, 0.9)
    losses = [
        run(small_config(dataset, train__epochs=1, train__lr=1e-9, train__label_smoothing=s))[0].metrics["train/loss"]
        for s in smoothings
    ]
    assert losses[0] == pytest.approx(math.log(3), abs=0.2)  # the scores of random weights have some spread
    # The float32 loss is summed over 18 clips and 3 classes.
    assert_close(losses[1], (losses[0] + losses[2]) / 2, terms=2**6, dtype=torch.float32)
    assert abs(losses[0] - losses[2]) > 10 * tolerance(torch.float32, terms=2**6, scale=losses[0])


def test_scores_do_not_depend_on_batch_size(tmp_path: Path, dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__epochs=1)
    run(config, tmp_path)
    model, card = load_model(tmp_path / "epoch-00001")
    loader = make_loaders(dataset, card.config.data, CPU)["test"]
    model.train()
    expected = score(model, loader)
    assert model.training  # the mode is restored
    for batch_size in (1, 5):
        assert_close(score(model, loader, batch_size).scores, expected.scores, terms=2**7)


# Learning


def test_small_network_learns_small_data_set(dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__epochs=12, train__repeat=4, train__lr=0.05, train__schedule="cosine")
    results = run(config)
    assert results[0].metrics["train/top1"] < 90
    assert results[-1].metrics["train/top1"] > 90
    assert results[-1].metrics["val/top1"] > 80  # of held-out subjects
    assert results[-1].metrics["test/top1"] > 80


def test_random_labels_do_not_generalize(tmp_path: Path) -> None:
    """A high accuracy would show that test clips are used for training."""
    rng = np.random.default_rng(0)
    clips = [
        dataclasses.replace(clip, joints=rng.normal(size=clip.joints.shape).astype(np.float32))
        for clip in motion_clips(90)
    ]
    dataset = write_small(tmp_path / "noise", clips)
    result = run(small_config(dataset, train__epochs=5, train__repeat=2, train__lr=0.05))[-1]
    assert result.metrics["test/top1"] < 65


@pytest.mark.parametrize("batch_size", [8, 100], ids=["several steps", "one step"])
def test_divergence_is_reported(tmp_path: Path, dataset: ArrowDataset, batch_size: int) -> None:
    """With one step per epoch the training loss is still finite; only the validation loss shows the divergence."""
    config = small_config(dataset, train__lr=1e30, train__batch_size=batch_size)
    with pytest.raises(DivergedError, match=r"epoch 1.*lower train\.lr"):
        run(config, tmp_path)


def test_divergence_without_validation_is_reported(dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__lr=1e30, data__protocol="paper")
    with pytest.raises(DivergedError, match=r"epoch 1.*lower train\.lr"):
        run(config)


def test_divergence_in_last_step_is_reported(dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__lr=1e30, train__batch_size=100, train__epochs=1, data__protocol="paper")
    with pytest.raises(DivergedError, match=r"epoch 1.*lower train\.lr"):
        run(config)


# Resolved configurations


def test_resolve_fills_in_data_set_defaults(
    tmp_path: Path, dataset: ArrowDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(dataset, data__frames=None, train__repeat=None)
    for recipe, frames, repeat in (("ntu", 128, 1), ("nw-ucla", 52, 5)):
        with_recipe = write_small(tmp_path / recipe, recipe=recipe)
        for trial in (config, config.with_values({"data.recipe": recipe})):
            resolved = resolve(trial, with_recipe)
            assert (resolved.data.recipe, resolved.data.frames, resolved.train.repeat) == (recipe, frames, repeat)
            assert resolved.data.benchmark == "x-sub"
    assert resolve(config.with_values({"data.recipe": "nw-ucla"}), dataset).data.frames == 52

    monkeypatch.chdir(dataset.path.parent)
    relative = resolve(config.with_values({"data.dataset": "small"}), ArrowDataset("small"))
    assert relative.data.dataset == str(dataset.path)

    complete = small_config(
        dataset,
        data__benchmark="x-view",
        data__recipe="nw-ucla",
        data__frames=9,
        data__validation_by="clip",
        train__repeat=2,
    )
    assert resolve(complete, dataset) == complete
    assert resolve(resolve(config, dataset), dataset) == resolve(config, dataset)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model__focal_joints": 7}, r"model\.focal_joints is 7, but skeleton stick-6 has 6 joints"),
        ({"model__parts": 10}, r"model\.parts: no partition of skeleton stick-6 into 10 parts"),
        ({"model__parts": [["hip", "tail"]]}, r"model\.parts: .*no joint 'tail'"),
        ({"data__benchmark": "x-set"}, r"data\.benchmark is 'x-set'.*x-sub, x-view"),
    ],
)
def test_mismatch_with_data_set_is_rejected_with_field_name(
    dataset: ArrowDataset, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        resolve(small_config(dataset, **values), dataset)
    with pytest.raises(InputError, match=message):
        run(small_config(dataset, **values), tmp_path / "run")
    assert not (tmp_path / "run").exists()
