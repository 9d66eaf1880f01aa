from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import small

from fgst.dataset import ArrowDataset
from fgst.errors import InputError
from fgst.skeleton import NTU_25, NW_UCLA_20
from fgst.sweep.report import TrialOutcome, best_outcome, make_rows, to_csv
from fgst.sweep.spec import Question, SweepSpec, make_spec

QUESTION = Question(
    name="focal_k",
    title="How many?",
    axis="K",
    settings=lambda k: {"model.focal_joints": k},
    values=lambda skeleton: [2, skeleton.num_joints],
    published={2: 88.0, 4: 89.0},
    source="Table 2",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


def spec_of(dataset: ArrowDataset, values: list[int] | None = None, seeds: int = 1) -> SweepSpec:
    return make_spec(QUESTION, small.small_config(dataset), dataset, values, seeds)


def outcome(spec: SweepSpec, number: int, status: str = "FINISHED", **metrics: float) -> TrialOutcome:
    named = {name.replace("_", "/"): value for name, value in metrics.items()}
    return TrialOutcome(spec.trials[number].key, f"{number:032x}", status, named)


def test_grid_holds_each_value_with_each_seed(dataset: ArrowDataset) -> None:
    spec = spec_of(dataset, [2, 4, 6], seeds=2)
    pairs = [(t.config.model.focal_joints, t.config.train.seed) for t in spec.trials]
    assert pairs == [(2, 0), (2, 1), (4, 0), (4, 1), (6, 0), (6, 1)]
    assert spec.labels == ("K=2", "K=4", "K=6")
    assert len({trial.key for trial in spec.trials}) == 6
    assert spec.trials[3].name == "K=4 joint s1"


def test_default_values_are_asked_of_the_skeleton(dataset: ArrowDataset) -> None:
    assert spec_of(dataset).labels == ("K=2", "K=6")


def test_specification_survives_json(dataset: ArrowDataset) -> None:
    spec = spec_of(dataset, [2, 4], seeds=2)
    assert SweepSpec.from_json(spec.to_json()) == spec


def test_key_is_the_trial_not_the_place_of_its_data(dataset: ArrowDataset, tmp_path: Path) -> None:
    elsewhere = small.write_small(tmp_path / "moved")
    other_clips = small.write_small(tmp_path / "other", small.motion_clips(seed=1))
    keys = [spec_of(d, [2]).trials[0].key for d in (dataset, elsewhere, other_clips)]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(("values", "names"), [([2, 7], "model.focal_joints is 7"), ([2, 2], "twice"), ([0], "is 0")])
def test_impossible_values_are_refused_before_anything_starts(
    dataset: ArrowDataset, values: list[int], names: str
) -> None:
    with pytest.raises(InputError, match=names):
        spec_of(dataset, values)


def test_rows_are_means_over_seeds_with_the_papers_figure(dataset: ArrowDataset) -> None:
    spec = spec_of(dataset, [2, 4, 6], seeds=2)
    outcomes = [
        outcome(spec, 0, val_top1=50.0, test_top1=40.0, minutes=1.0),
        outcome(spec, 1, val_top1=60.0, test_top1=44.0, minutes=3.0),
        outcome(spec, 2, val_top1=70.0, test_top1=41.0, minutes=2.0),
        outcome(spec, 3, status="FAILED", val_top1=99.0),
    ]
    first, second, third = make_rows(spec, {o.key: o for o in outcomes})
    assert first.val == pytest.approx((55.0, 50**0.5))
    assert first.minutes == pytest.approx((2.0, 2**0.5))
    assert (first.finished, first.trials, first.published) == (2, 2, 88.0)
    assert second.val == (70.0, 0.0)  # the failed trial's figure is no result
    assert (second.finished, second.published) == (1, 89.0)
    assert (third.val, third.test, third.finished, third.published) == (None, None, 0, None)
    read = list(csv.DictReader(io.StringIO(to_csv(spec, [first, second, third]))))
    assert [row["K"] for row in read] == ["2", "4", "6"]
    assert float(read[0]["test_top1_mean"]) == 42.0
    assert read[2]["val_top1_mean"] == ""


def test_best_is_chosen_by_validation_never_by_test(dataset: ArrowDataset) -> None:
    spec = spec_of(dataset, [2, 4, 6])
    outcomes = [
        outcome(spec, 0, val_top1=50.0, test_top1=90.0),
        outcome(spec, 1, val_top1=60.0, test_top1=10.0),
        outcome(spec, 2, status="FAILED", val_top1=99.0),
    ]
    best = best_outcome(spec, {o.key: o for o in outcomes})
    assert best is not None
    assert best.key == spec.trials[1].key


def test_without_validation_the_test_figures_still_do_not_choose(dataset: ArrowDataset) -> None:
    spec = spec_of(dataset, [2, 4])
    outcomes = [outcome(spec, 0, test_top1=10.0), outcome(spec, 1, test_top1=90.0)]
    best = best_outcome(spec, {o.key: o for o in outcomes})
    assert best is not None
    assert best.key == spec.trials[0].key


def test_focal_k_asks_for_the_papers_values_that_fit() -> None:
    import runpy

    question = runpy.run_path(str(Path(__file__).parents[2] / "sweeps" / "focal_k.py"))["question"]
    assert question.values(NTU_25) == [3, 6, 9, 12, 15, 18, 21, 25]
    assert question.values(NW_UCLA_20) == [3, 6, 9, 12, 15, 18, 20]
