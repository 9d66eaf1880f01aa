"""A trial in this process: its MLflow run, its failures, and going on with it. No Ray."""

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


def test_run_holds_settings_curves_model_scores_and_figures(dataset: ArrowDataset, context: TrialContext) -> None:
    told: list[dict[str, float]] = []
    trial = make_trial(dataset)
    assert run_trial(trial, context, told.append) == "finished"
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
    assert [int(metrics["epoch"]) for metrics in told] == [1, 2, 3, 4]
    for metric in ("train/loss", "val/top1", "lr"):
        history = store.client.get_metric_history(run.info.run_id, metric)
        assert [(m.step, m.value) for m in history] == [(int(t["epoch"]), t[metric]) for t in told]
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
    assert not Path(context.storage, trial.trial_id).exists()  # nothing is left to go on with


@pytest.mark.parametrize("split", ["test", "val"])
def test_evaluate_repeats_the_logged_accuracy_exactly(dataset: ArrowDataset, context: TrialContext, split: str) -> None:
    run_trial(make_trial(dataset), context)
    [run] = TrackingStore(context.tracking_uri).children(context.parent)
    report = evaluate(run.info.run_id, split=split, tracking_uri=context.tracking_uri)
    assert report["top1"] == report["logged_top1"] == run.data.metrics[f"{split}/top1"]
    assert report["top5"] == run.data.metrics[f"{split}/top5"]
    assert report["num_clips"] == sum(row["num_clips"] for row in report["per_class"])
    assert report["top1"] == 100 * sum(row["correct"] for row in report["per_class"]) / report["num_clips"]


def test_failure_is_told_with_its_reason_and_does_not_raise(dataset: ArrowDataset, context: TrialContext) -> None:
    trial = make_trial(dataset, train__lr=1e30, train__warmup=0.0)
    assert run_trial(trial, context) == "failed"
    [run] = TrackingStore(context.tracking_uri).children(context.parent)
    assert run.info.status == "FAILED"
    assert "DivergedError: the loss is" in run.data.tags["fgst.reason"]


def test_missing_data_fails_the_trial_in_mlflow_too(
    dataset: ArrowDataset, context: TrialContext, tmp_path: Path
) -> None:
    trial = make_trial(dataset)
    gone = dataclasses.replace(trial, config=trial.config.with_values({"data.dataset": str(tmp_path / "gone")}))
    assert run_trial(gone, context) == "failed"
    [run] = TrackingStore(context.tracking_uri).children(context.parent)
    assert run.info.status == "FAILED"
    assert "no such directory" in run.data.tags["fgst.reason"]


def test_interrupted_trial_goes_on_in_its_own_run(dataset: ArrowDataset, context: TrialContext, tmp_path: Path) -> None:
    trial = make_trial(dataset)

    class Killed(BaseException):
        pass

    def die_after_two(metrics: dict[str, float]) -> None:
        if metrics["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        run_trial(trial, context, die_after_two)
    told: list[dict[str, float]] = []
    assert run_trial(trial, context, told.append) == "finished"
    store = TrackingStore(context.tracking_uri)
    [run] = store.children(context.parent)
    assert run.info.status == "FINISHED"
    assert "fgst.reason" not in run.data.tags
    assert [int(metrics["epoch"]) for metrics in told] == [2, 3, 4]  # the checkpoint's epoch, told again, and on
    steps = [m.step for m in store.client.get_metric_history(run.info.run_id, "train/loss")]
    assert steps == [1, 2, 3, 4]  # logged once each

    (tmp_path / "other").mkdir()
    uninterrupted = dataclasses.replace(context, storage=str(tmp_path / "other"), parent=_new_parent(store, context))
    run_trial(trial, uninterrupted)
    [other] = store.children(uninterrupted.parent)
    assert other.data.tags[Tags.TRIAL_ID] == run.data.tags[Tags.TRIAL_ID]
    same = [name for name in run.data.metrics if name not in small.TIMINGS]
    assert {name: run.data.metrics[name] for name in same} == {name: other.data.metrics[name] for name in same}


def test_finished_trial_is_not_trained_again(dataset: ArrowDataset, context: TrialContext) -> None:
    # Its process may die after the run was closed and before anybody heard; the checkpoint is gone by then.
    trial = make_trial(dataset)
    run_trial(trial, context)
    told: list[dict[str, float]] = []
    assert run_trial(trial, context, told.append) == "finished"
    assert told == []
    assert len(TrackingStore(context.tracking_uri).children(context.parent)) == 1


def test_freed_memory_goes_back_to_the_system() -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("another C library than glibc, which does not keep what is freed so")
    process = psutil.Process()
    blocks = [bytearray(2000) for _ in range(100_000)]
    full = process.memory_info().rss
    del blocks[:-1]  # the last one keeps all below it from going by itself
    kept = process.memory_info().rss
    give_back_memory()
    assert kept > full - 100e6
    assert process.memory_info().rss < full - 150e6


def _new_parent(store: TrackingStore, context: TrialContext) -> str:
    return store.start(context.experiment, "sweep-2", "another sweep", {"fgst.kind": "sweep"}).run_id
