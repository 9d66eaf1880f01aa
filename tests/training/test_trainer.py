"""Training: bit-exact resume, results that depend only on their own clips, schedule, optimizer and messages."""

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
from tests.support.numerics import assert_close, tolerance
from tests.support.process import kill_on_line, start_python
from tests.support.small import motion_clips, small_config, write_small

TIMING_METRICS = ("clips_per_second", "minutes")
CPU = torch.device("cpu")
SCHEDULE_ROUNDINGS = 2**5  # a handful of operations; the cosine amplifies the error of its argument


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    return write_small(tmp_path_factory.mktemp("sets") / "small")


def run(
    config: TrialConfig, folder: Path | None = None, epochs: int | None = None, **options: Any
) -> list[EpochResult]:
    """Return the results of a training, or of its first ``epochs`` only, after which it is closed."""
    training = fit(config, device="cpu", checkpoints=folder, **options)
    results = list(itertools.islice(training, epochs))
    training.close()
    return results


def metrics_of(result: EpochResult) -> dict[str, float]:
    return {name: value for name, value in result.metrics.items() if name not in TIMING_METRICS}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield path and value of each tensor (as bytes) and plain value in nested dicts and lists; no timings."""
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


def bits(folder: Path) -> dict[str, Any]:
    """Return weights, optimizer state and metrics of the checkpoint in a folder, bit by bit."""
    (directory,) = folder.glob("epoch-*")
    content = dict(leaves({"weights": load_file(directory / "model.safetensors"), "state": load_state(directory)}))
    assert any(path.startswith("/state/optimizer/state/0/momentum_buffer") for path in content)
    return content


def assert_same_result(folder: Path, results: list[EpochResult], other: Path, others: list[EpochResult]) -> None:
    """Assert that two trainings ended with the same bits and reported the same metrics of every epoch."""
    assert bits(folder) == bits(other)
    metrics, other_metrics = ({result.epoch: metrics_of(result) for result in each} for each in (results, others))
    assert metrics == other_metrics
    test, other_test = results[-1].test, others[-1].test
    assert test is not None
    assert other_test is not None
    assert test.clip_ids.tolist() == other_test.clip_ids.tolist()
    assert test.scores.tobytes() == other_test.scores.tobytes()


# Resume


RESUMABLE: dict[str, dict[str, Any]] = {
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


@pytest.mark.parametrize("variant", RESUMABLE)
def test_resume_between_epochs_is_bit_exact(tmp_path: Path, dataset: ArrowDataset, variant: str) -> None:
    config = small_config(dataset, **RESUMABLE[variant])
    whole = run(config, tmp_path / "whole")
    halves = run(config, tmp_path / "halves", epochs=2)
    torch.manual_seed(99)  # as in a new process, with other random state
    halves += run(config, tmp_path / "halves")[1:]
    assert [result.epoch for result in halves] == [1, 2, 3, 4]
    assert_same_result(tmp_path / "halves", halves, tmp_path / "whole", whole)
    # The network does train: its loss changes in every epoch.
    assert len({result.metrics["train/loss"] for result in whole}) == 4


def test_resume_after_interrupt_at_every_step_is_bit_exact(tmp_path: Path, dataset: ArrowDataset) -> None:
    """Ctrl-C at each step of each epoch."""
    config = small_config(dataset, train__epochs=3, model__dropout=0.2)
    whole = run(config, tmp_path / "whole")
    results: dict[int, EpochResult] = {}

    def train(on_step: Callable[[int, int, int], None] | None = None) -> None:
        for result in fit(config, device="cpu", checkpoints=tmp_path / "broken", on_step=on_step):
            results[result.epoch] = result

    for at in itertools.product((1, 2, 3), (1, 2, 3)):

        def interrupt(epoch: int, step: int, steps: int, at: tuple[int, int] = at) -> None:
            if (epoch, step) == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(interrupt)
    train()
    assert_same_result(tmp_path / "broken", [results[epoch] for epoch in (1, 2, 3)], tmp_path / "whole", whole)


@pytest.mark.parametrize("variant", RESUMABLE)
def test_preemption_after_every_step_loses_no_step(tmp_path: Path, dataset: ArrowDataset, variant: str) -> None:
    """A training that is stopped after every step runs each step once and ends with the same bits."""
    config = small_config(dataset, **({"model__dropout": 0.2} | RESUMABLE[variant]), train__epochs=3)
    whole = run(config, tmp_path / "whole")
    results: dict[int, EpochResult] = {}
    steps: list[tuple[int, int]] = []

    for _ in range(100):
        torch.manual_seed(99)  # as in a new process
        before = len(steps)
        training = fit(
            config,
            device="cpu",
            checkpoints=tmp_path / "stopped",
            on_step=lambda epoch, step, _: steps.append((epoch, step)),
            should_stop=lambda before=before: len(steps) > before,
        )
        try:
            for result in training:
                results[result.epoch] = result
        except Preempted:
            continue
        break
    assert steps == list(itertools.product((1, 2, 3), (1, 2, 3)))
    assert_same_result(tmp_path / "stopped", [results[epoch] for epoch in (1, 2, 3)], tmp_path / "whole", whole)


def test_checkpoint_within_an_epoch_is_named_by_its_step(tmp_path: Path, dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__epochs=2)
    run(config, tmp_path, epochs=1)
    steps: list[int] = []
    with pytest.raises(Preempted):
        list(
            fit(
                config,
                device="cpu",
                checkpoints=tmp_path,
                on_step=lambda *at: steps.append(at[1]),
                should_stop=lambda: len(steps) == 2,
            )
        )
    assert [entry.name for entry in tmp_path.iterdir()] == ["epoch-00001-step-00002"]
    # The format is fixed: checkpoints of earlier versions can be resumed.
    state = load_state(tmp_path / "epoch-00001-step-00002")
    assert set(state) == {"epoch", "optimizer", "metrics", "begun"}
    names = {"steps", "clips", "seconds", "loss_sum", "correct", "random", "random_of_device"}
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
    whole = run(config, tmp_path / "whole")
    kill_on_line(start_python(TRAIN_AND_HANG, dataset.path, tmp_path / "killed"), "within an epoch")
    assert [entry.name for entry in (tmp_path / "killed").iterdir()] == ["epoch-00002"]
    resumed = run(config, tmp_path / "killed")
    assert [(result.epoch, result.is_replay) for result in resumed] == [(2, True), (3, False), (4, False)]
    assert_same_result(tmp_path / "killed", resumed, tmp_path / "whole", whole[1:])


def test_resume_replays_the_epoch_of_the_checkpoint(tmp_path: Path, dataset: ArrowDataset) -> None:
    config = small_config(dataset)
    first = run(config, tmp_path, epochs=2)
    second = run(config, tmp_path)
    assert [(result.epoch, result.is_replay) for result in first] == [(1, False), (2, False)]
    assert [(result.epoch, result.is_replay) for result in second] == [(2, True), (3, False), (4, False)]
    assert second[0].metrics == first[-1].metrics  # including timings
    assert second[0].checkpoint == first[-1].checkpoint
    assert second[-1].metrics["minutes"] > second[0].metrics["minutes"]


def test_finished_training_replays_its_last_epoch(tmp_path: Path, dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__epochs=2)
    whole = run(config, tmp_path)
    before = bits(tmp_path)
    (replay,) = run(config, tmp_path)
    assert (replay.epoch, replay.is_replay) == (2, True)
    assert replay.metrics == whole[-1].metrics
    assert replay.test is not None
    assert whole[-1].test is not None
    assert replay.test.scores.tobytes() == whole[-1].test.scores.tobytes()
    assert bits(tmp_path) == before


def test_checkpoint_is_saved_before_its_result_is_yielded(tmp_path: Path, dataset: ArrowDataset) -> None:
    for result in fit(small_config(dataset, train__epochs=3), device="cpu", checkpoints=tmp_path / "run"):
        assert result.checkpoint == tmp_path / "run" / f"epoch-{result.epoch:05d}"
        assert list((tmp_path / "run").iterdir()) == [result.checkpoint]
        assert load_state(result.checkpoint)["epoch"] == result.epoch


def test_loaded_checkpoint_scores_the_same(tmp_path: Path, dataset: ArrowDataset) -> None:
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
def test_resume_with_another_configuration_is_rejected(
    tmp_path: Path, dataset: ArrowDataset, name: str, value: Any
) -> None:
    config = small_config(dataset)
    run(config, tmp_path, epochs=1)
    before = bits(tmp_path)
    with pytest.raises(InputError, match=rf"epoch-00001: was trained with {name} = .*not {value}"):
        run(config.with_values({name: value}), tmp_path)
    assert bits(tmp_path) == before


def test_resume_on_other_data_is_rejected(tmp_path: Path, dataset: ArrowDataset) -> None:
    run(small_config(dataset), tmp_path / "run", epochs=1)
    other = write_small(tmp_path / "other", motion_clips(seed=1))
    with pytest.raises(InputError, match=rf"epoch-00001: .*different data.*{dataset.digest[:12]}"):
        run(small_config(other), tmp_path / "run")


def test_resume_after_moving_the_data_set(tmp_path: Path, dataset: ArrowDataset) -> None:
    whole = run(small_config(dataset, train__epochs=2), tmp_path / "whole")
    shutil.copytree(dataset.path, tmp_path / "before")
    run(small_config(tmp_path / "before", train__epochs=2), tmp_path / "run", epochs=1)
    (tmp_path / "before").rename(tmp_path / "after")
    resumed = run(small_config(tmp_path / "after", train__epochs=2), tmp_path / "run")
    assert_same_result(tmp_path / "run", resumed, tmp_path / "whole", whole)


@pytest.mark.parametrize(
    "damage", ["state cut", "weights cut", "no weights", "a list", "no optimizer", "other optimizer"]
)
def test_damaged_checkpoint_is_rejected_by_name(tmp_path: Path, dataset: ArrowDataset, damage: str) -> None:
    config = small_config(dataset)
    run(config, tmp_path, epochs=1)
    state, weights = (tmp_path / "epoch-00001" / name for name in ("state.pt", "model.safetensors"))
    content = load_state(state.parent)
    expected_file = state
    if damage == "state cut":
        os.truncate(state, state.stat().st_size // 2)
    elif damage == "weights cut":
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
    with pytest.raises(InputError, match=rf"epoch-00001/{expected_file.name}: "):
        run(config, tmp_path)


# A pure function of the configuration


def test_results_are_reproducible_and_depend_on_the_seed(dataset: ArrowDataset) -> None:
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
    one = small_config(dataset, train__epochs=3, model__dropout=0.2)
    two = one.with_values({"train.seed": 1, "model.focal_joints": 3})
    alone = [[metrics_of(result) for result in run(config)] for config in (one, two)]
    together: list[list[dict[str, float]]] = [[], []]
    for results in zip(fit(one, device="cpu"), fit(two, device="cpu"), strict=True):
        for metrics, result in zip(together, results, strict=True):
            metrics.append(metrics_of(result))
        torch.manual_seed(5)
        np.random.seed(5)
        torch.rand(3)
    assert together == alone


def clips_with_noise(clips: set[str]) -> Iterator[Any]:
    rng = np.random.default_rng(11)
    for clip in motion_clips():
        joints = clip.joints
        if clip.clip_id in clips:
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


def test_test_clips_are_scored_after_the_last_epoch_only(dataset: ArrowDataset) -> None:
    results = run(small_config(dataset))
    always = {"train/loss", "train/top1", "val/loss", "val/top1", "val/top5", "lr", *TIMING_METRICS}
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


def test_paper_protocol_has_no_validation(dataset: ArrowDataset) -> None:
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
def test_on_step_is_called_after_every_step(dataset: ArrowDataset, batch_size: int, repeat: int, steps: int) -> None:
    """There are 18 training clips; a last batch of a single clip is dropped."""
    calls: list[tuple[int, int, int]] = []
    config = small_config(dataset, train__epochs=2, train__batch_size=batch_size, train__repeat=repeat)
    run(config, on_step=lambda *numbers: calls.append(numbers))
    assert calls == [(epoch, step, steps) for epoch in (1, 2) for step in range(1, steps + 1)]


def test_training_loss_is_the_smoothed_cross_entropy(dataset: ArrowDataset) -> None:
    """Without learning, the loss is near that of an uninformed network, ln 3, and linear in the label smoothing."""
    smoothings = (0.0, 0.45, 0.9)
    losses = [
        run(small_config(dataset, train__epochs=1, train__lr=1e-9, train__label_smoothing=s))[0].metrics["train/loss"]
        for s in smoothings
    ]
    assert losses[0] == pytest.approx(math.log(3), abs=0.2)  # the scores of random weights have some spread
    # The float32 loss is summed over 18 clips and 3 classes.
    assert_close(losses[1], (losses[0] + losses[2]) / 2, terms=2**6, dtype=torch.float32)
    assert abs(losses[0] - losses[2]) > 10 * tolerance(torch.float32, terms=2**6, scale=losses[0])


def test_scores_are_independent_of_the_batch_size(tmp_path: Path, dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__epochs=1)
    run(config, tmp_path)
    model, card = load_model(tmp_path / "epoch-00001")
    loader = make_loaders(dataset, card.config.data, CPU)["test"]
    model.train()
    whole = score(model, loader)
    assert model.training  # the mode is restored
    for batch_size in (1, 5):
        assert_close(score(model, loader, batch_size).scores, whole.scores, terms=2**7)


# The schedule


def test_default_learning_rate_is_the_papers() -> None:
    """§4.2: linear warm-up to 0.01 in 5 epochs, times 0.1 at epochs 50 and 70 of 80."""
    paper = TrainConfig()
    expected = {
        0: 0, 0.5: 0.001, 1: 0.002, 2.5: 0.005, 4: 0.008, 4.999: 0.009998,
        5: 0.01, 5.1: 0.01, 30: 0.01, 49.99: 0.01,
        50: 0.001, 50.01: 0.001, 60: 0.001, 69.99: 0.001,
        70: 0.0001, 75: 0.0001, 80: 0.0001,
    }  # fmt: skip
    for progress, rate in expected.items():
        assert_close(learning_rate(paper, progress), rate, terms=SCHEDULE_ROUNDINGS)


def test_schedule_scales_with_the_number_of_epochs() -> None:
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


def test_training_follows_the_schedule(dataset: ArrowDataset) -> None:
    """The reported learning rate is evaluated at the middle of the epoch's last step, here the third."""
    config = small_config(dataset, train__epochs=6, train__lr=0.03, train__warmup=1 / 3, train__decay_at=[0.55])
    rates = [result.metrics["lr"] for result in run(config)]
    assert_close(rates, [0.0125, 0.0275, 0.03, 0.003, 0.003, 0.003], terms=SCHEDULE_ROUNDINGS)


