"""What a sweep can resolve: compared with simulated t-tests, and its noise read from earlier trainings."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fgst.data.dataset import ArrowDataset
from fgst.evaluation.metrics import Scores
from fgst.sweep.planning.earlier import earlier_noise
from fgst.sweep.planning.resolution import Noise, Resolution, default_noise, describe, resolution_of, t_power
from fgst.sweep.spec import SweepSpec, build_spec
from fgst.tracking.store import TrackingStore
from fgst.tracking.training import trial_tags
from tests.support import small
from tests.support.definitions import FOCAL_K, JOINT, build_sweep

CLIPS = 40


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


def make_spec(dataset: ArrowDataset, *, seeds: int = 3, **settings: object) -> SweepSpec:
    return build_spec(FOCAL_K, small.small_config(dataset, **settings), dataset, values=[2, 4, 6], seeds=seeds)


def known(pair_std: float, freedom: int = 0) -> Noise:
    return Noise(pair_std, freedom, 0.1, 0.04, "known", "known")


@pytest.mark.parametrize(("seeds", "ratio"), [(3, 4.0), (10, 2.5)])
def test_power_is_that_of_simulated_tests(seeds: int, ratio: float) -> None:
    samples = np.random.default_rng(0).normal(ratio / math.sqrt(seeds), 1, (20_000, seeds))
    found = np.mean(stats.ttest_1samp(samples, 0, axis=1).pvalue <= 0.05)
    assert t_power(ratio, seeds, 0.05) == pytest.approx(found, abs=0.012)


def test_number_of_seeds_resolves_the_difference_and_one_less_does_not() -> None:
    for points in (0.7, 1.0, 2.0, 20.0):
        resolution = Resolution(known(2.0), 3, 200, 4)
        seeds = resolution.seeds_for(points)
        assert seeds is not None
        assert dataclasses.replace(resolution, seeds=seeds).on_these_clips() <= points
        if seeds > 2:
            assert dataclasses.replace(resolution, seeds=seeds - 1).on_these_clips() > points
    assert Resolution(known(2.0), 3, 200, 1).seeds_for(0.001) is None
    assert Resolution(known(2.0), 1, 200, 1).on_these_clips() == math.inf
    assert Resolution(known(2.0), 2, 200, 6).on_these_clips() < 1000


def test_more_comparisons_and_uncertain_noise_take_more_seeds() -> None:
    plain = Resolution(known(2.0), 3, 200, 1).seeds_for(1.0)
    corrected = Resolution(known(2.0), 3, 200, 6).seeds_for(1.0)
    uncertain = Resolution(known(2.0, freedom=4), 3, 200, 1).seeds_for(1.0)
    assert plain is not None
    assert corrected is not None
    assert uncertain is not None
    # (1.96 + 0.84)² · (2 / 1)² = 31.4, and Student's t takes two more.
    assert plain == 34
    assert corrected > plain
    assert uncertain / plain == pytest.approx(4 / stats.chi2.ppf(0.2, 4), rel=0.1)


def test_seeds_do_not_reduce_the_noise_of_clips() -> None:
    few, many = Resolution(known(2.0), 3, 200, 1), Resolution(known(2.0), 10_000, 200, 1)
    limit = (stats.norm.isf(0.025) + stats.norm.ppf(0.8)) * 100 * math.sqrt(0.04 / 200)
    assert few.limit_of_clips() == many.limit_of_clips() == pytest.approx(limit)
    assert many.on_these_clips() < 0.1
    assert many.on_other_clips() == pytest.approx(limit, rel=0.01)
    assert few.on_other_clips() > limit
    # That many clips bring the limit down to the difference.
    clips = many.clips_for(1.0)
    assert dataclasses.replace(many, clips=clips).limit_of_clips() == pytest.approx(1.0, rel=0.01)


def test_default_matches_recorded_differences() -> None:
    assert default_noise(205, 71.0).pair_std == pytest.approx(2.9, abs=0.4)
    assert default_noise(205).discordance == pytest.approx(0.09)
    assert default_noise(205).planned_std == default_noise(205).pair_std


def test_description(dataset: ArrowDataset) -> None:
    spec = make_spec(dataset)
    resolution = resolution_of(spec, known(2.0), 200)
    assert resolution is not None
    assert resolution.comparisons == 2
    first, these, other, needed = describe(spec, resolution)
    assert first == "what 3 seeds and 200 validation clips can resolve (95 % for 2 comparisons together, power 80 %):"
    assert these.startswith(f"  with other seeds, on these clips: {resolution.on_these_clips():.1f} points (")
    assert f"{resolution.limit_of_clips():.1f} points with any number of seeds" in other
    assert needed.startswith("  0.5 / 1 / 2 points need ")
    assert f"/ {resolution.seeds_for(2.0)} seeds on these clips" in needed
    single = make_spec(dataset, seeds=1)
    resolution = resolution_of(single, known(2.0), 200)
    assert resolution is not None
    assert "nothing with a single seed" in describe(single, resolution)[1]
    paper = make_spec(dataset, data__protocol="paper")
    assert "test clips" in describe(paper, resolution)[0]


def test_folds_are_pairs_with_different_clips(dataset: ArrowDataset) -> None:
    spec = make_spec(dataset, seeds=4, data__folds=4)
    resolution = resolution_of(spec, known(2.0), 6)
    assert resolution is not None
    assert (resolution.seeds, resolution.clips) == (4, sum(spec.fold_clips))
    lines = describe(spec, resolution)
    assert lines[0].startswith("what 4 folds and ")
    assert lines[1].startswith("  with other seeds and on other clips: ")
    assert not any("on these clips" in line for line in lines)
    repeated = resolution_of(make_spec(dataset, seeds=8, data__folds=4), known(2.0), 6)
    assert repeated is not None
    assert repeated.seeds == 4  # the same clips again are no further pairs


def test_sweep_of_one_value_compares_nothing(dataset: ArrowDataset) -> None:
    spec = build_spec(FOCAL_K, small.small_config(dataset), dataset, values=[2], seeds=3)
    assert resolution_of(spec, known(2.0), 10) is None
    search, _ = build_sweep(JOINT, dataset, small.small_config(dataset), seeds=2, limit=20)
    resolution = resolution_of(search, known(2.0), 10)
    assert resolution is not None
    assert resolution.comparisons == 9


# Earlier trainings


def log_training(
    store: TrackingStore, spec: SweepSpec, value: int, seed: int, top1: float, folder: Path, *, scored: bool = True
) -> None:
    """Record a finished training, with scores in which top-1 % of the clips are correct, the first ones."""
    [trial] = [t for t in spec.trials if t.params == (("K", value),) and t.config.train.seed == seed]
    experiment = store.experiment(spec.experiment)
    tags = trial_tags(trial.config, spec.dataset_name, spec.dataset_digest)
    run = store.start(experiment, trial.trial_id, trial.name, tags)
    run.log_settings(trial.config.flat())
    run.log_metrics({"val/top1": top1, "test/top1": 5.0}, 1)
    if scored:
        correct = np.arange(CLIPS) < round(CLIPS * top1 / 100)
        scores = np.where(correct[:, None], (1.0, 0.0), (0.0, 1.0)).astype(np.float32)
        clips = np.array([f"clip {i:02d}" for i in range(CLIPS)], dtype=object)
        (folder / "scores").mkdir(parents=True, exist_ok=True)
        Scores(clips, np.zeros(CLIPS, dtype=np.int64), scores, "val", "").save(folder / "scores" / "val.arrow")
        run.log_artifacts(folder)
    run.finish()


@pytest.fixture
def store(tracking_uri: str) -> TrackingStore:
    return TrackingStore(tracking_uri)


ACCURACIES = {2: [50.0, 60.0, 55.0], 4: [70.0, 75.0, 80.0], 6: [75.0, 90.0, 80.0]}


def test_noise_of_earlier_trainings(dataset: ArrowDataset, store: TrackingStore, tmp_path: Path) -> None:
    spec = make_spec(dataset)
    for value, accuracies in ACCURACIES.items():
        for seed, top1 in enumerate(accuracies):
            log_training(store, spec, value, seed, top1, tmp_path / f"{value} {seed}")
    noise = earlier_noise(store, spec, CLIPS)
    pairs = [np.subtract(ACCURACIES[one], ACCURACIES[other]) for one, other in ((2, 4), (2, 6), (4, 6))]
    assert noise.pair_std == pytest.approx(math.sqrt(np.mean([np.var(pair, ddof=1) for pair in pairs])))
    assert noise.freedom == 4
    assert noise.discordance == pytest.approx(np.mean([np.abs(pair).mean() for pair in pairs]) / 100)
    assert 0 < noise.persistent < noise.discordance
    assert noise.source == "9 earlier trainings of 4 passes, 4 degrees of freedom"
    assert noise.clip_source == "from 3 pairs of configurations, 9 networks"

    # Of other settings, the nearest are used; too different ones, or with other clips, are not.
    assert earlier_noise(store, make_spec(dataset, train__epochs=6), CLIPS) == noise
    for other in ({"train__epochs": 40}, {"data__folds": 4}, {"data__protocol": "paper"}, {"data__validation": 0.5}):
        assert earlier_noise(store, make_spec(dataset, **other), CLIPS).freedom == 0
    nearer = make_spec(dataset, train__epochs=5)
    for seed, top1 in enumerate((60.0, 66.0)):
        log_training(store, nearer, 2, seed, top1, tmp_path / f"nearer {seed}", scored=False)
    noise = earlier_noise(store, make_spec(dataset, train__epochs=6), CLIPS)
    # A single configuration: its variance, doubled for a pair; without scores, the default at its accuracy.
    assert noise.pair_std == pytest.approx(math.sqrt(2 * 18))
    assert (noise.freedom, noise.clip_source) == (1, "a default")
    assert noise.discordance == pytest.approx(0.63 * 0.37)


def test_single_seeds_only_say_how_accurate_networks_are(
    dataset: ArrowDataset, store: TrackingStore, tmp_path: Path
) -> None:
    spec = make_spec(dataset)
    assert earlier_noise(store, spec, CLIPS) == default_noise(CLIPS)
    log_training(store, spec, 2, 0, 60.0, tmp_path, scored=False)
    assert earlier_noise(store, spec, CLIPS) == default_noise(CLIPS, 60.0)
    assert earlier_noise(None, spec, CLIPS) == default_noise(CLIPS)


def test_equal_accuracies_are_no_proof_that_there_is_no_noise(
    dataset: ArrowDataset, store: TrackingStore, tmp_path: Path
) -> None:
    spec = make_spec(dataset)
    for seed in range(3):
        log_training(store, spec, 2, seed, 60.0, tmp_path / str(seed), scored=False)
    assert earlier_noise(store, spec, CLIPS).pair_std == pytest.approx(100 / CLIPS / math.sqrt(12))
