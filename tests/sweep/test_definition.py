from __future__ import annotations

import csv
import dataclasses
import io
import runpy
from pathlib import Path
from typing import Any

import pytest

from fgst.config import PRESETS
from fgst.data.dataset import ArrowDataset
from fgst.data.skeleton import NTU_25, NW_UCLA_20, Skeleton
from fgst.errors import InputError
from fgst.sweep.definition import SweepDefinition, TrialFactory, grid_points
from fgst.sweep.report.tables import to_csv
from fgst.sweep.results import TrialResult, best_result, build_rows
from fgst.sweep.spec import EarlyStopping, SweepSpec, build_spec, ineffective_overrides
from tests.support import small
from tests.support.definitions import FOCAL_K, JOINT

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.py"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


def spec_of(dataset: ArrowDataset, values: list[int] | None = None, seeds: int = 1) -> SweepSpec:
    return build_spec(FOCAL_K, small.small_config(dataset), dataset, values=values, seeds=seeds)


def result(spec: SweepSpec, number: int, status: str = "finished", **metrics: float) -> TrialResult:
    trial = spec.trials[number]
    named = {name.replace("_", "/"): value for name, value in metrics.items()}
    seed = trial.config.train.seed
    return TrialResult(trial.trial_id, trial.label, seed, dict(trial.params), f"{number:032x}", status, named)


def test_grid_holds_each_value_with_each_seed(dataset: ArrowDataset) -> None:
    spec = spec_of(dataset, [2, 4, 6], seeds=2)
    pairs = [(t.config.model.focal_joints, t.config.train.seed) for t in spec.trials]
    assert pairs == [(2, 0), (2, 1), (4, 0), (4, 1), (6, 0), (6, 1)]
    assert len({trial.trial_id for trial in spec.trials}) == 6
    assert spec.trials[3].name == "K=4 joint s1"
    assert spec.total == 6


def test_default_values_are_asked_of_the_skeleton(dataset: ArrowDataset) -> None:
    assert [trial.label for trial in spec_of(dataset).trials] == ["K=2", "K=6"]


def test_specification_survives_json_and_is_hashable(dataset: ArrowDataset) -> None:
    grid = spec_of(dataset, [2, 4], seeds=2)
    stop = EarlyStopping(1, 3)
    search = build_spec(
        JOINT, small.small_config(dataset), dataset, also=["lr"], early_stop=stop, initial_points=[{"lr": 0.1}]
    )
    for spec in (grid, search):
        again = SweepSpec.from_json(spec.to_json())
        assert again == spec
        assert hash(again) == hash(spec)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": 1}', "null"])
def test_what_is_no_specification_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        SweepSpec.from_json(text)


def test_key_is_the_trial_not_the_place_of_its_data(dataset: ArrowDataset, tmp_path: Path) -> None:
    elsewhere = small.write_small(tmp_path / "moved")
    other_clips = small.write_small(tmp_path / "other", small.motion_clips(seed=1))
    keys = [spec_of(d, [2]).trials[0].trial_id for d in (dataset, elsewhere, other_clips)]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(("values", "names"), [([2, 7], "model.focal_joints is 7"), ([2, 2], "twice"), ([0], "is 0")])
def test_impossible_values_are_refused_before_anything_starts(
    dataset: ArrowDataset, values: list[int], names: str
) -> None:
    with pytest.raises(InputError, match=names):
        spec_of(dataset, values)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"values": [1]}, "--values needs a sweep with a single parameter"),
        ({"search": "grid"}, "K is a range"),
        ({"initial_points": [{"Q": 1}]}, "--enqueue names Q"),
        ({"initial_points": [{"K": 99}]}, "K=99; it takes 1 to 6"),
        ({"initial_points": [{"K": 2.5}]}, "K=2.5; it takes 1 to 6"),
        ({"initial_points": [{"heads": 3}]}, "heads=3; it takes 1, 2"),
        ({"also": ["depth"]}, "--also names depth; optional parameters here: lr"),
        ({"early_stop": EarlyStopping(1, 3), "objectives": ("val_top1", "flops")}, "single objective"),
    ],
)
def test_impossible_searches_are_refused(dataset: ArrowDataset, changes: dict, names: str) -> None:
    with pytest.raises(InputError, match=names):
        build_spec(JOINT, small.small_config(dataset), dataset, **changes)


def test_nothing_is_searched_or_stopped_by_the_test_clips(dataset: ArrowDataset) -> None:
    paper = small.small_config(dataset, data__protocol="paper")
    with pytest.raises(InputError, match="a search chooses by validation"):
        build_spec(JOINT, paper, dataset)
    with pytest.raises(InputError, match="--early-stop compares trials by validation"):
        build_spec(FOCAL_K, paper, dataset, early_stop=EarlyStopping(1, 3))


def test_first_points_are_filled_in_and_named_by_field_too(dataset: ArrowDataset) -> None:
    spec = build_spec(
        JOINT, small.small_config(dataset), dataset, initial_points=[{"model.focal_joints": 3}, {"heads": 1}]
    )
    assert [dict(params) for params in spec.initial_points] == [
        {"K": 3, "L1": 2, "heads": 2, "d2": 2},
        {"K": 4, "L1": 2, "heads": 1},
    ]
    default = build_spec(JOINT, small.small_config(dataset), dataset)
    assert [dict(params) for params in default.initial_points] == [{"K": 4, "L1": 2, "heads": 2, "d2": 2}]