def test_optimizer_is_sgd_with_nesterov_momentum(tmp_path: Path, dataset: ArrowDataset) -> None:
    """One step, recomputed: v = g + decay · w, then w - lr (v + momentum · v)."""
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
        scale = max(float(start[name].abs().max()), float(velocity.abs().max()))
        assert_close(end[name], expected, terms=8, scale=scale)
        moved += not torch.equal(end[name], start[name])
    assert moved == len(names)


def test_moving_average_is_scored_and_saved(tmp_path: Path, dataset: ArrowDataset) -> None:
    """Recompute the average of three steps from the weights after one, two and three steps."""
    config = small_config(dataset, train__epochs=1, train__ema=0.15)
    clips = len(make_loaders(dataset, resolve(config, dataset).data, CPU)["train"])
    config = config.with_values({"train.batch_size": clips})
    after = []
    for steps in (1, 2, 3):
        # Order, augmentation and learning rate are the same; only the number of passes in the epoch differs.
        folder = tmp_path / str(steps)
        values = {"train.repeat": steps, "train.warmup": 0, "train.decay_at": []}
        last = run(config.with_values(values), folder)[-1]
        after.append(load_state(folder / "epoch-00001")["weights"])
    saved = load_file(folder / "epoch-00001" / "model.safetensors")
    start = load_file(run(config.with_values({"train.lr": 1e-30, "train.ema": 0}), tmp_path / "start")[-1].checkpoint
                      / "model.safetensors")  # fmt: skip
    moved = 0
    for name, mean in start.items():
        if not mean.is_floating_point() or "running" in name:
            continue
        for step, weights in enumerate(after):
            mean = mean + (1 - min(0.15, (1 + step) / (10 + step))) * (weights[name] - mean)
        assert_close(saved[name], mean, terms=2**5, scale=max(1.0, float(mean.abs().max())))
        moved += not torch.allclose(saved[name], after[-1][name])
    assert moved > 20
    assert last.test is not None
    model, card = load_model(folder / "epoch-00001")
    loader = make_loaders(dataset, card.config.data, CPU)["test"]
    assert score(model, loader).scores.tobytes() == last.test.scores.tobytes()


