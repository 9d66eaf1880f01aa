"""Garbage collection finds and deletes only data without references that no sweep needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fgst.errors import InputError
from fgst.tracking.gc import delete_garbage, find_garbage
from fgst.tracking.queries import collect_garbage
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags
from tests.tracking.sample_runs import WEIGHTS_SIZE, SampleRuns

ALL_FILES = ["checkpoint/config.json", "checkpoint/model.safetensors", "scores/test.arrow"]


def test_only_inferior_weights_and_finished_sweeps_folders_are_deleted(runs: SampleRuns) -> None:
    sweep, (first, best, third) = runs.add_sweep(40.0, 60.0, 50.0)
    single = runs.add_trial(1.0)
    storage = runs.folder / "ray_results" / sweep
    listed = collect_garbage(runs.store, None, delete=False)
    assert {(row["what"], row["run_id"]) for row in listed["found"]} == {
        ("folder", sweep),
        ("weights", first),
        ("weights", third),
    }
    assert listed["bytes"] == 2 * WEIGHTS_SIZE + 500
    assert listed["removed_bytes"] == 0
    assert listed["kept"] == {"best of its sweep": 1}
    assert storage.exists()
    assert runs.artifacts(first) == ALL_FILES
    deleted = collect_garbage(runs.store, None, delete=True)
    assert deleted["removed_bytes"] == listed["bytes"]
    assert not storage.exists()
    assert storage.parent.exists()
    for inferior in (first, third):
        assert runs.artifacts(inferior) == ["checkpoint/config.json", "scores/test.arrow"]
        assert Tags.WEIGHTS_REMOVED in runs.store.run(inferior).data.tags
    assert runs.artifacts(best) == runs.artifacts(single) == ALL_FILES
    assert collect_garbage(runs.store, None, delete=True)["found"] == []
    with pytest.raises(InputError, match="gc has removed its weights"), runs.store.artifacts(first, "checkpoint"):
        pass
    with runs.store.artifacts(first, "checkpoint/config.json") as file:  # read by --from-run
        assert file.read_text() == "{}"


def test_ensemble_members_keep_their_weights(runs: SampleRuns) -> None:
    sweep, trials = runs.add_sweep(40.0, 60.0, 50.0)
    runs.add_ensemble(sweep, trials[:2])
    assert runs.garbage() == {sweep, trials[2]}


def test_networks_of_registered_models_keep_their_weights(runs: SampleRuns) -> None:
    sweep, trials = runs.add_sweep(40.0, 60.0, 50.0, 45.0)
    runs.store.register("fgst-small", trials[0], "checkpoint", {})
    ensemble = runs.add_ensemble(sweep, [trials[1], trials[2]])
    runs.store.register("fgst-small", ensemble, "model", {})
    runs.store.client.delete_run(ensemble)  # its model is still registered
    assert runs.garbage() == {sweep, trials[3]}


def test_trials_reused_by_another_sweep_keep_their_weights(runs: SampleRuns) -> None:
    first, trials = runs.add_sweep(40.0, 60.0, 50.0)
    second, _ = runs.add_sweep(status="RUNNING", tags={"fgst.trained_before.key-1": trials[0]})
    assert runs.garbage() == {first, trials[2]}
    assert second not in runs.garbage()


@pytest.mark.parametrize("status", ["RUNNING", "KILLED", "FAILED"])
def test_resumable_sweep_keeps_everything(runs: SampleRuns, status: str) -> None:
    runs.add_sweep(40.0, 60.0, status=status)
    assert runs.garbage() == set()


def test_sweep_stopped_by_a_limit_or_with_running_trials_keeps_everything(runs: SampleRuns) -> None:
    runs.add_sweep(40.0, 60.0, tags={"fgst.stopped": "--max-hours"})
    _, trials = runs.add_sweep(40.0, 60.0)
    runs.store.client.update_run(trials[0], status="RUNNING")
    assert runs.garbage() == set()


def test_sweep_without_a_single_best_trial_keeps_all_weights(runs: SampleRuns) -> None:
    without_validation, _ = runs.add_sweep(None, None)
    two_objectives, _ = runs.add_sweep(40.0, 60.0, objectives=("val_top1", "latency"))
    unknown_objectives, _ = runs.add_sweep(40.0, 60.0, objectives=())
    assert runs.garbage() == {without_validation, two_objectives, unknown_objectives}  # their folders only


def test_best_trial_keeps_its_weights_in_addition_to_the_tagged_one(runs: SampleRuns) -> None:
    sweep, trials = runs.add_sweep(40.0, 60.0, 50.0)
    runs.store.client.set_tag(sweep, "fgst.best_run", trials[2])
    assert runs.garbage() == {sweep, trials[0]}


def test_references_from_other_experiments_protect_weights(runs: SampleRuns) -> None:
    sweep, trials = runs.add_sweep(40.0, 60.0)
    experiment_id, runs.experiment_id = runs.experiment_id, runs.store.experiment("another")
    other, _ = runs.add_sweep(tags={"fgst.trained_before.key-1": trials[0]})
    garbage = find_garbage(runs.store, [experiment_id]).garbage
    assert {item.run_id for item in garbage} == {sweep}
    assert other not in {item.run_id for item in garbage}


@pytest.mark.parametrize("storage", ["/", "", ".", "relative", "{outside}", "{outside}/../{id}", "\x00/{id}", "{link}"])
def test_storage_tag_that_names_a_foreign_folder_is_ignored(runs: SampleRuns, storage: str) -> None:
    sweep, _ = runs.add_sweep()
    outside = runs.folder / "precious"
    outside.mkdir()
    (outside / "thesis.tex").write_text("…")
    (runs.folder / "links").mkdir()
    (runs.folder / "links" / sweep).symlink_to(outside)
    tag = storage.format(outside=outside, id=sweep, link=runs.folder / "links" / sweep)
    runs.store.client.set_tag(sweep, "fgst.storage", tag)
    assert find_garbage(runs.store).garbage == []


def test_linked_checkpoint_folder_is_ignored(runs: SampleRuns) -> None:
    _, trials = runs.add_sweep(40.0, 60.0)
    folder = runs.store.local_artifacts(runs.store.run(trials[0]))
    assert folder is not None
    (folder / "checkpoint").rename(runs.folder / "elsewhere")
    (folder / "checkpoint").symlink_to(runs.folder / "elsewhere")
    assert trials[0] not in runs.garbage()


def test_garbage_that_was_registered_or_resumed_since_is_not_deleted(runs: SampleRuns) -> None:
    sweep, trials = runs.add_sweep(40.0, 60.0)
    garbage = {item.kind: item for item in find_garbage(runs.store).garbage}
    runs.store.register("fgst-small", trials[0], "checkpoint", {})
    with pytest.raises(InputError, match="registered since"):
        delete_garbage(runs.store, garbage["weights"])
    runs.store.client.update_run(sweep, status="RUNNING")
    with pytest.raises(InputError, match="resumed since"):
        delete_garbage(runs.store, garbage["folder"])
    assert "checkpoint/model.safetensors" in runs.artifacts(trials[0])


def test_remote_weights_are_listed_but_not_deleted(runs: SampleRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    _, trials = runs.add_sweep(40.0, 60.0)
    monkeypatch.setattr(TrackingStore, "local_artifacts", lambda self, run: None)
    report = collect_garbage(runs.store, None, delete=True)
    [row] = [row for row in report["found"] if row["what"] == "weights"]
    assert (row["run_id"], row["bytes"], row["place"], row["removed"]) == (trials[0], WEIGHTS_SIZE, None, False)
    assert report["elsewhere_bytes"] == WEIGHTS_SIZE


def test_trial_without_weights_is_not_reused(runs: SampleRuns) -> None:
    run_id = runs.add_trial(60.0)
    trial_id = runs.store.run(run_id).data.tags[Tags.TRIAL_ID]
    runs.add_artifact(runs.store.open_run(run_id), "scores/val.arrow", b"scores")
    assert runs.store.finished(runs.experiment_id, trial_id) is not None
    runs.store.open_run(run_id).set_tags({Tags.WEIGHTS_REMOVED: "true"})
    assert runs.store.finished(runs.experiment_id, trial_id) is None


def test_garbage_folder_must_exist(runs: SampleRuns) -> None:
    sweep, _ = runs.add_sweep()
    (runs.folder / "ray_results" / sweep).rename(runs.folder / "moved")
    assert find_garbage(runs.store).garbage == []
    assert Path(runs.folder / "moved").is_dir()
