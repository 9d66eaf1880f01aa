"""Training: the same bits whatever happened in between, and figures that only their own clips decide."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fgst.config import TrainConfig, TrialConfig, resolve
from fgst.data.dataset import ArrowDataset
from fgst.data.loader import make_loaders
from fgst.errors import InputError, Preempted
from fgst.evaluation.scoring import score
from fgst.model.card import load_model
from fgst.training.checkpoint import load_state
from fgst.training.trainer import DivergedError, EpochResult, fit, learning_rate
from tests.support.small import kill_when_told, motion_clips, small_config, start_python, write_small

OF_THE_CLOCK = ("clips_per_second", "minutes")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    return write_small(tmp_path_factory.mktemp("sets") / "small")


def run(
    config: TrialConfig, folder: Path | None = None, epochs: int | None = None, **options: Any
) -> list[EpochResult]:
    """The results of a training, or of its first ``epochs`` only, as if nobody asked for more."""
    training = fit(config, device="cpu", checkpoints=folder, **options)
    results = list(itertools.islice(training, epochs))
    training.close()
    return results


def figures(result: EpochResult) -> dict[str, float]:
    return {name: value for name, value in result.metrics.items() if name not in OF_THE_CLOCK}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor and plain value inside a nest of dicts and lists; tensors as bytes."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from leaves(item, f"{path}/{number}")
    elif isinstance(value, torch.Tensor):
        yield path, (value.dtype, tuple(value.shape), value.numpy().tobytes())
    elif not path.endswith(OF_THE_CLOCK):
        yield path, value


def bits(folder: Path) -> dict[str, Any]:
    """Weights, optimiser state and metrics of the checkpoint in a folder, to the bit."""
    (directory,) = folder.glob("epoch-*")
    found = dict(leaves({"weights": load_file(directory / "model.safetensors"), "state": load_state(directory)}))
    assert any(path.startswith("/state/optimizer/state/0/momentum_buffer") for path in found)
    return found


def same_end(folder: Path, results: list[EpochResult], other: Path, others: list[EpochResult]) -> None:
    """Both trainings ended with the same bits, and told the same about every epoch."""
    assert bits(folder) == bits(other)
    told, told_there = ({result.epoch: figures(result) for result in each} for each in (results, others))
    assert told == told_there
    for result, there in ((results[-1], others[-1]),):
        assert result.test is not None
        assert there.test is not None
        assert result.test.clip_ids.tolist() == there.test.clip_ids.tolist()
        assert result.test.scores.tobytes() == there.test.scores.tobytes()


# Resume


STEADY: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"model__dropout": 0.3},
    "moving average": {"train__ema": 0.9},
    "bfloat16": {"train__precision": "bfloat16"},
    "cosine, nw-ucla": {
        "train__schedule": "cosine",
        "train__label_smoothing": 0.1,
        "data__recipe": "nw-ucla",
        "data__modality": "bone_motion",
    },
}


@pytest.mark.parametrize("variant", STEADY)
def test_two_and_two_epochs_equal_four_to_the_bit(tmp_path: Path, dataset: ArrowDataset, variant: str) -> None:
    config = small_config(dataset, **STEADY[variant])
    whole = run(config, tmp_path / "whole")
    halves = run(config, tmp_path / "halves", epochs=2)
    torch.manual_seed(99)  # the second half is another process, with other random numbers behind it
    halves += run(config, tmp_path / "halves")[1:]
    assert [result.epoch for result in halves] == [1, 2, 3, 4]
    same_end(tmp_path / "halves", halves, tmp_path / "whole", whole)
    # And it is a training: something changes from epoch to epoch.
    assert len({result.metrics["train/loss"] for result in whole}) == 4


def test_many_interruptions_within_epochs_change_nothing(tmp_path: Path, dataset: ArrowDataset) -> None:
    """Ctrl-C at each step of each epoch, once."""
    config = small_config(dataset, train__epochs=3, model__dropout=0.2)
    whole = run(config, tmp_path / "whole")
    told: dict[int, EpochResult] = {}

    def go_on(on_step: Callable[[int, int, int], None] | None = None) -> None:
        for result in fit(config, device="cpu", checkpoints=tmp_path / "broken", on_step=on_step):
            told[result.epoch] = result

    for at in itertools.product((1, 2, 3), (1, 2, 3)):

        def stop(epoch: int, step: int, steps: int, at: tuple[int, int] = at) -> None:
            if (epoch, step) == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            go_on(stop)
    go_on()
    same_end(tmp_path / "broken", [told[epoch] for epoch in (1, 2, 3)], tmp_path / "whole", whole)


@pytest.mark.parametrize("variant", STEADY)
def test_leaving_within_epochs_loses_no_step(tmp_path: Path, dataset: ArrowDataset, variant: str) -> None:
    """Asked to leave after every single step: each is done once, and the end has the same bits."""
    config = small_config(dataset, **({"model__dropout": 0.2} | STEADY[variant]), train__epochs=3)
    whole = run(config, tmp_path / "whole")
    told: dict[int, EpochResult] = {}
    steps: list[tuple[int, int]] = []

    def asked(before: int) -> bool:
        return len(steps) > before

    for _ in range(100):
        torch.manual_seed(99)  # each time another process
        before = len(steps)
        going_on = fit(
            config, device="cpu", checkpoints=tmp_path / "left",
            on_step=lambda epoch, step, _: steps.append((epoch, step)), leave=lambda at=before: asked(at),
        )  # fmt: skip
        try:
            for result in going_on:
                told[result.epoch] = result
        except Preempted:
            continue
        break
    assert steps == list(itertools.product((1, 2, 3), (1, 2, 3)))
    same_end(tmp_path / "left", [told[epoch] for epoch in (1, 2, 3)], tmp_path / "whole", whole)


def test_a_checkpoint_in_the_middle_of_an_epoch_says_so(tmp_path: Path, dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__epochs=2)
    run(config, tmp_path, epochs=1)
    steps: list[int] = []
    with pytest.raises(Preempted):
        list(fit(config, device="cpu", checkpoints=tmp_path, on_step=lambda *at: steps.append(at[1]),
                 leave=lambda: len(steps) == 2))  # fmt: skip
    assert [entry.name for entry in tmp_path.iterdir()] == ["epoch-00001-step-00002"]
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
        print("in the middle", flush=True)
        time.sleep(60)

for result in fit(
    small_config(Path(sys.argv[1]), model__dropout=0.3), device="cpu", checkpoints=Path(sys.argv[2]), on_step=on_step
):
    print("epoch", result.epoch, flush=True)
"""