def test_bfloat16_training_approximates_float32_and_is_scored_in_float32(tmp_path: Path, dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__epochs=2)
    exact, rounded = run(config), run(config.with_values({"train.precision": "bfloat16"}), tmp_path)
    for one, other in zip(exact, rounded, strict=True):
        assert other.metrics["train/loss"] != one.metrics["train/loss"]
        # Rounding errors of random sign average out in the mean over clips: a few epsilon of bfloat16 remain.
        assert_close(other.metrics["train/loss"], one.metrics["train/loss"], terms=2, dtype=torch.bfloat16)
    weights = load_file(tmp_path / "epoch-00002" / "model.safetensors")
    assert {w.dtype for w in weights.values() if w.is_floating_point()} == {torch.float32}
    model, card = load_model(tmp_path / "epoch-00002")
    loader = make_loaders(dataset, card.config.data, CPU)["test"]
    assert rounded[-1].test is not None
    assert score(model, loader).scores.tobytes() == rounded[-1].test.scores.tobytes()


def test_motionless_person_is_present_in_motion_modalities(tmp_path: Path) -> None:
    clips = list(motion_clips())
    pair = next(clip for clip in clips if clip.joints.shape[0] == 2)
    still = np.repeat(pair.joints[1:, :1], pair.joints.shape[1], axis=1)
    clips.append(dataclasses.replace(pair, clip_id="still", joints=np.concatenate([pair.joints[:1], still])))
    clips.append(dataclasses.replace(pair, clip_id="alone", joints=pair.joints[:1]))
    dataset = write_small(tmp_path / "data", clips)
    config = resolve(small_config(dataset, data__modality="joint_motion"), dataset)
    person_mask = {}
    for loader in make_loaders(dataset, config.data, CPU).values():
        (batch,) = loader.evaluation_batches()
        person_mask |= dict(zip(loader.clip_ids, batch.person_mask.tolist(), strict=True))
    assert person_mask["still"] == [True, True]
    assert person_mask["alone"] == [True, False]


