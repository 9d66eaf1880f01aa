"""The runs of a store as lists, rankings and comparisons; and that only what nobody needs is ever removed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fgst.cli.runs import best_runs, compare_runs, list_runs, main
from fgst.cli.runs_tables import size
from fgst.errors import InputError
from fgst.tracking import gc
from fgst.tracking.store import TrackedRun, TrackingStore
from fgst.tracking.tags import Tags

WEIGHTS = 1000  # bytes of a trial's weights


class Lab:
    """A store with runs as sweeps and trainings leave them."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri, self.folder, self.store = uri, folder, TrackingStore(uri)
        self.id = self.store.experiment("small x-sub")
        self.count = 0

    def sweep(
        self,
        *val: float | None,
        status: str = "FINISHED",
        objectives: tuple[str, ...] = ("val_top1",),
        tags: dict[str, str] | None = None,
    ) -> tuple[str, list[str]]:
        self.count += 1
        run = self.store.start(self.id, f"sweep-{self.count}", f"focal_k {self.count}", {"fgst.kind": "sweep"})
        storage = self.folder / "ray_results" / run.run_id
        (storage / "key").mkdir(parents=True)
        (storage / "key" / "state.pt").write_bytes(b"s" * 500)
        self._artifact(run, "sweep.json", json.dumps({"objectives": list(objectives)}).encode())
        trials = [self.trial(value, run.run_id, K=number) for number, value in enumerate(val)]
        known = [(value, trial) for value, trial in zip(val, trials, strict=True) if value is not None]
        named = {"fgst.storage": str(storage)}
        if trials:
            named["fgst.best_run"] = max(known)[1] if known else trials[0]
        if known:
            run.log_metrics({"val/top1": max(known)[0]}, 0)
        run.set_tags(named | (tags or {}))
        if status != "RUNNING":
            run.finish(status)
        return run.run_id, trials

    def trial(self, val: float | None, parent: str | None = None, *, test: float = 50.0, **params: Any) -> str:
        self.count += 1
        run = self.store.start(self.id, f"key-{self.count}", f"trial {self.count}", {"fgst.kind": "trial"}, parent)
        run.log_params({"data.validation": 0.2, "data.validation_seed": 0} | params)
        run.log_metrics(({"val/top1": val} if val is not None else {}) | {"test/top1": test, "minutes": 1.5}, 1)
        self._artifact(run, "checkpoint/model.safetensors", b"w" * WEIGHTS)
        self._artifact(run, "checkpoint/config.json", b"{}")
        self._artifact(run, "scores/test.arrow", b"scores")
        run.finish()
        return run.run_id

    def ensemble(self, parent: str, members: list[str]) -> str:
        names = dict(zip(("joint", "bone", "joint_motion", "bone_motion"), members, strict=False))
        tags = {"fgst.kind": "ensemble"} | {f"fgst.member.{name}": run_id for name, run_id in names.items()}
        run = self.store.start(self.id, f"ensemble-{parent}", "joint + bone", tags, parent)
        run.log_metrics({"val/top1": 90.0}, 0)
        run.finish()
        return run.run_id

    def _artifact(self, run: TrackedRun, path: str, content: bytes) -> None:
        folder = self.folder / "upload"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
        run.log_artifacts(folder)
        (folder / path).unlink()

    def files(self, run_id: str) -> list[str]:
        folder = self.store.local_artifacts(self.store.run(run_id))
        assert folder is not None
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def gone(self) -> set[str]:
        """What would be removed."""
        return {leftover.run_id for leftover in gc.find(self.store).leftovers}


@pytest.fixture
def lab(tracking_uri: str, tmp_path: Path) -> Lab:
    return Lab(tracking_uri, tmp_path)