def test_rows_are_means_over_seeds_with_the_papers_figure(dataset: ArrowDataset) -> None:
    spec = spec_of(dataset, [2, 4, 6], seeds=2)
    results = [
        result(spec, 0, val_top1=50.0, test_top1=40.0, minutes=1.0),
        result(spec, 1, val_top1=60.0, test_top1=44.0, minutes=3.0),
        result(spec, 2, val_top1=70.0, test_top1=41.0, minutes=2.0),
        result(spec, 3, "failed", val_top1=99.0),
    ]
    first, second, third = rows = build_rows(spec, results)
    assert first.val == pytest.approx((55.0, 50**0.5))
    assert first.minutes == pytest.approx((2.0, 2**0.5))
    assert (first.finished, first.trials, first.published) == (2, 2, 88.0)
    assert second.val == (70.0, 0.0)  # the failed trial's figure is no result
    assert (second.finished, second.failed, second.published) == (1, 1, 89.0)
    assert (third.val, third.test, third.finished, third.published) == (None, None, 0, None)
    read = list(csv.DictReader(io.StringIO(to_csv(spec, rows))))
    assert [row["K"] for row in read] == ["2", "4", "6"]
    assert float(read[0]["test_top1_mean"]) == 42.0
    assert read[2]["val_top1_mean"] == ""


def test_best_is_chosen_by_validation_never_by_test(dataset: ArrowDataset) -> None:
    spec = spec_of(dataset, [2, 4, 6])
    results = [
        result(spec, 2, "failed", val_top1=99.0),
        result(spec, 1, val_top1=60.0, test_top1=10.0),
        result(spec, 0, val_top1=50.0, test_top1=90.0),
    ]
    best = best_result(spec, results)
    assert best is not None
    assert best.trial_id == spec.trials[1].trial_id


def test_without_validation_the_test_figures_still_do_not_choose(dataset: ArrowDataset) -> None:
    spec = spec_of(dataset, [2, 4])
    best = best_result(spec, [result(spec, 1, test_top1=90.0), result(spec, 0, test_top1=10.0)])
    assert best is not None
    assert best.trial_id == spec.trials[0].trial_id


def question_of(path: Path) -> SweepDefinition:
    return runpy.run_path(str(path))["definition"]


def test_every_question_of_the_paper_has_a_script() -> None:
    assert {path.stem for path in SWEEPS} == {
        "focal_k", "layers", "spatial_blocks", "temporal_blocks", "parts_p", "dilation", "modalities", "search",
    }  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("skeleton", [NTU_25, NW_UCLA_20], ids=lambda skeleton: skeleton.name)
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_point_of_every_script_is_a_network(path: Path, skeleton: Skeleton, preset: str) -> None:
    question = question_of(path)
    base = PRESETS[preset].with_values({"data.frames": 16})
    parameters = [p for p in question.parameters(skeleton, base) if not p.optional]
    assert question.name == path.stem
    if question.search != "grid":
        own = question.initial_params(skeleton, base)
        assert all(p.allows(own[p.name]) for p in parameters if p.name in own)
        points = [own]
    else:
        points = list(grid_points(parameters))
        assert len(points) == len(parameters[0].values) > 2
    for params in points:
        base.with_values(dict(question.settings(params, base))).model.check_skeleton(skeleton)


def test_the_papers_rows_are_found_by_their_labels() -> None:
    base = PRESETS["paper"]
    for path in SWEEPS:
        question = question_of(path)
        if question.search == "grid":
            (parameter,) = question.parameters(NTU_25, base)
            assert set(question.published) <= set(parameter.values)
            assert question.baseline in parameter.values
    focal_k = question_of(SWEEPS[0].with_name("focal_k.py"))
    assert focal_k.parameters(NW_UCLA_20, base)[0].values == (3, 6, 9, 12, 15, 18, 20)
    assert focal_k.published[15] == 89.5


def broken_settings(params: Any, base: Any) -> Any:
    return {"model.focal_joints": {2: 2}[params["K"]]}  # a table that lacks a value which the definition offers


def test_an_exception_for_an_offered_value_is_raised_unchanged(dataset: ArrowDataset) -> None:
    definition = dataclasses.replace(FOCAL_K, settings=broken_settings)
    with pytest.raises(KeyError, match="6"):
        build_spec(definition, small.small_config(dataset), dataset)


def test_a_value_that_is_not_offered_and_not_understood_is_bad_input(dataset: ArrowDataset) -> None:
    definition = dataclasses.replace(FOCAL_K, settings=broken_settings)
    with pytest.raises(InputError, match="--values: there is no K=3; K: 2, 6"):
        build_spec(definition, small.small_config(dataset), dataset, values=[3])


def test_overrides_of_varied_fields_are_found(dataset: ArrowDataset) -> None:
    fields = ["model.focal_joints", "train.lr"]
    for definition, parameter in ((FOCAL_K, "K"), (JOINT, "K")):
        spec = build_spec(definition, small.small_config(dataset), dataset)
        factory = TrialFactory(definition, spec.base, dataset)
        assert ineffective_overrides(spec, factory, fields) == {"model.focal_joints": parameter}
        assert ineffective_overrides(spec, factory, []) == {}