def test_a_process_that_was_killed_goes_on_as_if_nothing_had_been(tmp_path: Path, dataset: ArrowDataset) -> None:
    config = small_config(dataset, model__dropout=0.3)
    whole = run(config, tmp_path / "whole")
    kill_when_told(start_python(TRAIN_AND_HANG, dataset.path, tmp_path / "killed"), "in the middle")
    assert [entry.name for entry in (tmp_path / "killed").iterdir()] == ["epoch-00002"]
    resumed = run(config, tmp_path / "killed")
    assert [(result.epoch, result.is_replay) for result in resumed] == [(2, True), (3, False), (4, False)]
    same_end(tmp_path / "killed", resumed, tmp_path / "whole", whole[1:])


def test_the_epoch_of_the_checkpoint_is_told_again(tmp_path: Path, dataset: ArrowDataset) -> None:
    config = small_config(dataset)
    first = run(config, tmp_path, epochs=2)
    second = run(config, tmp_path)
    assert [(result.epoch, result.is_replay) for result in first] == [(1, False), (2, False)]
    assert [(result.epoch, result.is_replay) for result in second] == [(2, True), (3, False), (4, False)]
    assert second[0].metrics == first[-1].metrics  # those of the clock too
    assert second[0].checkpoint == first[-1].checkpoint
    assert second[-1].metrics["minutes"] > second[0].metrics["minutes"]


def test_a_complete_training_tells_its_last_epoch_again(tmp_path: Path, dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__epochs=2)
    whole = run(config, tmp_path)
    before = bits(tmp_path)
    (again,) = run(config, tmp_path)
    assert (again.epoch, again.is_replay) == (2, True)
    assert again.metrics == whole[-1].metrics
    assert again.test is not None
    assert whole[-1].test is not None
    assert again.test.scores.tobytes() == whole[-1].test.scores.tobytes()
    assert bits(tmp_path) == before


