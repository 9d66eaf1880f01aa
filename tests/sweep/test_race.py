"""Races: who is dropped, and that their decisions follow from the finished trials alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fgst.data.dataset import ArrowDataset
from fgst.errors import InputError
from fgst.sweep.definition import Trial
from fgst.sweep.noise import ALPHA
from fgst.sweep.race import eliminate, race_state
from fgst.sweep.report.conclusions import conclusions
from fgst.sweep.results import TrialResult, best_result, build_rows, race_of
from fgst.sweep.search import Search
from fgst.sweep.spec import EarlyStopping, SweepSpec
from fgst.sweep.status import TrialStatus
from tests.support import small
from tests.support.definitions import FOCAL_K, JOINT, build_sweep

VALUES = (2, 3, 4, 5)
SEEDS = 5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


def make_race(
    dataset: ArrowDataset, results: list[TrialResult] | None = None, storage: str | None = None, **settings: object
) -> Search:
    config = small.small_config(dataset, **settings)
    spec, factory = build_sweep(FOCAL_K, dataset, config, values=VALUES, seeds=SEEDS, race=True)
    return Search(spec, factory, storage, "race", results or ())


def accuracy(trial: Trial) -> float:
    """K = 4 is best, K = 5 close behind, and the others are worse; seeds and their pairs with values are noise."""
    value, seed = dict(trial.params)["K"], trial.config.train.seed
    return {2: 40.0, 3: 60.0, 4: 80.0, 5: 79.5}[value] + 5 * seed + [0.4, -0.3, 0.2, -0.4, 0.1][(3 * value + seed) % 5]


def result_of(trial: Trial, status: TrialStatus = TrialStatus.FINISHED) -> TrialResult:
    metrics = {"val/top1": accuracy(trial)} if status is TrialStatus.FINISHED else {}
    return TrialResult(
        trial.trial_id, trial.label, trial.config.train.seed, dict(trial.params), trial.trial_id, status, metrics
    )


def run(search: Search, stop_after: int = 1000, fails: Callable[[Trial], bool] = lambda trial: False) -> list[Trial]:
    """Train one trial after another; a trial fails where ``fails`` says so."""
    trained: list[Trial] = []
    while len(trained) < stop_after and (trial := search.ask()) is not None:
        status = TrialStatus.FAILED if fails(trial) else TrialStatus.FINISHED
        search.tell(trial.trial_id, status, dict(result_of(trial, status).metrics), trial)
        trained.append(trial)
    return trained


def cells(trials: list[Trial]) -> list[tuple[int, int]]:
    return [(dict(trial.params)["K"], trial.config.train.seed) for trial in trials]


def test_seeds_are_spent_on_values_that_may_be_best(dataset: ArrowDataset) -> None:
    search = make_race(dataset)
    trained = run(search)
    assert cells(trained) == [
        *((value, seed) for seed in (0, 1) for value in VALUES),
        *((value, seed) for seed in (2, 3, 4) for value in (4, 5)),
    ]
    assert search.exhausted
    assert search.remaining == 0


def test_race_ends_when_one_value_is_left(dataset: ArrowDataset) -> None:
    search = make_race(dataset)
    trials = [trial for trial in search.spec.trials if trial.config.train.seed < 2]
    accuracies = {t.trial_id: accuracy(t) - 20 * (t.params[0][1] == 5) for t in trials}
    state = race_state(search.spec.trials, accuracies)
    assert (state.rounds, state.due, state.possible) == (2, (), 0)
    assert set(state.dropped) == {"K=2", "K=3", "K=5"}
    drop = state.dropped["K=5"]
    assert (drop.after, drop.leader) == (2, "K=4")
    assert drop.behind > drop.needed > 0


def test_concurrent_trials_wait_for_the_end_of_their_round(dataset: ArrowDataset) -> None:
    search = make_race(dataset)
    first = [search.ask() for _ in VALUES]
    assert search.ask() is None
    assert not search.exhausted
    assert search.remaining == (SEEDS - 1) * len(VALUES)
    for trial in reversed(first[1:]):
        assert trial is not None
        search.tell(trial.trial_id, TrialStatus.FINISHED, dict(result_of(trial).metrics), trial)
        assert search.ask() is None
    [trial] = first[:1]
    assert trial is not None
    search.tell(trial.trial_id, TrialStatus.FINISHED, dict(result_of(trial).metrics), trial)
    following = search.ask()
    assert following is not None
    assert following.config.train.seed == 1


@pytest.mark.parametrize("kept_study", [True, False])
def test_race_resumes_after_every_trial_with_the_same_decisions(
    dataset: ArrowDataset, tmp_path: Path, kept_study: bool
) -> None:
    whole = cells(run(make_race(dataset)))
    for cut in range(0, len(whole) + 1, 3):
        storage = f"sqlite:///{tmp_path}/{cut}.db" if kept_study else None
        before = run(make_race(dataset, storage=storage), stop_after=cut)
        after = run(make_race(dataset, [result_of(trial) for trial in reversed(before)], storage))
        assert cells(before) + cells(after) == whole


def test_trial_of_a_killed_driver_continues_first(dataset: ArrowDataset, tmp_path: Path) -> None:
    whole = cells(run(make_race(dataset)))
    for cut in (1, 6, 9, 13):
        storage = f"sqlite:///{tmp_path}/{cut}.db"
        search = make_race(dataset, storage=storage)
        before = run(search, stop_after=cut)
        running = search.ask()
        assert running is not None
        after = run(make_race(dataset, [result_of(trial) for trial in before], storage))
        assert after[0].trial_id == running.trial_id
        assert cells(before) + cells(after) == whole


def test_interrupted_trial_does_not_block_the_end_of_a_race(dataset: ArrowDataset) -> None:
    """A backend asks until the search is exhausted; the interrupted trial is resumed by the next invocation."""
    search = make_race(dataset)
    for _ in VALUES:
        trial = search.ask()
        assert trial is not None
        status = TrialStatus.INTERRUPTED if dict(trial.params)["K"] == 3 else TrialStatus.FINISHED
        search.tell(trial.trial_id, status, dict(result_of(trial).metrics), trial)
    assert search.ask() is None
    assert search.exhausted
    assert search.remaining == (SEEDS - 1) * len(VALUES)


def test_interrupted_trial_does_not_block_the_end_of_a_search(dataset: ArrowDataset) -> None:
    spec, factory = build_sweep(JOINT, dataset, small.small_config(dataset), seeds=2, limit=40)
    search = Search(spec, factory, None, "search")
    trial = search.ask()
    assert trial is not None
    search.space_exhausted = True
    assert not search.exhausted  # its result may add further seeds
    search.tell(trial.trial_id, TrialStatus.INTERRUPTED, {}, trial)
    assert search.exhausted


def test_failed_trials_do_not_stop_a_race(dataset: ArrowDataset) -> None:
    search = make_race(dataset)
    trained = cells(run(search, fails=lambda t: dict(t.params)["K"] == 3 or cells([t]) == [(4, 0)]))
    assert [seed for value, seed in trained if value == 3] == [0, 1]  # neither of its trainings finished
    assert [seed for value, seed in trained if value == 4] == list(range(SEEDS))
    assert search.exhausted


def test_best_value_of_a_race_was_not_dropped(dataset: ArrowDataset) -> None:
    """Seeds, like folds, may differ more than values: values with other seeds are not compared by their means."""
    search = make_race(dataset)
    spec = search.spec
    results = [result_of(trial) for trial in run(search)]
    # K=3 was dropped after two seeds, and its mean would be the highest if these seeds alone were easy.
    easy = [
        r if r.seed < 2 else TrialResult(**{**vars(r), "metrics": {"val/top1": accuracy_of(r) - 60}}) for r in results
    ]
    best = best_result(spec, easy)
    assert best is not None
    assert best.label == "K=4"
    # A round that is not complete is not compared.
    cut = [r for r in results if r.seed < 2 or (r.label, r.seed) == ("K=5", 2)]
    best = best_result(spec, cut)
    assert best is not None
    assert (best.label, best.seed) == ("K=4", 1)


def accuracy_of(result: TrialResult) -> float:
    return result.metrics["val/top1"]


def test_table_shows_dropped_values_and_saved_trainings(dataset: ArrowDataset) -> None:
    search = make_race(dataset)
    results = [result_of(trial) for trial in run(search)]
    rows = build_rows(search.spec, results)
    assert [row.dropped.after if row.dropped else None for row in rows] == [2, 2, None, None]
    [sentence] = [s for s in conclusions(search.spec, rows, "K=2", None, race_of(search.spec, results)) if "race" in s]
    assert sentence.startswith(
        "The race trained 14 of at most 20 trials (6 saved, 30 %); left: 4, 5; dropped: 2 (after 2), 3 (after 2)."
    )
    part = results[:9]
    [sentence] = [
        s for s in conclusions(search.spec, rows, "K=2", None, race_of(search.spec, part)) if "race" in s
    ]  # fmt: skip
    assert sentence.startswith("The race is not complete: 2 of at most 5 rounds; still in it: 4, 5; dropped: 2")


def test_folds_differ_without_disturbing_a_race(dataset: ArrowDataset) -> None:
    config = small.small_config(dataset, data__folds=4)
    spec, factory = build_sweep(FOCAL_K, dataset, config, values=VALUES, seeds=4, race=True)
    trained = cells(run(Search(spec, factory, None, "folds")))
    assert trained[-4:] == [(4, 2), (5, 2), (4, 3), (5, 3)]


def test_best_value_is_kept_with_the_promised_probability() -> None:
    """Of values that are equal except for one that is slightly better, this one is dropped in at most 5 % of races."""
    generator, kept, repeats = np.random.default_rng(0), 0, 300
    labels = [str(i) for i in range(6)]
    for _ in range(repeats):
        left, table = list(labels), {label: dict[int, float]() for label in labels}
        for number in range(1, 6):
            for label in left:
                table[label][number] = float(generator.normal(0.2 * (label == "0")))
            drops = eliminate(table, left, number, len(labels), 5)
            left = [label for label in left if label not in drops]
        kept += "0" in left
    assert kept / repeats >= 1 - ALPHA


def test_nothing_is_dropped_after_the_first_round() -> None:
    table = {label: {0: value} for label, value in zip("abc", (0.0, 50.0, 90.0), strict=True)}
    assert eliminate(table, list("abc"), 1, 3, 5) == {}
    # With common seeds, a difference that all seeds confirm is found even if seeds differ more.
    table = {label: {0: value, 1: value + 40 + number * 0.1} for number, (label, value) in
             enumerate(zip("abc", (0.0, 50.0, 90.0), strict=True))}  # fmt: skip
    assert set(eliminate(table, list("abc"), 2, 3, 5)) == {"a", "b"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 1}, "--race needs at least two seeds"),
        ({"values": [2]}, "--race needs at least two values"),
        ({"search": "random"}, "--race drops values of a grid"),
        ({"early_stop": EarlyStopping(1, 3)}, "--early-stop"),
        ({"data__protocol": "paper"}, "--race compares values by validation accuracy"),
    ],
)
def test_what_cannot_race_is_refused(dataset: ArrowDataset, settings: dict[str, object], message: str) -> None:
    config = small.small_config(dataset, **{k: v for k, v in settings.items() if "__" in k})
    changes = {"values": [2, 4], "seeds": 3} | {k: v for k, v in settings.items() if "__" not in k}
    with pytest.raises(InputError, match=message):
        build_sweep(FOCAL_K, dataset, config, race=True, **changes)


def test_race_is_recorded(dataset: ArrowDataset) -> None:
    spec = make_race(dataset).spec
    assert SweepSpec.from_json(spec.to_json()) == spec
    assert spec.race
    assert len(list(itertools.groupby(spec.trials, lambda trial: trial.label))) == len(VALUES)
