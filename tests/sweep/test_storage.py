"""Checkpoints that outlive their node: in a shared folder, or in an object store and on whichever node goes on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

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
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An object store, as far as pyarrow can tell, and the folder behind it."""
    monkeypatch.setenv("FGST_CACHE", str(tmp_path / "node"))
    return tmp_path / "far"


def make_trial(dataset: ArrowDataset, **values: object) -> Trial:
    return build_spec(FOCAL_K, small.small_config(dataset, **values), dataset, values=[2]).trials[0]


def context_of(uri: str, location: str) -> TrialContext:
    store = TrackingStore(uri)
    experiment = store.experiment("small x-sub")
    parent = store.start(experiment, location, "a sweep", {"fgst.kind": "sweep"})
    storage.prepare(location)
    return TrialContext(store.uri, experiment, parent.run_id, location, 1)


def trained(dataset: ArrowDataset, keeper: TrialStorage, epochs: int) -> list[int]:
    """Epochs that a training told which goes on from what the storage has."""
    keeper.fetch()
    config = small.small_config(dataset, train__epochs=100)
    told = []
    for result in fit(config, dataset=dataset, device="cpu", checkpoints=keeper.folder):
        told.append(result.epoch)
        if result.epoch >= epochs:
            break
    return told


def far_names(far: Path) -> list[str]:
    return sorted(path.name for path in far.rglob("epoch-*"))