def test_an_epoch_s_checkpoint_is_on_disk_when_the_epoch_is_told(tmp_path: Path, dataset: ArrowDataset) -> None:
    for result in fit(small_config(dataset, train__epochs=3), device="cpu", checkpoints=tmp_path / "run"):
        assert result.checkpoint == tmp_path / "run" / f"epoch-{result.epoch:05d}"
        assert list((tmp_path / "run").iterdir()) == [result.checkpoint]
        assert load_state(result.checkpoint)["epoch"] == result.epoch


def test_a_checkpoint_is_a_network_that_scores_the_same(tmp_path: Path, dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__epochs=2)
    last = run(config, tmp_path)[-1]
    assert last.checkpoint is not None
    assert last.test is not None
    model, card = load_model(last.checkpoint)
    assert card.config == resolve(config, dataset)
    assert (card.dataset_digest, card.dataset_name, card.classes) == (dataset.digest, "small", dataset.classes)
    store = make_loaders(dataset, card.config.data, CPU)["test"]
    assert score(model, store).scores.tobytes() == last.test.scores.tobytes()


def test_without_a_folder_nothing_is_kept(
    tmp_path: Path, dataset: ArrowDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results = run(small_config(dataset, train__epochs=2))
    assert [result.checkpoint for result in results] == [None, None]
    assert list(tmp_path.iterdir()) == []


# Resume refused


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.seed", 5),
        ("train.lr", 0.02),
        ("train.epochs", 5),
        ("train.batch_size", 9),
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
def test_another_configuration_does_not_go_on(tmp_path: Path, dataset: ArrowDataset, name: str, value: Any) -> None:
    config = small_config(dataset)
    run(config, tmp_path, epochs=1)
    before = bits(tmp_path)
    with pytest.raises(InputError, match=rf"epoch-00001: was trained with {name} = .*not {value}"):
        run(config.with_values({name: value}), tmp_path)
    assert bits(tmp_path) == before


def test_other_data_do_not_go_on(tmp_path: Path, dataset: ArrowDataset) -> None:
    run(small_config(dataset), tmp_path / "run", epochs=1)
    other = write_small(tmp_path / "other", motion_clips(seed=1))
    with pytest.raises(InputError, match=rf"epoch-00001: .*other data.*{dataset.digest[:12]}"):
        run(small_config(other), tmp_path / "run")


def test_data_that_were_moved_go_on(tmp_path: Path, dataset: ArrowDataset) -> None:
    whole = run(small_config(dataset, train__epochs=2), tmp_path / "whole")
    shutil.copytree(dataset.path, tmp_path / "here")
    run(small_config(tmp_path / "here", train__epochs=2), tmp_path / "run", epochs=1)
    (tmp_path / "here").rename(tmp_path / "there")
    resumed = run(small_config(tmp_path / "there", train__epochs=2), tmp_path / "run")
    same_end(tmp_path / "run", resumed, tmp_path / "whole", whole)


@pytest.mark.parametrize(
    "damage", ["state cut", "weights cut", "no weights", "a list", "no optimiser", "other optimiser"]
)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, dataset: ArrowDataset, damage: str) -> None:
    config = small_config(dataset)
    run(config, tmp_path, epochs=1)
    state, weights = (tmp_path / "epoch-00001" / name for name in ("state.pt", "model.safetensors"))
    content = load_state(state.parent)
    named = state
    if damage == "state cut":
        os.truncate(state, state.stat().st_size // 2)
    elif damage == "weights cut":
        os.truncate(weights, weights.stat().st_size // 2)
        named = weights
    elif damage == "no weights":
        weights.unlink()
        named = weights
    elif damage == "a list":
        torch.save([1, 2], state)
    elif damage == "no optimiser":
        torch.save({"epoch": 1, "metrics": content["metrics"]}, state)
    else:
        groups = [content["optimizer"]["param_groups"][0] | {"params": [0]}]
        torch.save(content | {"optimizer": {"state": {}, "param_groups": groups}}, state)
    with pytest.raises(InputError, match=rf"epoch-00001/{named.name}: "):
        run(config, tmp_path)


# A pure function of the configuration


def test_the_same_configuration_gives_the_same_figures_and_another_seed_others(dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__epochs=2, model__dropout=0.2)
    first, second, other = run(config), run(config), run(config.with_values({"train.seed": 1}))
    for result, again, elsewhere in zip(first, second, other, strict=True):
        assert figures(result) == figures(again)
        assert result.metrics["train/loss"] != elsewhere.metrics["train/loss"]
    scores = [results[-1].test.scores.tobytes() for results in (first, second, other) if results[-1].test is not None]
    assert scores[0] == scores[1] != scores[2]


def test_every_epoch_draws_its_own_order_and_augmentation(dataset: ArrowDataset) -> None:
    """A network that does not learn sees other frames, turned otherwise, in other company in each epoch."""
    losses = [result.metrics["train/loss"] for result in run(small_config(dataset, train__lr=1e-12))]
    assert min(np.diff(sorted(losses))) > 1e-5


def test_trainings_that_take_turns_do_not_disturb_each_other(dataset: ArrowDataset) -> None:
    one = small_config(dataset, train__epochs=3, model__dropout=0.2)
    two = one.with_values({"train.seed": 1, "model.focal_joints": 3})
    alone = [[figures(result) for result in run(config)] for config in (one, two)]
    together: list[list[dict[str, float]]] = [[], []]
    for results in zip(fit(one, device="cpu"), fit(two, device="cpu"), strict=True):
        for told, result in zip(together, results, strict=True):
            told.append(figures(result))
        torch.manual_seed(5)
        np.random.seed(5)
        torch.rand(3)
    assert together == alone


def with_changed(clips: set[str]) -> Iterator[Any]:
    rng = np.random.default_rng(11)
    for clip in motion_clips():
        joints = clip.joints
        if clip.clip_id in clips:
            joints = rng.normal(size=joints.shape).astype(np.float32)
        yield dataclasses.replace(clip, joints=joints)


@pytest.mark.parametrize(("split", "unmoved"), [("test", ("train/", "val/")), ("val", ("train/", "test/"))])
def test_clips_that_are_not_trained_on_change_only_their_own_figures(
    tmp_path: Path, dataset: ArrowDataset, split: str, unmoved: tuple[str, ...]
) -> None:
    rows = getattr(dataset.splits(), split)
    other = write_small(tmp_path / "set", with_changed(set(dataset.clip_ids[rows])))
    results, others = (run(small_config(each, train__epochs=3), tmp_path / each.path.name) for each in (dataset, other))
    for result, there in zip(results, others, strict=True):
        for name in result.metrics:
            if name.startswith(unmoved):
                assert result.metrics[name] == there.metrics[name], name
    assert results[-1].metrics[f"{split}/loss"] != others[-1].metrics[f"{split}/loss"]
    weights = [
        dict(leaves(load_file(tmp_path / each.path.name / "epoch-00003" / "model.safetensors")))
        for each in (dataset, other)
    ]
    assert weights[0] == weights[1]


def test_an_open_data_set_may_be_handed_in(dataset: ArrowDataset) -> None:
    config = small_config(Path("nowhere"), train__epochs=1)
    (handed_in,) = run(config, dataset=dataset)
    (opened,) = run(small_config(dataset, train__epochs=1))
    assert figures(handed_in) == figures(opened)
    with pytest.raises(InputError, match="nowhere"):
        run(config)


# What is told


def test_the_test_clips_are_scored_once_at_the_end(dataset: ArrowDataset) -> None:
    results = run(small_config(dataset))
    always = {"train/loss", "train/top1", "val/loss", "val/top1", "val/top5", "lr", *OF_THE_CLOCK}
    test = {"test/loss", "test/top1", "test/top5"}
    assert [result.epoch for result in results] == [1, 2, 3, 4]
    assert [set(result.metrics) for result in results] == [always] * 3 + [always | test]
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


def test_the_paper_s_protocol_has_no_validation(dataset: ArrowDataset) -> None:
    steps = []
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
def test_on_step_counts_every_step_of_every_epoch(
    dataset: ArrowDataset, batch_size: int, repeat: int, steps: int
) -> None:
    """18 clips train; a last batch of a single clip is left out."""
    told: list[tuple[int, int, int]] = []
    config = small_config(dataset, train__epochs=2, train__batch_size=batch_size, train__repeat=repeat)
    run(config, on_step=lambda *numbers: told.append(numbers))
    assert told == [(epoch, step, steps) for epoch in (1, 2) for step in range(1, steps + 1)]


def test_the_loss_that_is_told_is_that_of_the_clips(dataset: ArrowDataset) -> None:
    """With a rate too small to learn from, every epoch's loss is near that of an untrained network: ln 3.

    And it is smoothed as asked: half the smoothing is half the way.
    """
    smoothings = (0.0, 0.45, 0.9)
    losses = [
        run(small_config(dataset, train__epochs=1, train__lr=1e-9, train__label_smoothing=s))[0].metrics["train/loss"]
        for s in smoothings
    ]
    assert losses[0] == pytest.approx(math.log(3), abs=0.2)
    assert losses[1] == pytest.approx((losses[0] + losses[2]) / 2, abs=1e-5)
    assert abs(losses[0] - losses[2]) > 1e-4


def test_a_score_does_not_depend_on_the_batch(tmp_path: Path, dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__epochs=1)
    run(config, tmp_path)
    model, card = load_model(tmp_path / "epoch-00001")
    store = make_loaders(dataset, card.config.data, CPU)["test"]
    model.train()
    whole = score(model, store)
    assert model.training  # as it was
    for batch_size in (1, 5):
        np.testing.assert_allclose(score(model, store, batch_size).scores, whole.scores, rtol=1e-4, atol=1e-5)


# The schedule


def test_the_rate_is_the_paper_s() -> None:
    """§4.2: a linear warm-up of 5 epochs to 0.01, a tenth from epoch 50 and a hundredth from epoch 70 of 80."""
    paper = TrainConfig()
    expected = {
        0: 0, 0.5: 0.001, 1: 0.002, 2.5: 0.005, 4: 0.008, 4.999: 0.009998,
        5: 0.01, 5.1: 0.01, 30: 0.01, 49.99: 0.01,
        50: 0.001, 50.01: 0.001, 60: 0.001, 69.99: 0.001,
        70: 0.0001, 75: 0.0001, 80: 0.0001,
    }  # fmt: skip
    for progress, rate in expected.items():
        assert learning_rate(paper, progress) == pytest.approx(rate, rel=1e-9), progress


def test_a_shorter_training_has_the_same_shape() -> None:
    paper, short = TrainConfig(), TrainConfig(epochs=8)
    for tenth in range(0, 800, 7):
        assert learning_rate(short, tenth / 100) == pytest.approx(learning_rate(paper, tenth / 10))


def test_the_cosine_falls_from_the_rate_to_nothing() -> None:
    config = TrainConfig(epochs=10, lr=0.2, warmup=0.2, schedule="cosine")
    assert learning_rate(config, 1) == pytest.approx(0.1)
    assert learning_rate(config, 2) == pytest.approx(0.2)
    assert learning_rate(config, 6) == pytest.approx(0.1)
    assert learning_rate(config, 4) == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate(config, 10) == pytest.approx(0, abs=1e-12)
    rates = [learning_rate(config, progress / 10) for progress in range(20, 101)]
    assert rates == sorted(rates, reverse=True)


def test_without_warm_up_the_rate_is_there_at_once() -> None:
    for schedule in ("step", "cosine"):
        assert learning_rate(TrainConfig(warmup=0, schedule=schedule), 0) == 0.01


def test_a_training_follows_the_schedule(dataset: ArrowDataset) -> None:
    """The warm-up is finer than epochs: the told rate is that of the middle of the last step, here of three."""
    config = small_config(dataset, train__epochs=6, train__lr=0.03, train__warmup=1 / 3, train__decay_at=[0.55])
    rates = [result.metrics["lr"] for result in run(config)]
    assert rates == pytest.approx([0.0125, 0.0275, 0.03, 0.003, 0.003, 0.003])


def test_the_optimiser_is_sgd_with_nesterov_momentum(tmp_path: Path, dataset: ArrowDataset) -> None:
    """One step, redone by hand: v = g + w·decay, then w - lr (v + momentum · v)."""
    config = small_config(
        dataset, train__epochs=1, train__batch_size=100, train__warmup=0, train__decay_at=[],
        train__lr=0.1, train__momentum=0.7, train__weight_decay=0.2,
    )  # fmt: skip
    run(config, tmp_path / "one")
    run(config.with_values({"train.lr": 1e-12}), tmp_path / "start")
    start, end = (load_file(tmp_path / name / "epoch-00001" / "model.safetensors") for name in ("start", "one"))
    state = load_state(tmp_path / "one" / "epoch-00001")["optimizer"]
    group = state["param_groups"][0]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.1, 0.7, 0.2, True)
    names = [name for name, _ in load_model(tmp_path / "one" / "epoch-00001")[0].named_parameters()]
    moved = 0
    for number, name in enumerate(names):
        velocity = state["state"][number]["momentum_buffer"]  # after one step: gradient and decay
        expected = start[name] - 0.1 * (velocity + 0.7 * velocity)
        torch.testing.assert_close(end[name], expected, rtol=1e-5, atol=1e-7)
        moved += not torch.equal(end[name], start[name])
    assert moved == len(names)


def test_the_moving_average_is_what_is_scored_and_kept(tmp_path: Path, dataset: ArrowDataset) -> None:
    """Three steps, redone from the weights after one, two and three of them; each step moves at most 1 - ema."""
    config = small_config(dataset, train__epochs=1, train__ema=0.15)
    clips = len(make_loaders(dataset, resolve(config, dataset).data, CPU)["train"])
    config = config.with_values({"train.batch_size": clips})
    after = []
    for steps in (1, 2, 3):
        # The same order, augmentation and rates: only the number of passes before the end of the epoch differs.
        folder = tmp_path / str(steps)
        values = {"train.repeat": steps, "train.warmup": 0, "train.decay_at": []}
        last = run(config.with_values(values), folder)[-1]
        after.append(load_state(folder / "epoch-00001")["weights"])
    kept = load_file(folder / "epoch-00001" / "model.safetensors")
    start = load_file(run(config.with_values({"train.lr": 1e-30, "train.ema": 0}), tmp_path / "start")[-1].checkpoint
                      / "model.safetensors")  # fmt: skip
    moved = 0
    for name, mean in start.items():
        if not mean.is_floating_point() or "running" in name:
            continue
        for step, weights in enumerate(after):
            mean = mean + (1 - min(0.15, (1 + step) / (10 + step))) * (weights[name] - mean)
        torch.testing.assert_close(kept[name], mean, rtol=1e-5, atol=1e-6)
        moved += not torch.allclose(kept[name], after[-1][name])
    assert moved > 20
    assert last.test is not None
    model, card = load_model(folder / "epoch-00001")
    store = make_loaders(dataset, card.config.data, CPU)["test"]
    assert score(model, store).scores.tobytes() == last.test.scores.tobytes()


def test_bfloat16_trains_nearly_as_float32_and_is_scored_in_float32(tmp_path: Path, dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__epochs=2)
    exact, rounded = run(config), run(config.with_values({"train.precision": "bfloat16"}), tmp_path)
    for one, other in zip(exact, rounded, strict=True):
        assert other.metrics["train/loss"] != one.metrics["train/loss"]
        assert other.metrics["train/loss"] == pytest.approx(one.metrics["train/loss"], rel=0.02)
    weights = load_file(tmp_path / "epoch-00002" / "model.safetensors")
    assert {w.dtype for w in weights.values() if w.is_floating_point()} == {torch.float32}
    model, card = load_model(tmp_path / "epoch-00002")
    store = make_loaders(dataset, card.config.data, CPU)["test"]
    assert rounded[-1].test is not None
    assert score(model, store).scores.tobytes() == rounded[-1].test.scores.tobytes()


def test_a_person_who_does_not_move_is_there_in_the_motion_modalities(tmp_path: Path) -> None:
    clips = list(motion_clips())
    pair = next(clip for clip in clips if clip.joints.shape[0] == 2)
    still = np.repeat(pair.joints[1:, :1], pair.joints.shape[1], axis=1)
    clips.append(dataclasses.replace(pair, clip_id="still", joints=np.concatenate([pair.joints[:1], still])))
    clips.append(dataclasses.replace(pair, clip_id="alone", joints=pair.joints[:1]))
    dataset = write_small(tmp_path / "data", clips)
    config = resolve(small_config(dataset, data__modality="joint_motion"), dataset)
    person_mask = {}
    for store in make_loaders(dataset, config.data, CPU).values():
        (batch,) = store.evaluation_batches()
        person_mask |= dict(zip(store.clip_ids, batch.person_mask.tolist(), strict=True))
    assert person_mask["still"] == [True, True]
    assert person_mask["alone"] == [True, False]


# Does it learn?


def test_a_tiny_network_learns_a_tiny_data_set(dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__epochs=12, train__repeat=4, train__lr=0.05, train__schedule="cosine")
    results = run(config)
    assert results[0].metrics["train/top1"] < 90
    assert results[-1].metrics["train/top1"] > 90
    assert results[-1].metrics["val/top1"] > 80  # people never seen
    assert results[-1].metrics["test/top1"] > 80


def test_labels_without_meaning_are_not_learned_by_people_never_seen(tmp_path: Path) -> None:
    """If this were high, test clips would be among those trained on."""
    rng = np.random.default_rng(0)
    clips = [
        dataclasses.replace(clip, joints=rng.normal(size=clip.joints.shape).astype(np.float32))
        for clip in motion_clips(90)
    ]
    dataset = write_small(tmp_path / "noise", clips)
    result = run(small_config(dataset, train__epochs=5, train__repeat=2, train__lr=0.05))[-1]
    assert result.metrics["test/top1"] < 65


@pytest.mark.parametrize("batch_size", [8, 100], ids=["several steps", "one step"])
def test_a_training_that_diverges_says_so(tmp_path: Path, dataset: ArrowDataset, batch_size: int) -> None:
    """With one step an epoch the loss of the epoch is still a number: only the validation sees the weights after it."""
    config = small_config(dataset, train__lr=1e30, train__batch_size=batch_size)
    with pytest.raises(DivergedError, match=r"epoch 1.*lower train\.lr"):
        run(config, tmp_path)


def test_a_training_without_validation_that_diverges_says_so_at_once(dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__lr=1e30, data__protocol="paper")
    with pytest.raises(DivergedError, match=r"epoch 1.*lower train\.lr"):
        run(config)


def test_a_training_that_diverges_in_its_very_last_step_says_so(dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__lr=1e30, train__batch_size=100, train__epochs=1, data__protocol="paper")
    with pytest.raises(DivergedError, match=r"epoch 1.*lower train\.lr"):
        run(config)


# What is left open


def test_what_is_left_open_follows_from_the_data_set(
    tmp_path: Path, dataset: ArrowDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(dataset, data__frames=None, train__repeat=None)
    for recipe, frames, repeat in (("ntu", 128, 1), ("nw-ucla", 52, 5)):
        own = write_small(tmp_path / recipe, recipe=recipe)
        for trial in (config, config.with_values({"data.recipe": recipe})):
            found = resolve(trial, own)
            assert (found.data.recipe, found.data.frames, found.train.repeat) == (recipe, frames, repeat)
            assert found.data.benchmark == "x-sub"
    assert resolve(config.with_values({"data.recipe": "nw-ucla"}), dataset).data.frames == 52

    monkeypatch.chdir(dataset.path.parent)
    relative = resolve(config.with_values({"data.dataset": "small"}), ArrowDataset("small"))
    assert relative.data.dataset == str(dataset.path)

    given = small_config(dataset, data__benchmark="x-view", data__recipe="nw-ucla", data__frames=9, train__repeat=2)
    assert resolve(given, dataset) == given
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
def test_what_does_not_fit_the_data_set_is_named(
    dataset: ArrowDataset, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        resolve(small_config(dataset, **values), dataset)
    with pytest.raises(InputError, match=message):
        run(small_config(dataset, **values), tmp_path / "run")
    assert not (tmp_path / "run").exists()
