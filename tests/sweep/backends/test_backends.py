"""Sweeps with the local backend: early stopping, retries, budgets and updates."""

from __future__ import annotations

import dataclasses
import errno
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from fgst.data.dataset import ArrowDataset
from fgst.sweep.backends.local import LocalBackend
from fgst.sweep.definition import SweepDefinition
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

pytestmark = pytest.mark.long


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
    dataset: ArrowDataset,
    context: TrialContext,
    definition: SweepDefinition = FOCAL_K,
    budget: Budget | None = None,
    **changes: Any,
) -> tuple[Search, list[TrialUpdate]]:
    """Run a sweep of three epochs; return its search and all updates."""
    settings = changes.pop("settings", {})
    spec, trials = build_sweep(definition, dataset, small.small_config(dataset, train__epochs=3, **settings), **changes)
    search = Search(spec, trials, None, "study")
    updates: list[TrialUpdate] = []
    LocalBackend().run(search, context, budget or Budget(), updates.append)
    return search, updates


def final_statuses(updates: list[TrialUpdate]) -> list[str]:
    """The statuses with which the trials ended, in order."""
    return [update.status for update in updates if update.status != "running"]


def test_costs_of_trials_are_logged(dataset: ArrowDataset, context: TrialContext) -> None:
    _, updates = run(dataset, context, values=[2, 4])
    assert final_statuses(updates) == ["finished", "finished"]
    for child in TrackingStore(context.tracking_uri).children(context.parent):
        metrics = child.data.metrics
        assert child.data.tags[Tags.STATUS] == "finished"
        assert metrics["device_seconds"] == pytest.approx(60 * metrics["minutes"])
        assert metrics["cost"] == pytest.approx(metrics["device_seconds"] / 100)
        assert metrics["peak_memory_gib"] > 0.1
        assert metrics["model/gflops"] > 0
        assert metrics["model/parameters"] > 1000


def test_pruned_trials_are_marked_and_not_tested(dataset: ArrowDataset, context: TrialContext) -> None:
    search, updates = run(
        dataset, context, JOINT, limit=6, early_stop=EarlyStopping(1, 2), settings={"train__repeat": 6}
    )
    assert {"finished", "pruned"} == set(final_statuses(updates))
    runs = TrackingStore(context.tracking_uri).children(context.parent)
    for child, status in zip(runs, final_statuses(updates), strict=True):
        epochs = [
            m.step for m in TrackingStore(context.tracking_uri).client.get_metric_history(child.info.run_id, "lr")
        ]
        assert ("test/top1" in child.data.metrics) == (status == "finished")
        assert (epochs[-1] == 3) == (status == "finished")
        assert child.info.status == ("FINISHED" if status == "finished" else "KILLED")
    states = [t.state.name for t in search.study.trials if "same as" not in t.user_attrs]
    assert states == [{"finished": "COMPLETE", "pruned": "PRUNED"}[status] for status in final_statuses(updates)]


def test_latency_objective_is_measured(dataset: ArrowDataset, context: TrialContext) -> None:
    with_latency = dataclasses.replace(context, latency=True)
    search, _ = run(dataset, with_latency, JOINT, search="nsga2", objectives=("val_top1", "latency"), limit=2)
    assert all(trial.values[1] > 0 for trial in search.study.trials)


def test_out_of_memory_is_retried_with_two_micro_batches(
    dataset: ArrowDataset, context: TrialContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = trainer.FGSTFormer.forward

    def forward(self: Any, clips: Any, *arguments: Any, **named: Any) -> Any:
        if self.training:
            sizes.append(len(clips))
            if len(clips) > 4:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return original(self, clips, *arguments, **named)

    monkeypatch.setattr(trainer.FGSTFormer, "forward", forward)
    _, updates = run(dataset, context, values=[2])
    assert final_statuses(updates) == ["finished"]
    assert sizes[0] == 8
    assert set(sizes[1:]) <= {4, 3, 2, 1}
    [child] = TrackingStore(context.tracking_uri).children(context.parent)
    assert child.info.status == "FINISHED"
    assert child.data.tags[Tags.MICRO_BATCHES] == "2"
    assert child.data.params["train.batch_size"] == "8"


def test_trial_fails_if_it_runs_out_of_memory_twice(
    dataset: ArrowDataset, context: TrialContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.FGSTFormer, "forward", forward)
    _, updates = run(dataset, context, values=[2, 4])
    assert final_statuses(updates) == ["failed", "failed"]
    for child in TrackingStore(context.tracking_uri).children(context.parent):
        assert child.info.status == "FAILED"
        assert "out of memory" in child.data.tags["fgst.reason"]


def test_micro_batches_barely_change_the_loss(dataset: ArrowDataset) -> None:
    """Layer norm treats each clip independently; only the batch norm of the input depends on the micro-batches."""
    config = small.small_config(dataset, model__norm="layer", train__epochs=1, train__lr=0.05)
    losses = []
    for parts in (1, 2, 3):
        *_, last = trainer.fit(config, dataset=dataset, device="cpu", micro_batches=parts)
        losses.append(last.metrics["val/loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[2] == pytest.approx(losses[0], rel=0.05)


def test_full_disk_stops_the_sweep_without_failing_a_trial(
    dataset: ArrowDataset, context: TrialContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, counter = trainer.save_checkpoint, itertools.count(1)

    def save_until_full(*arguments: Any, **named: Any) -> Any:
        if next(counter) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments, **named)

    monkeypatch.setattr(trainer, "save_checkpoint", save_until_full)
    budget = Budget()
    search, updates = run(dataset, context, budget=budget, values=[2, 4, 6])
    assert final_statuses(updates) == ["finished", "interrupted"]
    assert budget.stop_reason is StopReason.DISK_FULL
    assert [t.state.name for t in search.study.trials] == ["COMPLETE", "RUNNING"]


class Clock:
    """A clock that is set by the test; in seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_limit_interrupts_a_running_trial(dataset: ArrowDataset, context: TrialContext) -> None:
    clock = Clock()
    budget = Budget(max_hours=1, clock=clock)
    spec, trials = build_sweep(FOCAL_K, dataset, small.small_config(dataset, train__epochs=3), values=[2, 4, 6])
    updates: list[TrialUpdate] = []

    def on_update(update: TrialUpdate) -> None:
        updates.append(update)
        if sum(u.status == "running" for u in updates) == 4:
            clock.now = 3600.0

    LocalBackend().run(Search(spec, trials, None, "study"), context, budget, on_update)
    assert final_statuses(updates) == ["finished", "interrupted"]
    assert budget.details == "--max-hours 1"
    resumed: list[TrialUpdate] = []
    LocalBackend().run(Search(spec, trials, None, "other", []), context, Budget(), resumed.append)
    assert final_statuses(resumed) == ["finished"] * 3
    epochs = [int(update.metrics["epoch"]) for update in resumed if update.status == "running"]
    assert epochs[:2] == [1, 2]  # of K=4, whose checkpoint's epoch is reported again


def test_budget_limits_trials_and_accuracy(dataset: ArrowDataset, context: TrialContext) -> None:
    _, updates = run(dataset, context, budget=Budget(max_trials=2), values=[2, 4, 6])
    assert final_statuses(updates) == ["finished"] * 2
    budget = Budget(until_top1=0.0)
    _, updates = run(dataset, context, JOINT, budget=budget, limit=5)
    assert final_statuses(updates) == ["finished"]
    assert budget.details.startswith("--until-top1 0 (a trial reached")
