"""What a table says in words, with the scores of simulated networks."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping

import numpy as np
import pytest

from fgst.data.dataset import ArrowDataset
from fgst.sweep.correctness import CorrectClips
from fgst.sweep.report.conclusions import conclusions
from fgst.sweep.report.tables import print_table, to_csv
from fgst.sweep.results import TrialResult, build_rows, runs_to_compare, winner_estimate
from fgst.sweep.spec import SweepSpec, build_spec
from fgst.sweep.status import TrialStatus
from tests.support import small
from tests.support.definitions import FOCAL_K

CLIPS = 200
IDS = np.array([f"clip {number:03d}" for number in range(CLIPS)], dtype=object)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


def make_results(
    dataset: ArrowDataset, probabilities: Mapping[int, np.ndarray], seeds: int = 4, **settings: object
) -> tuple[SweepSpec, list[TrialResult], dict[str, CorrectClips]]:
    """Trials of a grid over K, which classify each clip correctly with a given probability ``(clips,)``."""
    config = small.small_config(dataset, **settings)
    spec = build_spec(FOCAL_K, config, dataset, values=list(probabilities), seeds=seeds)
    generator, results, correct = np.random.default_rng(0), [], {}
    for number, trial in enumerate(spec.trials):
        is_correct = generator.random(CLIPS) < probabilities[dict(trial.params)["K"]]
        top1 = 100 * float(is_correct.mean())
        results.append(
            TrialResult(trial.trial_id, trial.label, trial.config.train.seed, dict(trial.params), f"run {number}",
                        TrialStatus.FINISHED, {spec.compared_metric: top1, "test/top1": top1})
        )  # fmt: skip
        correct[f"run {number}"] = CorrectClips(IDS, is_correct)
    return spec, results, correct


def constant(probability: float) -> np.ndarray:
    return np.full(CLIPS, probability)


def some_clips(share: float) -> np.ndarray:
    """The same share of the clips is always correct, the others never."""
    return (np.arange(CLIPS) < share * CLIPS).astype(float)


def test_rows_are_sorted_by_what_their_difference_means(dataset: ArrowDataset) -> None:
    values = {2: constant(0.7), 3: constant(0.95), 4: constant(0.7), 5: constant(0.3)}
    spec, results, correct = make_results(dataset, values)
    rows = build_rows(spec, results, correct)
    seeds, clips = conclusions(spec, rows, "K=2", None)
    verdict = "better than K=2: 3; worse than K=2: 5; cannot be distinguished from K=2: 4."
    assert seeds == f"With other seeds, on these clips (95 %, Holm's correction for 3 comparisons): {verdict}"
    assert clips == f"Also on other clips (95 %, Holm's correction for 3 comparisons): {verdict}"


def test_difference_on_few_clips_repeats_with_other_seeds_but_not_on_other_clips(dataset: ArrowDataset) -> None:
    # K=3 is right on two clips more, with every seed.
    spec, results, correct = make_results(dataset, {2: some_clips(0.5), 3: some_clips(0.51)})
    rows = build_rows(spec, results, correct)
    seeds, clips = conclusions(spec, rows, "K=2", None)
    assert seeds == "With other seeds, on these clips (95 %): better than K=2: 3."
    assert clips == "Also on other clips (95 %): cannot be distinguished from K=2: 3."
    [record] = list(csv.DictReader(io.StringIO(to_csv(spec, rows))))[1:]
    assert float(record["seeds_p_holm"]) < 0.05 < float(record["clips_p_holm"])
    assert float(record["clips_half_width_95"]) == pytest.approx(1.4, abs=0.1)


def test_holms_correction_counts_the_rows(dataset: ArrowDataset) -> None:
    spec, results, correct = make_results(dataset, {2: constant(0.5), 3: constant(0.6), 4: constant(0.5)}, seeds=3)
    alone = [r for r in results if r.label != "K=4"]
    [_, single, *_] = build_rows(spec, alone, correct)
    [_, row, _] = build_rows(spec, results, correct)
    for one, two in ((single.val_difference, row.val_difference), (single.clip_difference, row.clip_difference)):
        assert one is not None
        assert two is not None
        assert one.p_value is not None
        assert two.p_value == pytest.approx(2 * one.p_value)
        assert two.half_width == pytest.approx(one.half_width)


def test_one_seed(dataset: ArrowDataset) -> None:
    spec, results, correct = make_results(dataset, {2: constant(0.2), 3: constant(0.9)}, seeds=1)
    unknown, clips = conclusions(spec, build_rows(spec, results, correct), "K=2", None)
    assert "it is unknown which differences other seeds would repeat (--seeds 3)" in unknown
    assert clips == "On other clips, with these networks (95 %): better than K=2: 3."


def test_missing_scores(dataset: ArrowDataset, capsys: pytest.CaptureFixture[str]) -> None:
    spec, results, correct = make_results(dataset, {2: constant(0.2), 3: constant(0.9), 4: constant(0.9)})
    for scores, which in (
        ({}, "the rows"),
        ({k: v for k, v in correct.items() if k != results[-1].run_id}, "some rows"),
    ):
        rows = build_rows(spec, results, scores)
        sentences = conclusions(spec, rows, "K=2", None)
        assert sentences[-1].startswith(f"The noise of clips is unknown for {which}: their scores are not stored")
        assert "better than K=2: 3, 4." in sentences[0]
        print_table(spec, rows, "K=3", "K=2")
    assert winner_estimate(spec, results, {}) is None
    # Scores of other clips are no pairs.
    moved = {
        k: CorrectClips(v.clip_ids + (" b" if k == results[0].run_id else ""), v.correct) for k, v in correct.items()
    }
    assert all(row.clip_difference is None for row in build_rows(spec, results, moved))


def test_table_of_a_wide_terminal_shows_both_noises(
    dataset: ArrowDataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, results, correct = make_results(dataset, {2: some_clips(0.5), 3: some_clips(0.51)})
    rows = build_rows(spec, results, correct)
    shown = {}
    for width in (80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        print_table(spec, rows, "K=3", "K=2")
        shown[width] = capsys.readouterr().out
    assert "+1.0 ± 0." in shown[80]
    assert "+1.0 ± 0." in shown[120]
    assert "(± 1.4)" not in shown[80]
    assert "(± 1.4)" in shown[120]


def test_paper_protocol_compares_test_clips(dataset: ArrowDataset) -> None:
    values = {2: constant(0.2), 3: constant(0.9)}
    spec, results, correct = make_results(dataset, values, data__protocol="paper")
    assert spec.compared_split == "test"
    rows = build_rows(spec, results, correct)
    assert rows[1].val_difference is None
    assert [s.partition(" (")[0] for s in conclusions(spec, rows, "K=2", None)] == [
        "With other seeds, on these clips", "Also on other clips",
    ]  # fmt: skip
    assert winner_estimate(spec, results, correct) is None


def test_folds_have_one_interval(dataset: ArrowDataset) -> None:
    spec, results, correct = make_results(dataset, {2: constant(0.2), 3: constant(0.9)}, data__folds=4)
    # Each fold has a quarter of the clips.
    part = {
        r.run_id: CorrectClips(IDS[r.seed::4], correct[r.run_id].correct[r.seed::4]) for r in results
    }  # fmt: skip
    rows = build_rows(spec, results, part)
    [sentence] = conclusions(spec, rows, "K=2", None)
    assert sentence == "With other seeds and on other clips (95 %): better than K=2: 3."
    assert rows[1].clip_difference == rows[1].val_difference
    estimate = winner_estimate(spec, results, part)
    assert estimate is not None
    assert estimate.reached == pytest.approx(
        100 * np.mean(np.concatenate([part[r.run_id].correct for r in results[4:]]))
    )
    last = conclusions(spec, rows, "K=2", estimate)[-1]
    assert last.startswith(f"The best row reached {estimate.reached:.1f} % on validation; choosing it among 2 flatters")


def test_repeated_folds_are_pairs_once(dataset: ArrowDataset) -> None:
    """Two seeds with the same clips share the noise of these clips: they are no independent pairs."""
    spec, results, _ = make_results(dataset, {2: constant(0.2), 3: constant(0.9)}, seeds=8, data__folds=4)
    row = build_rows(spec, results)[1]
    assert row.val_difference is not None
    assert row.val_difference.pairs == 4


def test_scores_are_read_of_the_baseline_and_the_first_rows(dataset: ArrowDataset) -> None:
    """A search may have thousands of trials."""
    spec, results, _ = make_results(dataset, {2: constant(0.2), 3: constant(0.9), 4: constant(0.9)}, seeds=2)
    spec = dataclasses.replace(spec, baseline=4)
    assert runs_to_compare(spec, results, most=3) == ["run 4", "run 5", "run 0"]
    assert len(runs_to_compare(spec, results)) == 6