# Learning


def test_small_network_learns_small_data_set(dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__epochs=12, train__repeat=4, train__lr=0.05, train__schedule="cosine")
    results = run(config)
    assert results[0].metrics["train/top1"] < 90
    assert results[-1].metrics["train/top1"] > 90
    assert results[-1].metrics["val/top1"] > 80  # subjects not trained on
    assert results[-1].metrics["test/top1"] > 80


def test_random_labels_do_not_generalize(tmp_path: Path) -> None:
    """A high accuracy would mean that test clips are among the training clips."""
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


def test_divergence_in_the_last_step_is_reported(dataset: ArrowDataset) -> None:
    config = small_config(dataset, train__lr=1e30, train__batch_size=100, train__epochs=1, data__protocol="paper")
    with pytest.raises(DivergedError, match=r"epoch 1.*lower train\.lr"):
        run(config)


# Resolving configurations


def test_resolve_fills_in_data_set_defaults(
    tmp_path: Path, dataset: ArrowDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(dataset, data__frames=None, train__repeat=None)
    for recipe, frames, repeat in (("ntu", 128, 1), ("nw-ucla", 52, 5)):
        own = write_small(tmp_path / recipe, recipe=recipe)
        for trial in (config, config.with_values({"data.recipe": recipe})):
            resolved = resolve(trial, own)
            assert (resolved.data.recipe, resolved.data.frames, resolved.train.repeat) == (recipe, frames, repeat)
            assert resolved.data.benchmark == "x-sub"
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
def test_mismatch_with_the_data_set_is_rejected_by_name(
    dataset: ArrowDataset, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        resolve(small_config(dataset, **values), dataset)
    with pytest.raises(InputError, match=message):
        run(small_config(dataset, **values), tmp_path / "run")
    assert not (tmp_path / "run").exists()
