"""Checkpoints that outlive their node, in a shared folder or in an object store."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs

from fgst.data.dataset import ArrowDataset
from fgst.errors import InputError
from fgst.sweep import storage
from fgst.sweep.definition import Trial
from fgst.sweep.spec import build_spec
from fgst.sweep.status import TrialStatus
from fgst.sweep.storage import TrialStorage
from fgst.sweep.trial import StopTrial, TrialContext, run_trial
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags
from fgst.training.trainer import fit
from tests.support import small
from tests.support.definitions import FOCAL_K
from tests.support.workspace import metrics_by_trial


@pytest.fixture
def dataset(tmp_path: Path) -> ArrowDataset:
    torch.set_num_threads(1)
    return small.write_small(tmp_path / "data")


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that serves as an object store if it is given by its ``file://`` URI."""
    monkeypatch.setenv("FGST_CACHE", str(tmp_path / "node"))
    return tmp_path / "remote"


def make_trial(dataset: ArrowDataset, **values: object) -> Trial:
    return build_spec(FOCAL_K, small.small_config(dataset, **values), dataset, values=[2]).trials[0]


def make_context(tracking_uri: str, location: str) -> TrialContext:
    """Start a sweep with this storage, and return the context of its trials."""
    store = TrackingStore(tracking_uri)
    experiment = store.experiment("small x-sub")
    parent = store.start(experiment, location, "a sweep", {"fgst.kind": "sweep"})
    storage.prepare(location)
    return TrialContext(store.uri, experiment, parent.run_id, location, 1)


def train(dataset: ArrowDataset, trial_storage: TrialStorage, epochs: int) -> list[int]:
    """Resume the training from its newest checkpoint up to an epoch; return the epochs that it reported."""
    trial_storage.fetch()
    config = small.small_config(dataset, train__epochs=100)
    reported = []
    for result in fit(config, dataset=dataset, device="cpu", checkpoints=trial_storage.folder):
        reported.append(result.epoch)
        if result.epoch >= epochs:
            break
    return reported


def checkpoint_names(remote: Path) -> list[str]:
    """Names of the copies and of their manifests."""
    return sorted(path.name for path in remote.rglob("epoch-*"))


