"""Trials in this process, without Ray: their MLflow runs, failures and resumption."""

from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path

import psutil
import pytest
import torch

from fgst.data.dataset import ArrowDataset
from fgst.evaluation.metrics import Scores
from fgst.sweep.definition import Trial
from fgst.sweep.spec import build_spec
from fgst.sweep.trial import TrialContext, give_back_memory, run_trial
from fgst.tracking.evaluation import evaluate
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags
from tests.support import small
from tests.support.definitions import FOCAL_K


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
    return TrialContext(store.uri, experiment, parent.run_id, str(tmp_path / "storage"), 1)


def make_trial(dataset: ArrowDataset, **values: object) -> Trial:
    return build_spec(FOCAL_K, small.small_config(dataset, **values), dataset, values=[2]).trials[0]


def test_run_contains_settings_curves_model_scores_and_figures(dataset: ArrowDataset, context: TrialContext) -> None:
    updates: list[dict[str, float]] = []
    trial = make_trial(dataset)
    assert run_trial(trial, context, updates.append) == "finished"
    store = TrackingStore(context.tracking_uri)
    [run] = store.children(context.parent)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "K=2 joint s0"
    assert run.data.params["model.focal_joints"] == "2"
    assert run.data.params["model.channels"] == "[8, 8, 16, 16]"
    assert set(run.data.params) == set(trial.config.flat())
    assert run.data.tags["fgst.dataset_digest"] == dataset.digest
    assert run.data.tags["fgst.benchmark"] == "x-sub"
    assert run.data.tags[Tags.PARENT] == context.parent
    assert [int(metrics["epoch"]) for metrics in updates] == [1, 2, 3, 4]
    for metric in ("train/loss", "val/top1", "lr"):
        history = store.client.get_metric_history(run.info.run_id, metric)
        assert [(m.step, m.value) for m in history] == [(int(update["epoch"]), update[metric]) for update in updates]
    assert [m.step for m in store.client.get_metric_history(run.info.run_id, "test/top1")] == [4]
    with store.artifacts(run.info.run_id, "") as folder:
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        scores = Scores.load(folder / "scores" / "test.arrow")
        val = Scores.load(folder / "scores" / "val.arrow")
    assert files == {
        "checkpoint/model.safetensors",
        "checkpoint/config.json",
        "scores/test.arrow",
        "scores/val.arrow",
        "figures/confusion.png",
        "figures/learning_curves.png",
    }
    assert set(scores.clip_ids) == set(dataset.clip_ids[dataset.splits().test])
    assert scores.top(1) == run.data.metrics["test/top1"]
    assert val.top(1) == run.data.metrics["val/top1"]
    assert (scores.split, val.split) == ("test", "val")
    assert scores.digest == val.digest == dataset.digest
    assert not Path(context.storage, trial.trial_id).exists()  # a finished trial needs no checkpoint


@pytest.mark.parametrize("split", ["test", "val"])
def test_evaluate_reproduces_the_logged_accuracy(dataset: ArrowDataset, context: TrialContext, split: str) -> None:
    run_trial(make_trial(dataset), context)
    [run] = TrackingStore(context.tracking_uri).children(context.parent)
    report = evaluate(run.info.run_id, split=split, tracking_uri=context.tracking_uri)
    assert report["top1"] == report["logged_top1"] == run.data.metrics[f"{split}/top1"]
    assert report["top5"] == run.data.metrics[f"{split}/top5"]
    assert report["num_clips"] == sum(row["num_clips"] for row in report["per_class"])
    assert report["top1"] == 100 * sum(row["correct"] for row in report["per_class"]) / report["num_clips"]


def test_failed_trial_logs_its_reason_and_does_not_raise(dataset: ArrowDataset, context: TrialContext) -> None:
    trial = make_trial(dataset, train__lr=1e30, train__warmup=0.0)
    assert run_trial(trial, context) == "failed"
    [run] = TrackingStore(context.tracking_uri).children(context.parent)
    assert run.info.status == "FAILED"
    assert "DivergedError: the loss is" in run.data.tags["fgst.reason"]


def test_trial_with_a_missing_data_set_has_a_failed_run(
    dataset: ArrowDataset, context: TrialContext, tmp_path: Path
) -> None:
    trial = make_trial(dataset)
    config = trial.config.with_values({"data.dataset": str(tmp_path / "missing")})
    assert run_trial(dataclasses.replace(trial, config=config), context) == "failed"
    [run] = TrackingStore(context.tracking_uri).children(context.parent)
    assert run.info.status == "FAILED"
    assert "no such directory" in run.data.tags["fgst.reason"]


def test_interrupted_trial_resumes_in_the_same_run(
    dataset: ArrowDataset, context: TrialContext, tmp_path: Path
) -> None:
    trial = make_trial(dataset)

    class Killed(BaseException):
        pass

    def raise_after_two_epochs(metrics: dict[str, float]) -> None:
        if metrics["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        run_trial(trial, context, raise_after_two_epochs)
    updates: list[dict[str, float]] = []
    assert run_trial(trial, context, updates.append) == "finished"
    store = TrackingStore(context.tracking_uri)
    [run] = store.children(context.parent)
    assert run.info.status == "FINISHED"
    assert "fgst.reason" not in run.data.tags
    assert [int(metrics["epoch"]) for metrics in updates] == [2, 3, 4]  # the checkpoint's epoch is reported again
    steps = [m.step for m in store.client.get_metric_history(run.info.run_id, "train/loss")]
    assert steps == [1, 2, 3, 4]  # each logged once

    (tmp_path / "other").mkdir()
    uninterrupted = dataclasses.replace(context, storage=str(tmp_path / "other"), parent=_new_parent(store, context))
    run_trial(trial, uninterrupted)
    [other] = store.children(uninterrupted.parent)
    assert other.data.tags[Tags.TRIAL_ID] == run.data.tags[Tags.TRIAL_ID]
    names = [name for name in run.data.metrics if name not in small.TIMINGS]
    assert {name: run.data.metrics[name] for name in names} == {name: other.data.metrics[name] for name in names}


def test_finished_trial_is_not_retrained(dataset: ArrowDataset, context: TrialContext) -> None:
    # The process may die after it closed the run and removed the checkpoint, but before it reported the end.
    trial = make_trial(dataset)
    run_trial(trial, context)
    updates: list[dict[str, float]] = []
    assert run_trial(trial, context, updates.append) == "finished"
    assert updates == []
    assert len(TrackingStore(context.tracking_uri).children(context.parent)) == 1


def test_give_back_memory_returns_freed_memory_to_the_system() -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("the C library is not glibc, whose allocator retains freed memory")
    process = psutil.Process()
    blocks = [bytearray(2000) for _ in range(100_000)]
    allocated = process.memory_info().rss
    del blocks[:-1]  # the last block is at the end of the heap, so glibc does not shrink the heap
    freed = process.memory_info().rss
    give_back_memory()
    assert freed > allocated - 100e6
    assert process.memory_info().rss < allocated - 150e6


def _new_parent(store: TrackingStore, context: TrialContext) -> str:
    return store.start(context.experiment, "sweep-2", "another sweep", {"fgst.kind": "sweep"}).run_id
