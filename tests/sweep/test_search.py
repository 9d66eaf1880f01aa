"""What is tried next, what is stopped, and what is known after a kill: the real Optuna, trainings made up."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

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


def worth(trial: Trial) -> float:
    """A made-up accuracy: best at K = 5, L1 = 3."""
    params = dict(trial.params)
    seed = trial.config.train.seed
    return 90.0 - 5 * abs(params.get("K", 5) - 5) - 3 * abs(params.get("L1", 3) - 3) + 0.1 * seed


def drive(search: Search, *, stop_after: int | None = None) -> list[Trial]:
    """Train, in words, until there is no more, or as many as asked for."""
    done = []
    while (trial := search.ask()) is not None:
        status, metrics = "finished", {"val/top1": worth(trial)}
        for epoch in range(1, trial.config.train.epochs + 1):
            metrics = {"val/top1": worth(trial) * epoch / trial.config.train.epochs}
            if search.on_result(trial.trial_id, epoch, metrics):
                status = "pruned"
                break
        search.tell(trial.trial_id, status, metrics, trial)
        done.append(trial)
        if len(done) == stop_after:
            break
    return done


def results(search: Search) -> list[TrialResult]:
    return list(search._ended.values())


def searching(dataset: ArrowDataset, storage: str | None = None, before: Any = (), **changes: Any) -> Search:
    question = changes.pop("question", JOINT)
    spec, trials = build_sweep(question, dataset, small.small_config(dataset), **changes)
    return Search(spec, trials, storage, "study", before)


def test_a_grid_goes_in_its_order(dataset: ArrowDataset) -> None:
    search = searching(dataset, question=FOCAL_K, values=[2, 4, 6], seeds=2)
    assert not search.exhausted
    assert [t.name for t in drive(search)] == [f"K={k} joint s{s}" for k in (2, 4, 6) for s in (0, 1)]
    assert search.exhausted
    assert [t.state for t in search.study.trials] == [TrialState.COMPLETE] * 6
    assert [t.params["K"] for t in search.study.trials] == [2, 2, 4, 4, 6, 6]


@pytest.mark.parametrize("kind", ["optuna", "random"])
def test_a_search_begins_with_the_papers_point_and_trains_no_point_twice(dataset: ArrowDataset, kind: str) -> None:
    search = searching(dataset, search=kind, limit=25)
    trained = drive(search)
    assert trained[0].label == "K=4 L1=2 heads=2 d2=2"
    assert len(trained) == 25
    assert len({trial.trial_id for trial in trained}) == 25
    assert search.exhausted
    for trial in trained:  # d2 exists with two heads only
        assert ("d2" in dict(trial.params)) == (dict(trial.params)["heads"] == 2)


def test_tpe_finds_what_random_search_finds_later(dataset: ArrowDataset) -> None:
    def total(kind: str, seed: int) -> float:
        spec, trials = build_sweep(
            JOINT, dataset, small.small_config(dataset, train__seed=seed), search=kind, limit=30, initial_points=[]
        )
        trained = drive(Search(spec, trials, None, "s"))
        return sum(worth(trial) - 0.1 * seed for trial in trained[-10:])

    assert sum(total("optuna", seed) for seed in range(3)) > sum(total("random", seed) for seed in range(3))


def test_a_small_space_is_used_up_and_its_repeats_are_told_not_trained(dataset: ArrowDataset) -> None:
    question = SweepDefinition(
        "k", "K?", lambda skeleton, base: [Parameter("K", (2, 4, 6))], FOCAL_K.settings, search="optuna"
    )  # fmt: skip
    search = searching(dataset, question=question, limit=50)
    trained = drive(search)
    assert sorted(trial.label for trial in trained) == ["K=2", "K=4", "K=6"]
    assert search.exhausted
    repeats = [t for t in search.study.trials if "same as" in t.user_attrs]
    assert len(repeats) > 10
    values = {t.params["K"]: t.value for t in search.study.trials if "same as" not in t.user_attrs}
    assert all(t.value == values[t.params["K"]] for t in repeats)


def test_what_is_under_way_becomes_a_further_seed(dataset: ArrowDataset) -> None:
    question = SweepDefinition(
        "k", "K?", lambda skeleton, base: [Parameter("K", (2,))], FOCAL_K.settings, search="random"
    )
    search = searching(dataset, question=question, limit=3)
    asked = [search.ask() for _ in range(3)]
    assert [trial.config.train.seed for trial in asked if trial] == [0, 1, 2]
    assert search.ask() is None


def test_impossible_combinations_cost_no_trial(dataset: ArrowDataset) -> None:
    question = SweepDefinition(
        "k", "K?", lambda skeleton, base: [Parameter("K", low=1, high=40)], FOCAL_K.settings, search="random"
    )  # fmt: skip
    search = searching(dataset, question=question, limit=5)
    trained = drive(search)
    assert len(trained) == 5
    assert all(dict(trial.params)["K"] <= 6 for trial in trained)
    failed = [t for t in search.study.trials if t.state == TrialState.FAIL]
    assert failed
    assert all("model.focal_joints" in t.user_attrs["impossible"] for t in failed)


def test_further_seeds_follow_what_finished(dataset: ArrowDataset) -> None:
    search = searching(dataset, limit=9, seeds=3)
    trained = drive(search)
    assert [trial.config.train.seed for trial in trained] == [0, 1, 2] * 3
    assert len({trial.label for trial in trained}) == 3


def test_early_stopping_is_told_as_pruned_and_the_good_go_on(dataset: ArrowDataset) -> None:
    search = searching(dataset, limit=20, early_stop=EarlyStopping(1, 2), seeds=1)
    drive(search)
    states = [t.state for t in search.study.trials if "same as" not in t.user_attrs]
    assert states.count(TrialState.PRUNED) > 3
    assert states.count(TrialState.COMPLETE) > 2
    pruned = next(t for t in search.study.trials if t.state == TrialState.PRUNED)
    assert max(pruned.intermediate_values) < 4
    best = max((t for t in search.study.trials if t.state == TrialState.COMPLETE), key=lambda t: t.value)
    assert best.value == search.study.best_value


def test_two_objectives_are_both_told(dataset: ArrowDataset) -> None:
    search = searching(dataset, search="nsga2", objectives=("val_top1", "flops"), limit=12)
    while (trial := search.ask()) is not None:
        search.tell(
            trial.trial_id, "finished", {"val/top1": worth(trial), "model/gflops": dict(trial.params)["K"]}, trial
        )
    assert [d.name for d in search.study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert 1 <= len(search.study.best_trials) <= 12
    assert all(len(t.values) == 2 for t in search.study.trials)


@pytest.mark.parametrize("killed_after", [1, 5, 11])
def test_a_search_that_was_killed_goes_on_as_if_it_had_not(
    dataset: ArrowDataset, tmp_path: Path, killed_after: int
) -> None:
    changes: dict[str, Any] = {"limit": 16, "early_stop": EarlyStopping(1, 3)}
    whole = searching(dataset, **changes)
    expected = [trial.trial_id for trial in drive(whole)]

    storage = f"sqlite:///{tmp_path}/optuna.db"
    first = searching(dataset, storage, **changes)
    done = drive(first, stop_after=killed_after)
    under_way = first.ask()  # and then it is killed
    assert under_way is not None
    first.on_result(under_way.trial_id, 1, {"val/top1": worth(under_way) / 4})
    second = searching(dataset, storage, before=results(first), **changes)
    rest = drive(second)
    assert rest[0].trial_id == under_way.trial_id
    assert [trial.trial_id for trial in done + rest] == expected
    told = [(t.params, t.state, t.value, t.intermediate_values) for t in second.study.trials]
    assert told == [(t.params, t.state, t.value, t.intermediate_values) for t in whole.study.trials]


@pytest.mark.parametrize("killed_after", [1, 5, 11])
def test_a_study_that_is_lost_is_made_again_from_the_runs(dataset: ArrowDataset, killed_after: int) -> None:
    """The machine that kept it is gone; what the trials wrote into their runs is not."""
    changes: dict[str, Any] = {"limit": 16, "early_stop": EarlyStopping(1, 3)}
    first = searching(dataset, **changes)
    done = drive(first, stop_after=killed_after)
    under_way = first.ask()
    assert under_way is not None
    first.on_result(under_way.trial_id, 1, {"val/top1": worth(under_way) / 4})
    kept = [t for t in first.study.trials if "same as" not in t.user_attrs]  # what was told twice taught nothing
    histories = {t.user_attrs["key"]: t.intermediate_values for t in kept}
    before = [dataclasses.replace(result, run_id=result.trial_id) for result in results(first)]
    label, params = under_way.label, dict(under_way.params)
    before.append(TrialResult(under_way.trial_id, label, 0, params, under_way.trial_id, TrialStatus.INTERRUPTED))

    spec, trials = build_sweep(JOINT, dataset, small.small_config(dataset), **changes)
    second = Search(spec, trials, None, "study", before, histories.__getitem__)
    again = second.study.trials

    def known(told: list[Any]) -> list[Any]:
        rungs = [{k: v for k, v in t.system_attrs.items() if "rung" in k} for t in told]
        return [(t.params, t.state, t.value, t.intermediate_values, r) for t, r in zip(told, rungs, strict=True)]

    assert known(again) == known(kept)
    rest = drive(second)
    assert rest[0].trial_id == under_way.trial_id
    assert len(done) + len(rest) == 16
    assert not {trial.trial_id for trial in done} & {trial.trial_id for trial in rest}


def test_a_trial_that_ended_before_the_driver_wrote_it_down(dataset: ArrowDataset, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/optuna.db"
    first = searching(dataset, storage, limit=3)
    trial = first.ask()
    assert trial is not None
    known = TrialResult(
        trial.trial_id, trial.label, 0, dict(trial.params), "", TrialStatus.FINISHED, {"val/top1": 77.0}
    )
    second = searching(dataset, storage, before=[known], limit=3)
    assert second.study.trials[0].value == 77.0
    assert trial.trial_id not in {t.trial_id for t in drive(second)}


def test_what_failed_is_tried_again_by_a_resume(dataset: ArrowDataset, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/optuna.db"
    first = searching(dataset, storage, question=FOCAL_K)
    trial = first.ask()
    assert trial is not None
    first.tell(trial.trial_id, "failed", {}, trial)
    drive(first)
    assert first.exhausted
    failed = TrialResult(trial.trial_id, trial.label, 0, dict(trial.params), "", TrialStatus.FAILED)
    second = searching(dataset, storage, before=[*results(first), failed], question=FOCAL_K)
    assert [t.trial_id for t in drive(second)] == [trial.trial_id]
    third = searching(dataset, storage, before=results(second) + results(first), question=FOCAL_K)
    assert third.exhausted


def test_a_storage_that_cannot_be_opened_is_one_message(dataset: ArrowDataset) -> None:
    with pytest.raises(InputError, match=r"--study-storage sqlite:////nowhere/at/all\.db: cannot be opened"):
        searching(dataset, "sqlite:////nowhere/at/all.db")


def test_the_study_opens_by_its_name_alone(dataset: ArrowDataset, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/optuna.db"
    drive(searching(dataset, storage, limit=4))
    study = optuna.load_study(study_name="study", storage=storage)
    assert study.metric_names == ["val_top1"]
    assert {"key", "label", "seed"} <= set(study.trials[0].user_attrs)
