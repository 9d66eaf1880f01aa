"""The order of trials, early stopping and resumption of a search, with Optuna and made-up accuracies."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from fgst.data.dataset import ArrowDataset
from fgst.errors import InputError
from fgst.sweep.definition import Parameter, SweepDefinition, Trial
from fgst.sweep.results import TrialResult
from fgst.sweep.search import Search
from fgst.sweep.spec import EarlyStopping
from fgst.sweep.status import TrialStatus
from tests.support import small
from tests.support.definitions import FOCAL_K, JOINT, build_sweep


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


def accuracy(trial: Trial) -> float:
    """A made-up accuracy: best at K = 5, L1 = 3."""
    params = dict(trial.params)
    seed = trial.config.train.seed
    return 90.0 - 5 * abs(params.get("K", 5) - 5) - 3 * abs(params.get("L1", 3) - 3) + 0.1 * seed


def run_search(search: Search, *, stop_after: int | None = None) -> list[Trial]:
    """Simulate trials until the search has no more, or ``stop_after`` of them; return the simulated trials."""
    trials: list[Trial] = []
    while (trial := search.ask()) is not None:
        status, metrics = "finished", {"val/top1": accuracy(trial)}
        for epoch in range(1, trial.config.train.epochs + 1):
            metrics = {"val/top1": accuracy(trial) * epoch / trial.config.train.epochs}
            if search.on_result(trial.trial_id, epoch, metrics):
                status = "pruned"
                break
        search.tell(trial.trial_id, status, metrics, trial)
        trials.append(trial)
        if len(trials) == stop_after:
            break
    return trials


def is_repeat(trial: FrozenTrial) -> bool:
    """Whether an Optuna trial has the result of an earlier one, without training."""
    return "same as" in trial.user_attrs


def ended_results(search: Search) -> list[TrialResult]:
    """Results of the trials that finished or were pruned, as a resumed sweep reads them from the tracking store."""
    statuses = {TrialState.COMPLETE: TrialStatus.FINISHED, TrialState.PRUNED: TrialStatus.PRUNED}
    results = []
    for trial in search.study.trials:
        if trial.state in statuses and not is_repeat(trial):
            assert trial.value is not None
            trial_id, label, seed = (trial.user_attrs[name] for name in ("key", "label", "seed"))
            status, metrics = statuses[trial.state], {"val/top1": trial.value}
            results.append(TrialResult(trial_id, label, seed, trial.params, "", status, metrics))
    return results


def make_search(
    dataset: ArrowDataset,
    storage: str | None = None,
    previous_results: Sequence[TrialResult] = (),
    definition: SweepDefinition = JOINT,
    **changes: Any,
) -> Search:
    spec, trials = build_sweep(definition, dataset, small.small_config(dataset), **changes)
    return Search(spec, trials, storage, "study", previous_results)


def define_focal_k(parameter: Parameter, search: str) -> SweepDefinition:
    """Define a search for K."""
    return SweepDefinition("k", "K?", lambda skeleton, base: [parameter], FOCAL_K.settings, search=search)


def test_grid_is_trained_in_order(dataset: ArrowDataset) -> None:
    search = make_search(dataset, definition=FOCAL_K, values=[2, 4, 6], seeds=2)
    assert not search.exhausted
    assert [t.name for t in run_search(search)] == [f"K={k} joint s{s}" for k in (2, 4, 6) for s in (0, 1)]
    assert search.exhausted
    assert [t.state for t in search.study.trials] == [TrialState.COMPLETE] * 6
    assert [t.params["K"] for t in search.study.trials] == [2, 2, 4, 4, 6, 6]


@pytest.mark.parametrize("kind", ["optuna", "random"])
def test_search_starts_at_the_initial_point_and_trains_no_point_twice(dataset: ArrowDataset, kind: str) -> None:
    search = make_search(dataset, search=kind, limit=25)
    trials = run_search(search)
    assert trials[0].label == "K=4 L1=2 heads=2 d2=2"
    assert len(trials) == 25
    assert len({trial.trial_id for trial in trials}) == 25
    assert search.exhausted
    for trial in trials:  # d2 exists with two heads only
        assert ("d2" in dict(trial.params)) == (dict(trial.params)["heads"] == 2)


def test_tpe_suggests_better_trials_than_random_search(dataset: ArrowDataset) -> None:
    def total(kind: str, seed: int) -> float:
        spec, trials = build_sweep(
            JOINT, dataset, small.small_config(dataset, train__seed=seed), search=kind, limit=30, initial_points=[]
        )
        last_trials = run_search(Search(spec, trials, None, "s"))[-10:]
        return sum(accuracy(trial) - 0.1 * seed for trial in last_trials)

    assert sum(total("optuna", seed) for seed in range(3)) > sum(total("random", seed) for seed in range(3))


def test_repeated_points_are_recorded_without_training_until_the_space_is_exhausted(dataset: ArrowDataset) -> None:
    search = make_search(dataset, definition=define_focal_k(Parameter("K", (2, 4, 6)), "optuna"), limit=50)
    trials = run_search(search)
    assert sorted(trial.label for trial in trials) == ["K=2", "K=4", "K=6"]
    assert search.exhausted
    repeats = [t for t in search.study.trials if is_repeat(t)]
    assert len(repeats) > 10
    values = {t.params["K"]: t.value for t in search.study.trials if not is_repeat(t)}
    assert all(t.value == values[t.params["K"]] for t in repeats)


def test_point_of_a_running_trial_is_trained_with_the_next_seed(dataset: ArrowDataset) -> None:
    search = make_search(dataset, definition=define_focal_k(Parameter("K", (2,)), "random"), limit=3)
    trials = [search.ask() for _ in range(3)]
    assert [trial.config.train.seed for trial in trials if trial] == [0, 1, 2]
    assert search.ask() is None


def test_impossible_combinations_do_not_count_as_trials(dataset: ArrowDataset) -> None:
    search = make_search(dataset, definition=define_focal_k(Parameter("K", low=1, high=40), "random"), limit=5)
    trials = run_search(search)
    assert len(trials) == 5
    assert all(dict(trial.params)["K"] <= 6 for trial in trials)
    failed = [t for t in search.study.trials if t.state == TrialState.FAIL]
    assert failed
    assert all("model.focal_joints" in t.user_attrs["impossible"] for t in failed)


def test_further_seeds_follow_a_finished_trial(dataset: ArrowDataset) -> None:
    search = make_search(dataset, limit=9, seeds=3)
    trials = run_search(search)
    assert [trial.config.train.seed for trial in trials] == [0, 1, 2] * 3
    assert len({trial.label for trial in trials}) == 3


def test_early_stopping_prunes_trials_but_not_the_best(dataset: ArrowDataset) -> None:
    search = make_search(dataset, limit=20, early_stop=EarlyStopping(1, 2), seeds=1)
    run_search(search)
    states = [t.state for t in search.study.trials if not is_repeat(t)]
    assert states.count(TrialState.PRUNED) > 3
    assert states.count(TrialState.COMPLETE) > 2
    pruned = next(t for t in search.study.trials if t.state == TrialState.PRUNED)
    assert max(pruned.intermediate_values) < 4
    values = [t.value for t in search.study.trials if t.state == TrialState.COMPLETE and t.value is not None]
    assert max(values) == search.study.best_value


def test_both_objectives_are_recorded(dataset: ArrowDataset) -> None:
    search = make_search(dataset, search="nsga2", objectives=("val_top1", "flops"), limit=12)
    while (trial := search.ask()) is not None:
        metrics = {"val/top1": accuracy(trial), "model/gflops": dict(trial.params)["K"]}
        search.tell(trial.trial_id, "finished", metrics, trial)
    assert [d.name for d in search.study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert 1 <= len(search.study.best_trials) <= 12
    assert all(len(t.values) == 2 for t in search.study.trials)


@pytest.mark.parametrize("killed_after", [1, 5, 11])
def test_killed_search_continues_like_an_uninterrupted_one(
    dataset: ArrowDataset, tmp_path: Path, killed_after: int
) -> None:
    changes: dict[str, Any] = {"limit": 16, "early_stop": EarlyStopping(1, 3)}
    uninterrupted = make_search(dataset, **changes)
    expected = [trial.trial_id for trial in run_search(uninterrupted)]

    storage = f"sqlite:///{tmp_path}/optuna.db"
    first = make_search(dataset, storage, **changes)
    trials = run_search(first, stop_after=killed_after)
    running = first.ask()  # while it runs, the search is killed
    assert running is not None
    first.on_result(running.trial_id, 1, {"val/top1": accuracy(running) / 4})
    resumed = make_search(dataset, storage, ended_results(first), **changes)
    remaining = run_search(resumed)
    assert remaining[0].trial_id == running.trial_id
    assert [trial.trial_id for trial in trials + remaining] == expected
    recorded = [(t.params, t.state, t.value, t.intermediate_values) for t in resumed.study.trials]
    assert recorded == [(t.params, t.state, t.value, t.intermediate_values) for t in uninterrupted.study.trials]


@pytest.mark.parametrize("killed_after", [1, 5, 11])
def test_lost_study_is_rebuilt_from_the_runs(dataset: ArrowDataset, killed_after: int) -> None:
    """The study was lost with the machine that stored it; the runs of its trials are in the tracking store."""
    changes: dict[str, Any] = {"limit": 16, "early_stop": EarlyStopping(1, 3)}
    first = make_search(dataset, **changes)
    trials = run_search(first, stop_after=killed_after)
    running = first.ask()
    assert running is not None
    first.on_result(running.trial_id, 1, {"val/top1": accuracy(running) / 4})
    trained = [t for t in first.study.trials if not is_repeat(t)]  # repeats have no runs
    histories = {t.user_attrs["key"]: t.intermediate_values for t in trained}
    previous = [dataclasses.replace(result, run_id=result.trial_id) for result in ended_results(first)]
    label, params = running.label, dict(running.params)
    previous.append(TrialResult(running.trial_id, label, 0, params, running.trial_id, TrialStatus.INTERRUPTED))

    spec, factory = build_sweep(JOINT, dataset, small.small_config(dataset), **changes)
    rebuilt = Search(spec, factory, None, "study", previous, histories.__getitem__)

    def state_of(recorded: list[FrozenTrial]) -> list[Any]:
        rungs = [{k: v for k, v in t.system_attrs.items() if "rung" in k} for t in recorded]
        return [(t.params, t.state, t.value, t.intermediate_values, r) for t, r in zip(recorded, rungs, strict=True)]

    assert state_of(rebuilt.study.trials) == state_of(trained)
    remaining = run_search(rebuilt)
    assert remaining[0].trial_id == running.trial_id
    assert len(trials) + len(remaining) == 16
    assert not {trial.trial_id for trial in trials} & {trial.trial_id for trial in remaining}


def test_epochs_that_a_killed_driver_did_not_record_come_from_the_runs(dataset: ArrowDataset, tmp_path: Path) -> None:
    """Including the decision of early stopping in one of them."""
    storage = f"sqlite:///{tmp_path}/optuna.db"
    changes: dict[str, Any] = {"limit": 9, "early_stop": EarlyStopping(2, 3)}
    first = make_search(dataset, storage, **changes)
    run_search(first, stop_after=8)
    running = first.ask()
    assert running is not None
    first.on_result(running.trial_id, 1, {"val/top1": 0.0})
    previous = ended_results(first)
    previous.append(TrialResult(running.trial_id, "", 0, dict(running.params), "run", TrialStatus.INTERRUPTED))
    spec, factory = build_sweep(JOINT, dataset, small.small_config(dataset), **changes)
    history = {"run": {1: 0.0, 2: 0.0, 3: 99.0}}
    resumed = Search(spec, factory, storage, "study", previous, history.__getitem__)
    assert resumed.study.trials[-1].intermediate_values == history["run"]
    assert resumed.ask() == running
    assert resumed.on_result(running.trial_id, 3, {"val/top1": 99.0})  # it was behind after epoch 2


def test_trial_that_ended_before_the_driver_recorded_it_is_not_retrained(dataset: ArrowDataset, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/optuna.db"
    first = make_search(dataset, storage, limit=3)
    trial = first.ask()
    assert trial is not None
    params, metrics = dict(trial.params), {"val/top1": 77.0}
    finished = TrialResult(trial.trial_id, trial.label, 0, params, "", TrialStatus.FINISHED, metrics)
    resumed = make_search(dataset, storage, [finished], limit=3)
    assert resumed.study.trials[0].value == 77.0
    assert trial.trial_id not in {t.trial_id for t in run_search(resumed)}


def test_resume_retries_failed_trials(dataset: ArrowDataset, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/optuna.db"
    first = make_search(dataset, storage, definition=FOCAL_K)
    trial = first.ask()
    assert trial is not None
    first.tell(trial.trial_id, "failed", {}, trial)
    run_search(first)
    assert first.exhausted
    failed = TrialResult(trial.trial_id, trial.label, 0, dict(trial.params), "", TrialStatus.FAILED)
    second = make_search(dataset, storage, [*ended_results(first), failed], definition=FOCAL_K)
    assert [t.trial_id for t in run_search(second)] == [trial.trial_id]
    third = make_search(dataset, storage, ended_results(second), definition=FOCAL_K)
    assert third.exhausted


def test_study_storage_that_cannot_be_opened_is_rejected(dataset: ArrowDataset) -> None:
    with pytest.raises(InputError, match=r"--study-storage sqlite:////nowhere/at/all\.db: cannot be opened"):
        make_search(dataset, "sqlite:////nowhere/at/all.db")


def test_study_can_be_loaded_by_its_name(dataset: ArrowDataset, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/optuna.db"
    run_search(make_search(dataset, storage, limit=4))
    study = optuna.load_study(study_name="study", storage=storage)
    assert study.metric_names == ["val_top1"]
    assert {"key", "label", "seed"} <= set(study.trials[0].user_attrs)