def on_node(trial_storage: TrialStorage, monkeypatch: pytest.MonkeyPatch, node: Path) -> TrialStorage:
    """The storage of the same trial on another node, whose cache is the folder ``node``."""
    monkeypatch.setenv("FGST_CACHE", str(node))
    return TrialStorage(trial_storage.location, trial_storage.trial_id)


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_trial_resumes_on_another_node(
    kind: str,
    dataset: ArrowDataset,
    tmp_path: Path,
    tracking_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    trial = make_trial(dataset)
    uninterrupted = make_context(tracking_uri, str(tmp_path / "shared"))
    assert run_trial(trial, uninterrupted) == "finished"
    bucket: Any = request.getfixturevalue("bucket") if kind == "s3" else None
    location = "s3://motion/sweeps/one" if kind == "s3" else (tmp_path / "remote").as_uri()
    context = make_context(tracking_uri, location)
    epochs: list[float] = []

    def interrupt_after_two_epochs(metrics: dict[str, float]) -> None:
        epochs.append(metrics["epoch"])
        if metrics["epoch"] == 2:
            raise StopTrial(TrialStatus.INTERRUPTED)

    monkeypatch.setattr(storage, "COPY_TIME_SHARE", 1.0)  # a copy after each epoch
    monkeypatch.setenv("FGST_CACHE", str(tmp_path / "node 1"))
    assert run_trial(trial, context, interrupt_after_two_epochs) == "interrupted"
    monkeypatch.setenv("FGST_CACHE", str(tmp_path / "node 2"))
    assert run_trial(trial, context, lambda metrics: epochs.append(metrics["epoch"])) == "finished"
    assert epochs == [1, 2, 2, 3, 4]  # the checkpoint's epoch is reported again
    store = TrackingStore(tracking_uri)
    runs = [store.children(each.parent) for each in (uninterrupted, context)]
    assert metrics_by_trial(runs[0]) == metrics_by_trial(runs[1])
    assert Tags.CHECKPOINT_NOT_COPIED not in runs[1][0].data.tags
    # The model is among the run's artifacts, and the checkpoint has been removed.
    if bucket is not None:
        keys = [entry["Key"] for entry in bucket.list_objects_v2(Bucket="motion")["Contents"]]
        assert [key for key in keys if "epoch" in key] == []
    else:
        assert checkpoint_names(tmp_path / "remote") == []
    storage.remove(location)
    if bucket is not None:
        keys = [entry["Key"] for entry in bucket.list_objects_v2(Bucket="motion").get("Contents", [])]
        assert keys in ([], ["sweeps/"])  # pyarrow may leave the empty object that represents the parent folder
    else:
        assert not (tmp_path / "remote").exists()


def test_copies_take_five_percent_of_the_time(dataset: ArrowDataset, remote: Path) -> None:
    now, steps = [0.0], [1.0]

    def clock() -> float:  # a copy takes a second
        now[0] += steps[0]
        return now[0]

    trial_storage = TrialStorage(remote.as_uri(), "a", clock=clock)
    newest = []
    for epoch in range(1, 31):
        train(dataset, trial_storage, epoch)
        steps[0] = 0.5
        trial_storage.keep()
        newest.append(checkpoint_names(remote)[0])
        now[0] += 1.0
    copies = len(set(newest))
    assert 30 * 1.5 / 20 / 2 < copies < 30 * 1.5 / 20 * 3
    trial_storage.keep(at_once=True)
    assert checkpoint_names(remote) == ["epoch-00030", "epoch-00030.json"]
    trial_storage.keep(at_once=True)  # it has been copied already


def test_damaged_copies_are_not_used(
    dataset: ArrowDataset,
    remote: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trial_storage = TrialStorage(remote.as_uri(), "a")
    train(dataset, trial_storage, 1)
    assert trial_storage.keep() == ""
    restarted = TrialStorage(remote.as_uri(), "a")  # it does not remove the copies of a killed process
    train(dataset, restarted, 2)
    assert restarted.keep(at_once=True) == ""
    assert checkpoint_names(remote) == ["epoch-00001", "epoch-00001.json", "epoch-00002", "epoch-00002.json"]
    weights = remote / "a" / "epoch-00002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    second_node = on_node(trial_storage, monkeypatch, tmp_path / "second")
    assert train(dataset, second_node, 3) == [1, 2, 3]
    assert "is damaged" in capsys.readouterr().err
    manifest = remote / "a" / "epoch-00001.json"
    manifest.write_text('{"../../escape": "00"}')
    third_node = on_node(trial_storage, monkeypatch, tmp_path / "third")
    assert train(dataset, third_node, 1) == [1]
    assert sorted(path.name for path in third_node.folder.iterdir()) == ["epoch-00001"]
    assert third_node.keep(at_once=True) == ""  # no copy was accepted, so this checkpoint is copied
    assert "model.safetensors" in json.loads(manifest.read_text())


@pytest.mark.parametrize("copied", [1, 2])
def test_damaged_local_checkpoint_is_replaced_by_a_copy(
    dataset: ArrowDataset, remote: Path, copied: int, capsys: pytest.CaptureFixture[str]
) -> None:
    trial_storage = TrialStorage(remote.as_uri(), "a")
    train(dataset, trial_storage, copied)
    assert trial_storage.keep(at_once=True) == ""
    train(dataset, trial_storage, 2)
    weights = trial_storage.folder / "epoch-00002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    restarted = TrialStorage(trial_storage.location, trial_storage.trial_id)
    assert train(dataset, restarted, 3) == list(range(copied, 4))
    assert "epoch-00002 is damaged; looking for a copy" in capsys.readouterr().err


def test_copy_of_a_damaged_checkpoint_is_not_used(
    dataset: ArrowDataset, remote: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trial_storage = TrialStorage(remote.as_uri(), "a")
    train(dataset, trial_storage, 1)
    weights = trial_storage.folder / "epoch-00001" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert trial_storage.keep() == ""
    other_node = on_node(trial_storage, monkeypatch, tmp_path / "other")
    other_node.fetch()
    assert list(other_node.folder.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_interrupted_removal_is_completed_by_the_next_copy(
    kind: str, dataset: ArrowDataset, remote: Path, request: pytest.FixtureRequest
) -> None:
    location = remote.as_uri()
    if kind == "s3":
        request.getfixturevalue("bucket")
        location = "s3://motion/sweeps"
    trial_storage = TrialStorage(location, "a")
    train(dataset, trial_storage, 1)
    assert trial_storage.keep() == ""
    store, base = fs.FileSystem.from_uri(f"{location}/a")
    store.delete_file(f"{base}/epoch-00001.json")
    for epoch in (2, 3):
        train(dataset, trial_storage, epoch)
        assert trial_storage.keep(at_once=True) == ""
    names = [info.base_name for info in store.get_file_info(fs.FileSelector(base))]
    assert [name for name in names if name.endswith(".json")] == ["epoch-00003.json"]


def test_copy_without_a_manifest_is_ignored(
    dataset: ArrowDataset, remote: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trial_storage = TrialStorage(remote.as_uri(), "a")
    train(dataset, trial_storage, 2)
    assert trial_storage.keep() == ""
    (remote / "a" / "epoch-00002.json").unlink()
    other_node = on_node(trial_storage, monkeypatch, tmp_path / "other")
    other_node.fetch()
    assert not other_node.folder.exists()


def test_newer_local_checkpoint_is_used(dataset: ArrowDataset, remote: Path) -> None:
    trial_storage = TrialStorage(remote.as_uri(), "a")
    train(dataset, trial_storage, 1)
    trial_storage.keep()
    train(dataset, trial_storage, 2)
    restarted = TrialStorage(trial_storage.location, trial_storage.trial_id)
    assert train(dataset, restarted, 3) == [2, 3]


def test_failed_copy_does_not_interrupt_the_training(dataset: ArrowDataset, bucket: Any, tmp_path: Path) -> None:
    trial_storage = TrialStorage("s3://nowhere/sweeps", "a")
    train(dataset, trial_storage, 1)
    assert trial_storage.keep() != ""
    assert [path.name for path in trial_storage.folder.iterdir()] == ["epoch-00001"]


@pytest.mark.parametrize("location", ["s3://user:secret@bucket/x", "nonsense://x", "s3://no-such-bucket/x"])
def test_unwritable_storage_is_rejected(location: str, bucket: Any) -> None:
    with pytest.raises(InputError) as error:
        storage.prepare(storage.resolve(location))
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_trial_fails_if_its_node_does_not_see_the_shared_folder(
    dataset: ArrowDataset, tmp_path: Path, tracking_uri: str
) -> None:
    context = make_context(tracking_uri, str(tmp_path / "shared"))
    other_context = dataclasses.replace(context, storage=str(tmp_path / "on another machine"))
    assert run_trial(make_trial(dataset), other_context) == "failed"
    (run,) = TrackingStore(tracking_uri).children(context.parent)
    assert "does not exist on node" in run.data.tags["fgst.reason"]