def of_node(keeper: TrialStorage, monkeypatch: pytest.MonkeyPatch, node: Path) -> TrialStorage:
    """The same trial on another node."""
    monkeypatch.setenv("FGST_CACHE", str(node))
    return TrialStorage(keeper.location, keeper.trial_id)


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_a_trial_goes_on_where_another_node_left_it(
    kind: str,
    dataset: ArrowDataset,
    tmp_path: Path,
    tracking_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    trial = make_trial(dataset)
    alone = context_of(tracking_uri, str(tmp_path / "shared"))
    assert run_trial(trial, alone) == "finished"
    bucket: Any = request.getfixturevalue("bucket") if kind == "s3" else None
    location = "s3://motion/sweeps/one" if kind == "s3" else (tmp_path / "far").as_uri()
    context = context_of(tracking_uri, location)
    told: list[float] = []

    def stop(metrics: dict[str, float]) -> None:
        told.append(metrics["epoch"])
        if metrics["epoch"] == 2:
            raise StopTrial(TrialStatus.INTERRUPTED)

    monkeypatch.setattr(storage, "COPY_TIME_SHARE", 1.0)  # a copy after each epoch
    monkeypatch.setenv("FGST_CACHE", str(tmp_path / "node 1"))
    assert run_trial(trial, context, stop) == "interrupted"
    monkeypatch.setenv("FGST_CACHE", str(tmp_path / "node 2"))
    assert run_trial(trial, context, lambda metrics: told.append(metrics["epoch"])) == "finished"
    assert told == [1, 2, 2, 3, 4]  # the checkpoint's epoch is told again
    store = TrackingStore(tracking_uri)
    runs = [store.children(each.parent) for each in (alone, context)]
    assert metrics_by_trial(runs[0]) == metrics_by_trial(runs[1])
    assert Tags.CHECKPOINT_NOT_COPIED not in runs[1][0].data.tags
    # Its model is among the run's artifacts; nothing is left behind but what says that the place is a sweep's.
    if bucket is not None:
        left = [entry["Key"] for entry in bucket.list_objects_v2(Bucket="motion")["Contents"]]
        assert [name for name in left if "epoch" in name] == []
    else:
        assert far_names(tmp_path / "far") == []
    storage.remove(location)
    if bucket is not None:
        left = [entry["Key"] for entry in bucket.list_objects_v2(Bucket="motion").get("Contents", [])]
        assert left in ([], ["sweeps/"])  # what stands for the folder above may stay
    else:
        assert not (tmp_path / "far").exists()


def test_copies_take_a_twentieth_of_the_time(dataset: ArrowDataset, far: Path) -> None:
    now, steps = [0.0], [1.0]

    def clock() -> float:  # a copy takes a second
        now[0] += steps[0]
        return now[0]

    keeper = TrialStorage(far.as_uri(), "a", clock=clock)
    kept = []
    for epoch in range(1, 61):
        trained(dataset, keeper, epoch)
        steps[0] = 0.5
        keeper.keep()
        kept.append(far_names(far)[0])
        now[0] += 1.0
    copies = len(set(kept))
    assert 60 * 1.5 / 20 / 2 < copies < 60 * 1.5 / 20 * 3
    keeper.keep(at_once=True)  # the newest, whatever the time
    assert far_names(far) == ["epoch-00060", "epoch-00060.json"]
    keeper.keep(at_once=True)  # it is there already


def test_a_copy_that_is_not_whole_is_not_taken(
    dataset: ArrowDataset, far: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    keeper = TrialStorage(far.as_uri(), "a")
    trained(dataset, keeper, 1)
    assert keeper.keep() == ""
    keeper._previous = []  # killed before it could remove the older one
    trained(dataset, keeper, 2)
    assert keeper.keep(at_once=True) == ""
    assert far_names(far) == ["epoch-00001", "epoch-00001.json", "epoch-00002", "epoch-00002.json"]
    weights = far / "a" / "epoch-00002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    other = of_node(keeper, monkeypatch, tmp_path / "other")
    assert trained(dataset, other, 3) == [1, 2, 3]
    assert "is damaged" in capsys.readouterr().err
    (far / "a" / "epoch-00001.json").write_text('{"../../escape": "00"}')
    third = of_node(keeper, monkeypatch, tmp_path / "third")
    assert trained(dataset, third, 1) == [1]
    assert not third._sent > (-1, 0)
    assert sorted(path.name for path in third.folder.iterdir()) == ["epoch-00001"]


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_a_removal_that_was_cut_off_is_finished_by_the_next(
    kind: str, dataset: ArrowDataset, far: Path, request: pytest.FixtureRequest
) -> None:
    location = far.as_uri()
    if kind == "s3":
        request.getfixturevalue("bucket")
        location = "s3://motion/sweeps"
    keeper = TrialStorage(location, "a")
    trained(dataset, keeper, 1)
    assert keeper.keep() == ""
    store, base = storage._open(f"{location}/a")
    store.delete_file(f"{base}/epoch-00001.json")
    for epoch in (2, 3):
        trained(dataset, keeper, epoch)
        assert keeper.keep(at_once=True) == ""
    assert keeper._copies(store, base) == ["epoch-00003"]


def test_a_half_copy_has_no_list_and_does_not_count(
    dataset: ArrowDataset, far: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keeper = TrialStorage(far.as_uri(), "a")
    trained(dataset, keeper, 2)
    assert keeper.keep() == ""
    (far / "a" / "epoch-00002.json").unlink()
    other = of_node(keeper, monkeypatch, tmp_path / "other")
    other.fetch()
    assert not other.folder.exists()


def test_what_is_newer_here_stays(dataset: ArrowDataset, far: Path) -> None:
    keeper = TrialStorage(far.as_uri(), "a")
    trained(dataset, keeper, 1)
    keeper.keep()
    trained(dataset, keeper, 2)
    again = dataclasses.replace(keeper)
    assert trained(dataset, again, 3) == [2, 3]


def test_a_store_that_takes_nothing_costs_no_training(dataset: ArrowDataset, bucket: Any, tmp_path: Path) -> None:
    keeper = TrialStorage("s3://nowhere/sweeps", "a")
    trained(dataset, keeper, 1)
    assert keeper.keep() != ""
    assert [path.name for path in keeper.folder.iterdir()] == ["epoch-00001"]


@pytest.mark.parametrize("location", ["s3://user:secret@bucket/x", "nonsense://x", "s3://no-such-bucket/x"])
def test_a_place_where_nothing_can_be_kept_is_refused(location: str, bucket: Any) -> None:
    with pytest.raises(InputError) as error:
        storage.prepare(storage.resolve(location))
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_a_folder_that_this_node_does_not_see_is_refused(
    dataset: ArrowDataset, tmp_path: Path, tracking_uri: str
) -> None:
    context = context_of(tracking_uri, str(tmp_path / "shared"))
    elsewhere = dataclasses.replace(context, storage=str(tmp_path / "on another machine"))
    assert run_trial(make_trial(dataset), elsewhere) == "failed"
    (run,) = TrackingStore(tracking_uri).children(context.parent)
    assert "does not exist on node" in run.data.tags["fgst.reason"]