def command(lab: Lab, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    main([*arguments, "--tracking-uri", lab.uri, "--json"])
    return json.loads(capsys.readouterr().out)


# What there is


def test_sweeps_are_listed_with_their_trials_folded(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    sweep, trials = lab.sweep(40.0, 60.0, 50.0)
    own = lab.trial(70.0, test=71.0)
    rows = {row["run_id"]: row for row in command(lab, capsys, "list")["runs"]}
    assert set(rows) == {sweep, own}
    assert rows[sweep]["trials"] == {"finished": 3}
    assert rows[sweep]["val_top1"] == 60
    assert rows[own] | {"val_top1": 70, "test_top1": 71, "minutes": 1.5, "ending": "finished"} == rows[own]
    inside = command(lab, capsys, "list", "--sweep", sweep)["runs"]
    assert [row["run_id"] for row in inside] == trials
    assert [row["best"] for row in inside] == [False, True, False]


def test_a_running_sweep_shows_its_best_so_far(lab: Lab) -> None:
    sweep, trials = lab.sweep(30.0, 65.0, status="RUNNING")
    lab.store.client.delete_tag(sweep, "fgst.best_run")
    lab.store.client.set_tag(trials[1], "fgst.ending", "pruned")  # not comparable: it stopped early
    lab.store.open_run(sweep).log_metrics({"val/top1": float("nan")}, 1)
    [row] = list_runs(lab.store, None, 9)["runs"]
    assert (row["ending"], row["val_top1"], row["trials"]) == ("running", 30, {"finished": 1, "pruned": 1})


def test_the_limit_says_how_many_are_left_out(lab: Lab) -> None:
    for _ in range(3):
        lab.trial(1.0)
    assert (len(list_runs(lab.store, "small x-sub", 2)["runs"]), list_runs(lab.store, None, 2)["more"]) == (2, 1)


def test_the_best_is_by_validation_and_never_by_test(lab: Lab) -> None:
    modest, lucky = lab.trial(60.0, test=1.0, K=3, lr=0.1), lab.trial(50.0, test=99.0, K=9, lr=0.1)
    lab.trial(None, test=100.0)
    stopped = lab.trial(99.0)
    lab.store.client.set_tag(stopped, "fgst.ending", "pruned")
    [group] = best_runs(lab.store, None, 5)["groups"]
    assert [row["run_id"] for row in group["runs"]] == [modest, lucky]
    assert [row["settings"] for row in group["runs"]] == [{"K": "3"}, {"K": "9"}]


def test_figures_of_different_validation_clips_are_not_ranked_together(lab: Lab) -> None:
    lab.trial(60.0)
    other = lab.trial(90.0)
    lab.store.client.set_tag(other, "fgst.dataset_digest", "b" * 64)
    assert [len(group["runs"]) for group in best_runs(lab.store, None, 5)["groups"]] == [1, 1]


def test_a_comparison_shows_what_differs(lab: Lab) -> None:
    runs = [lab.trial(60.0, K=3, lr=0.1), lab.trial(50.0, K=9, lr=0.1, extra="x")]
    lab.store.open_run(runs[0]).log_metrics({"system/cpu": 3.0, "loss": float("inf")}, 1)
    report = compare_runs(lab.store, runs)
    assert report["parameters"] == {"K": ["3", "9"], "extra": [None, "x"]}
    assert report["metrics"]["val/top1"] == [60, 50]
    assert report["metrics"]["loss"][1] is None
    assert "system/cpu" not in report["metrics"]


@pytest.mark.parametrize("arguments", [["list"], ["list", "--sweep"], ["best"], ["compare"], ["gc"]])
def test_tables_fit_80_columns_and_show_whole_ids(
    lab: Lab, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    sweep, trials = lab.sweep(40.0, 60.0)
    lab.store.client.set_tag(trials[0], "mlflow.runName", "[red]a name[/red] \x1b[31m of " + "great length " * 9)
    more = [sweep] if "--sweep" in arguments else trials if "compare" in arguments else []
    main([*arguments, *more, "--tracking-uri", lab.uri])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    if arguments[0] != "compare":
        assert (sweep if arguments == ["list"] else trials[0]) in out
    if arguments != ["list"]:
        assert "[red]a name" in out


# What may go


def test_only_beaten_weights_and_left_folders_go(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    sweep, (first, best, third) = lab.sweep(40.0, 60.0, 50.0)
    own = lab.trial(1.0)
    storage = lab.folder / "ray_results" / sweep
    dry = command(lab, capsys, "gc")
    assert {(row["what"], row["run_id"]) for row in dry["found"]} == {
        ("folder", sweep), ("weights", first), ("weights", third)
    }  # fmt: skip
    assert (dry["bytes"], dry["removed_bytes"], dry["kept"]) == (2 * WEIGHTS + 500, 0, {"best of its sweep": 1})
    assert storage.exists()
    whole = ["checkpoint/config.json", "checkpoint/model.safetensors", "scores/test.arrow"]
    assert lab.files(first) == whole
    done = command(lab, capsys, "gc", "--delete")
    assert done["removed_bytes"] == dry["bytes"]
    assert not storage.exists()
    assert storage.parent.exists()
    for beaten in (first, third):
        assert lab.files(beaten) == ["checkpoint/config.json", "scores/test.arrow"]
        assert Tags.WEIGHTS_REMOVED in lab.store.run(beaten).data.tags
    assert lab.files(best) == lab.files(own) == whole
    assert command(lab, capsys, "gc", "--delete")["found"] == []
    with pytest.raises(InputError, match="gc has removed its weights"), lab.store.artifacts(first, "checkpoint"):
        pass
    with lab.store.artifacts(first, "checkpoint/config.json") as file:  # what --from-run goes by
        assert file.read_text() == "{}"


def test_members_of_an_ensemble_stay(lab: Lab) -> None:
    sweep, trials = lab.sweep(40.0, 60.0, 50.0)
    lab.ensemble(sweep, trials[:2])
    assert lab.gone() == {sweep, trials[2]}


def test_what_a_registered_model_needs_stays(lab: Lab) -> None:
    sweep, trials = lab.sweep(40.0, 60.0, 50.0, 45.0)
    lab.store.register("fgst-small", trials[0], "checkpoint", {})
    ensemble = lab.ensemble(sweep, [trials[1], trials[2]])
    lab.store.register("fgst-small", ensemble, "model", {})
    lab.store.client.delete_run(ensemble)  # its model is still registered
    assert lab.gone() == {sweep, trials[3]}


def test_what_another_sweep_took_over_stays(lab: Lab) -> None:
    first, trials = lab.sweep(40.0, 60.0, 50.0)
    second, _ = lab.sweep(status="RUNNING", tags={"fgst.trained_before.key-1": trials[0]})
    assert lab.gone() == {first, trials[2]}
    assert second not in lab.gone()


@pytest.mark.parametrize("status", ["RUNNING", "KILLED", "FAILED"])
def test_a_sweep_that_may_go_on_keeps_everything(lab: Lab, status: str) -> None:
    lab.sweep(40.0, 60.0, status=status)
    assert lab.gone() == set()


def test_a_sweep_that_a_budget_stopped_keeps_everything(lab: Lab) -> None:
    lab.sweep(40.0, 60.0, tags={"fgst.stopped": "--max-hours"})
    _, trials = lab.sweep(40.0, 60.0)
    lab.store.client.update_run(trials[0], status="RUNNING")
    assert lab.gone() == set()


def test_where_nothing_was_chosen_nothing_is_beaten(lab: Lab) -> None:
    without, _ = lab.sweep(None, None)
    two, _ = lab.sweep(40.0, 60.0, objectives=("val_top1", "latency"))
    unknown, _ = lab.sweep(40.0, 60.0, objectives=())
    assert lab.gone() == {without, two, unknown}  # their folders


def test_the_best_single_trial_stays_beside_the_best_on_average(lab: Lab) -> None:
    sweep, trials = lab.sweep(40.0, 60.0, 50.0)
    lab.store.client.set_tag(sweep, "fgst.best_run", trials[2])
    assert lab.gone() == {sweep, trials[0]}


def test_references_count_from_every_experiment(lab: Lab) -> None:
    sweep, trials = lab.sweep(40.0, 60.0)
    mine, lab.id = lab.id, lab.store.experiment("another")
    other, _ = lab.sweep(tags={"fgst.trained_before.key-1": trials[0]})
    found = gc.find(lab.store, [mine]).leftovers
    assert {leftover.run_id for leftover in found} == {sweep}
    assert other not in {leftover.run_id for leftover in found}


@pytest.mark.parametrize("place", ["/", "", ".", "relative", "{outside}", "{outside}/../{id}", "\x00/{id}", "{link}"])
def test_a_storage_that_is_not_the_sweeps_own_is_left_alone(lab: Lab, place: str) -> None:
    sweep, _ = lab.sweep()
    outside = lab.folder / "precious"
    outside.mkdir()
    (outside / "thesis.tex").write_text("…")
    (lab.folder / "links").mkdir()
    (lab.folder / "links" / sweep).symlink_to(outside)
    text = place.format(outside=outside, id=sweep, link=lab.folder / "links" / sweep)
    lab.store.client.set_tag(sweep, "fgst.storage", text)
    assert gc.find(lab.store).leftovers == []


def test_weights_behind_a_link_are_left_alone(lab: Lab) -> None:
    _, trials = lab.sweep(40.0, 60.0)
    folder = lab.store.local_artifacts(lab.store.run(trials[0]))
    assert folder is not None
    (folder / "checkpoint").rename(lab.folder / "elsewhere")
    (folder / "checkpoint").symlink_to(lab.folder / "elsewhere")
    assert trials[0] not in lab.gone()


def test_what_changed_since_it_was_found_stays(lab: Lab) -> None:
    sweep, trials = lab.sweep(40.0, 60.0)
    found = {leftover.what: leftover for leftover in gc.find(lab.store).leftovers}
    lab.store.register("fgst-small", trials[0], "checkpoint", {})
    with pytest.raises(InputError, match="registered since"):
        gc.remove(lab.store, found["weights"])
    lab.store.client.update_run(sweep, status="RUNNING")
    with pytest.raises(InputError, match="gone on since"):
        gc.remove(lab.store, found["folder"])
    assert "checkpoint/model.safetensors" in lab.files(trials[0])


def test_a_store_that_cannot_be_deleted_from_is_said_so(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, trials = lab.sweep(40.0, 60.0)
    monkeypatch.setattr(TrackingStore, "local_artifacts", lambda self, run: None)
    report = command(lab, capsys, "gc", "--delete")
    [row] = [row for row in report["found"] if row["what"] == "weights"]
    assert (row["run_id"], row["bytes"], row["place"], row["removed"]) == (trials[0], WEIGHTS, None, False)
    assert report["elsewhere_bytes"] == WEIGHTS
    main(["gc", "--tracking-uri", lab.uri])
    assert "cannot delete from" in " ".join(capsys.readouterr().out.split())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_what_cannot_be_removed_is_named(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    sweep, _ = lab.sweep()
    storage = lab.folder / "ray_results" / sweep / "key"
    storage.chmod(0o500)
    with pytest.raises(SystemExit) as exit_:
        main(["gc", "--delete", "--tracking-uri", lab.uri, "--json"])
    storage.chmod(0o700)
    assert exit_.value.code == 1
    assert "cannot be deleted" in json.loads(capsys.readouterr().out)["found"][0]["fault"]


def test_a_failure_to_remove_ends_with_1(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.sweep()

    def refuse(place: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(SystemExit) as exit_:
        main(["gc", "--delete", "--tracking-uri", lab.uri, "--json"])
    assert exit_.value.code == 1
    report = json.loads(capsys.readouterr().out)
    assert report["found"][0]["fault"] == "cannot be deleted (Permission denied)"
    assert report["removed_bytes"] == 0


def test_a_trial_without_weights_is_not_taken_over_by_another_sweep(lab: Lab) -> None:
    run_id = lab.trial(60.0)
    key = lab.store.run(run_id).data.tags["fgst.key"]
    lab._artifact(lab.store.open_run(run_id), "scores/val.arrow", b"scores")
    found = lab.store.finished(lab.id, key)
    assert found is not None
    lab.store.open_run(run_id).set_tags({Tags.WEIGHTS_REMOVED: "true"})
    assert lab.store.finished(lab.id, key) is None


# Bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["list", "--experiment", "none"], "there is none; there are"),
        (["best", "--experiment", ""], "there is none"),
        (["list", "--sweep", "x"], "not 32 hexadecimal digits"),
        (["list", "--sweep", "0" * 32], "there is no run"),
        (["compare", "0" * 32], "two runs or more"),
        (["compare", "0" * 32, "0" * 32], "twice"),
        (["compare", "../../etc/passwd", "\x00"], "not 32 hexadecimal digits"),
        (["list", "--limit", "0"], "not above 0"),
        (["remove"], "invalid choice"),
        ([], "required"),
    ],
)
def test_bad_input_is_one_line(lab: Lab, arguments: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        main([*arguments, *(["--tracking-uri", lab.uri] if arguments and arguments != ["remove"] else [])])


def test_a_trial_is_no_sweep(lab: Lab) -> None:
    with pytest.raises(InputError, match="is no sweep"):
        main(["list", "--sweep", lab.trial(1.0), "--tracking-uri", lab.uri])


def test_looking_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no tracking store"):
        main(["list", "--tracking-uri", f"sqlite:///{tmp_path}/none.db"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2 * 10**12, "2.0 TB")])
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize("uri", ["mlflow-artifacts:/1/x", "s3://bucket/x", "https://host/x", "file://other-host/x"])
def test_places_that_are_not_on_this_machine_are_told_from_folders(lab: Lab, uri: str) -> None:
    run = SimpleNamespace(info=SimpleNamespace(artifact_uri=uri))
    assert lab.store.local_artifacts(run) is None
    run.info.artifact_uri = "file:///a%20b/c"
    assert lab.store.local_artifacts(run) == Path("/a b/c")
