"""Sweeps in this process: what is stopped, retried, limited and told. Real trainings, real MLflow, no Ray."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from fgst.data.dataset import ArrowDataset
from fgst.sweep.backends.local import LocalBackend
from fgst.sweep.scheduler import TrialUpdate
from fgst.sweep.search import Search
from fgst.sweep.spec import EarlyStopping
from fgst.sweep.status import StopReason
from fgst.sweep.stopping import Budget
from fgst.sweep.trial import TrialContext
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags
from fgst.training import trainer
from tests.support import small
from tests.support.definitions import FOCAL_K, JOINT, build_sweep


@pytest.fixture
def dataset(tmp_path: Path) -> ArrowDataset:
    torch.set_num_threads(1)
    return small.write_small(tmp_path / "data")


@pytest.fixture
def context(tmp_path: Path, tracking_uri: str) -> TrialContext:
    store = TrackingStore(tracking_uri)
    experiment = store.experiment("small x-sub")
    parent = store.start(experiment, "sweep", "a sweep", {"fgst.kind": "sweep"})
    (tmp_path / "storage").mkdir()
    return TrialContext(store.uri, experiment, parent.run_id, str(tmp_path / "storage"), 1, price_per_hour=36.0)


def run(
    dataset: ArrowDataset, context: TrialContext, question: Any = FOCAL_K, budget: Budget | None = None, **changes: Any
) -> tuple[Search, list[TrialUpdate]]:
    settings = changes.pop("settings", {})
    spec, trials = build_sweep(question, dataset, small.small_config(dataset, train__epochs=3, **settings), **changes)
    search, told = Search(spec, trials, None, "study"), []
    LocalBackend().run(search, context, budget or Budget(), told.append)
    return search, told


def endings(told: list[TrialUpdate]) -> list[str]:
    return [progress.status for progress in told if progress.status != "running"]


def test_trials_are_accounted_for(dataset: ArrowDataset, context: TrialContext) -> None:
    _, told = run(dataset, context, values=[2, 4])
    assert endings(told) == ["finished", "finished"]
    for child in TrackingStore(context.tracking_uri).children(context.parent):
        metrics = child.data.metrics
        assert child.data.tags[Tags.STATUS] == "finished"
        assert metrics["device_seconds"] == pytest.approx(60 * metrics["minutes"])
        assert metrics["cost"] == pytest.approx(metrics["device_seconds"] / 100)
        assert metrics["peak_memory_gib"] > 0.1
        assert metrics["model/gflops"] > 0
        assert metrics["model/parameters"] > 1000


def test_a_stopped_trial_says_so_and_writes_no_model(dataset: ArrowDataset, context: TrialContext) -> None:
    search, told = run(dataset, context, JOINT, limit=6, early_stop=EarlyStopping(1, 2), settings={"train__repeat": 6})
    assert {"finished", "pruned"} == set(endings(told))
    runs = TrackingStore(context.tracking_uri).children(context.parent)
    for child, status in zip(runs, endings(told), strict=True):
        epochs = [
            m.step for m in TrackingStore(context.tracking_uri).client.get_metric_history(child.info.run_id, "lr")
        ]
        assert ("test/top1" in child.data.metrics) == (status == "finished")
        assert (epochs[-1] == 3) == (status == "finished")
        assert child.info.status == ("FINISHED" if status == "finished" else "KILLED")
    states = [t.state.name for t in search.study.trials if "same as" not in t.user_attrs]
    assert states == [{"finished": "COMPLETE", "pruned": "PRUNED"}[status] for status in endings(told)]


def test_latency_is_measured_where_it_is_asked_for(dataset: ArrowDataset, context: TrialContext) -> None:
    asked = dataclasses.replace(context, latency=True)
    search, _ = run(dataset, asked, JOINT, search="nsga2", objectives=("val_top1", "latency"), limit=2)
    assert all(trial.values[1] > 0 for trial in search.study.trials)


def test_out_of_memory_is_tried_again_with_half(
    dataset: ArrowDataset, context: TrialContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    whole = trainer.FGSTFormer.forward

    def forward(self: Any, clips: Any, *arguments: Any, **named: Any) -> Any:
        if self.training:
            sizes.append(len(clips))
            if len(clips) > 4:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return whole(self, clips, *arguments, **named)

    monkeypatch.setattr(trainer.FGSTFormer, "forward", forward)
    _, told = run(dataset, context, values=[2])
    assert endings(told) == ["finished"]
    assert sizes[0] == 8
    assert set(sizes[1:]) <= {4, 3, 2, 1}
    [child] = TrackingStore(context.tracking_uri).children(context.parent)
    assert child.info.status == "FINISHED"
    assert child.data.tags[Tags.MICRO_BATCHES] == "2"
    assert child.data.params["train.batch_size"] == "8"


def test_out_of_memory_twice_is_a_failure_with_its_reason(
    dataset: ArrowDataset, context: TrialContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.FGSTFormer, "forward", forward)
    _, told = run(dataset, context, values=[2, 4])
    assert endings(told) == ["failed", "failed"]
    for child in TrackingStore(context.tracking_uri).children(context.parent):
        assert child.info.status == "FAILED"
        assert "out of memory" in child.data.tags["fgst.reason"]


def test_halves_add_up_to_the_gradient_of_the_whole(dataset: ArrowDataset) -> None:
    """With layer norm, which sees each clip alone, half the batch at a time changes nothing but rounding."""
    config = small.small_config(dataset, model__norm="layer", train__epochs=1, train__lr=0.05)
    losses = []
    for parts in (1, 2, 3):
        *_, last = trainer.fit(config, dataset=dataset, device="cpu", micro_batches=parts)
        losses.append(last.metrics["val/loss"])
    # the batch norm over the input channels still sees the parts
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[2] == pytest.approx(losses[0], rel=0.05)


def test_a_full_disk_stops_the_sweep_and_blames_no_trial(
    dataset: ArrowDataset, context: TrialContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, saved = trainer.save_checkpoint, []

    def save(*arguments: Any, **named: Any) -> Any:
        saved.append(1)
        if len(saved) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(*arguments, **named)

    monkeypatch.setattr(trainer, "save_checkpoint", save)
    budget = Budget()
    search, told = run(dataset, context, budget=budget, values=[2, 4, 6])
    assert endings(told) == ["finished", "interrupted"]
    assert budget.stop_reason is StopReason.DISK_FULL
    assert [t.state.name for t in search.study.trials] == ["COMPLETE", "RUNNING"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_is_up_in_the_middle_of_a_trial(dataset: ArrowDataset, context: TrialContext) -> None:
    clock = Clock()
    budget = Budget(max_hours=1, clock=clock)
    spec, trials = build_sweep(FOCAL_K, dataset, small.small_config(dataset, train__epochs=3), values=[2, 4, 6])
    search, told = Search(spec, trials, None, "study"), []

    def listen(progress: TrialUpdate) -> None:
        told.append(progress)
        if sum(p.status == "running" for p in told) == 4:
            clock.now = 3600.0

    LocalBackend().run(search, context, budget, listen)
    assert endings(told) == ["finished", "interrupted"]
    assert budget.details == "--max-hours 1"
    again: list[TrialUpdate] = []
    LocalBackend().run(Search(spec, trials, None, "other", []), context, Budget(), again.append)
    assert endings(again) == ["finished"] * 3
    assert [int(p.metrics["epoch"]) for p in again if p.status == "running"][0:2] == [1, 2]  # K=4 went on after 1


def test_enough_is_enough(dataset: ArrowDataset, context: TrialContext) -> None:
    _, told = run(dataset, context, budget=Budget(max_trials=2), values=[2, 4, 6])
    assert endings(told) == ["finished"] * 2
    budget = Budget(until_top1=0.0)
    _, told = run(dataset, dataclasses.replace(context), JOINT, budget=budget, limit=5)
    assert endings(told) == ["finished"]
    assert budget.details.startswith("--until-top1 0 (a trial reached")
