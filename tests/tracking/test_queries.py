"""Lists, rankings and comparisons of runs."""

from __future__ import annotations

from typing import Any

from fgst.tracking.queries import best_runs, compare_runs, list_runs, list_trials
from tests.tracking.sample_runs import SampleRuns


def test_list_runs_counts_the_trials_of_sweeps(runs: SampleRuns) -> None:
    sweep, trials = runs.add_sweep(40.0, 60.0, 50.0)
    single = runs.add_trial(70.0, test=71.0)
    rows = {row["run_id"]: row for row in list_runs(runs.store, None, 20)["runs"]}
    assert set(rows) == {sweep, single}
    assert rows[sweep]["trials"] == {"finished": 3}
    assert rows[sweep]["val_top1"] == 60
    assert rows[single] | {"val_top1": 70, "test_top1": 71, "minutes": 1.5, "ending": "finished"} == rows[single]
    rows_of_sweep = list_trials(runs.store, sweep)["runs"]
    assert [row["run_id"] for row in rows_of_sweep] == trials
    assert [row["best"] for row in rows_of_sweep] == [False, True, False]


def test_running_sweep_shows_its_best_trial_so_far(runs: SampleRuns) -> None:
    sweep, trials = runs.add_sweep(30.0, 65.0, status="RUNNING")
    runs.store.client.delete_tag(sweep, "fgst.best_run")
    runs.store.client.set_tag(trials[1], "fgst.ending", "pruned")  # stopped early, so not comparable
    runs.store.open_run(sweep).log_metrics({"val/top1": float("nan")}, 1)
    [row] = list_runs(runs.store, None, 9)["runs"]
    assert (row["ending"], row["val_top1"], row["trials"]) == ("running", 30, {"finished": 1, "pruned": 1})


def test_limit_reports_the_number_of_older_runs(runs: SampleRuns) -> None:
    for _ in range(3):
        runs.add_trial(1.0)
    report = list_runs(runs.store, "small x-sub", 2)
    assert (len(report["runs"]), report["more"]) == (2, 1)


def test_best_runs_are_ranked_by_validation_not_by_test(runs: SampleRuns) -> None:
    first = runs.add_trial(60.0, test=1.0, K=3, lr=0.1)
    second = runs.add_trial(50.0, test=99.0, K=9, lr=0.1)
    runs.add_trial(None, test=100.0)
    pruned = runs.add_trial(99.0)
    runs.store.client.set_tag(pruned, "fgst.ending", "pruned")
    [group] = best_runs(runs.store, None, 5)["groups"]
    assert [row["run_id"] for row in group["runs"]] == [first, second]
    assert [row["settings"] for row in group["runs"]] == [{"K": "3"}, {"K": "9"}]


def test_runs_with_different_validation_clips_are_ranked_separately(runs: SampleRuns) -> None:
    runs.add_trial(60.0)
    other = runs.add_trial(90.0)
    runs.store.client.set_tag(other, "fgst.dataset_digest", "b" * 64)
    assert [len(group["runs"]) for group in best_runs(runs.store, None, 5)["groups"]] == [1, 1]


def test_validation_clips_are_named_by_what_is_held_out(runs: SampleRuns) -> None:
    """Runs of versions without the setting hold out subjects."""
    settings: list[dict[str, Any]] = [
        {},
        {"data.validation_by": "subject"},
        {"data.validation_by": "clip"},
        {"data.validation_by": "clip", "data.folds": 5, "data.fold": 2},
    ]
    for params in settings:
        runs.add_trial(60.0, **params)
    groups = best_runs(runs.store, None, 5)["groups"]
    counts = {group["validation"].rpartition(",")[0]: len(group["runs"]) for group in groups}
    assert counts == {"0.2 by subject, seed 0": 2, "0.2 by clip, seed 0": 1, "fold 2 of 5 by clip, seed 0": 1}


def test_ensemble_is_ranked_with_its_members(runs: SampleRuns) -> None:
    sweep, trials = runs.add_sweep(60.0, 50.0)
    ensemble = runs.add_ensemble(sweep, trials)
    [group] = best_runs(runs.store, None, 5)["groups"]
    assert [row["run_id"] for row in group["runs"]] == [ensemble, *trials]


def test_comparison_lists_differing_parameters_and_finite_metrics(runs: SampleRuns) -> None:
    run_ids = [runs.add_trial(60.0, K=3, lr=0.1), runs.add_trial(50.0, K=9, lr=0.1, extra="x")]
    runs.store.open_run(run_ids[0]).log_metrics({"system/cpu": 3.0, "loss": float("inf")}, 1)
    report = compare_runs(runs.store, run_ids)
    assert report["parameters"] == {"K": ["3", "9"], "extra": [None, "x"]}
    assert report["metrics"]["val/top1"] == [60, 50]
    assert report["metrics"]["loss"][1] is None
    assert "system/cpu" not in report["metrics"]
