"""Sweep definitions and specifications, their tables, and the sweeps in sweeps/."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from fgst.config import PRESETS
from fgst.data.dataset import ArrowDataset
from fgst.data.public_benchmarks import PUBLIC_BENCHMARKS
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import NTU_25, NW_UCLA_20
from fgst.errors import InputError
from fgst.sweep.definition import Parameter, Published, SweepDefinition, TrialFactory, grid_points
from fgst.sweep.report.tables import to_csv
from fgst.sweep.results import TrialResult, best_result, build_rows
from fgst.sweep.spec import EarlyStopping, SweepSpec, build_spec, ineffective_overrides
from fgst.sweep.status import TrialStatus
from tests.support import small
from tests.support.definitions import FOCAL_K, JOINT

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.py"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


def make_spec(dataset: ArrowDataset, values: list[int] | None = None, seeds: int = 1) -> SweepSpec:
    return build_spec(FOCAL_K, small.small_config(dataset), dataset, values=values, seeds=seeds)


def make_result(
    spec: SweepSpec, number: int, status: TrialStatus = TrialStatus.FINISHED, **metrics: float
) -> TrialResult:
    """The result of a trial of a grid; ``val_top1`` stands for the metric ``val/top1``."""
    trial = spec.trials[number]
    named = {name.replace("_", "/"): value for name, value in metrics.items()}
    seed = trial.config.train.seed
    return TrialResult(trial.trial_id, trial.label, seed, dict(trial.params), f"{number:032x}", status, named)


def test_grid_contains_each_value_with_each_seed(dataset: ArrowDataset) -> None:
    spec = make_spec(dataset, [2, 4, 6], seeds=2)
    pairs = [(t.config.model.focal_joints, t.config.train.seed) for t in spec.trials]
    assert pairs == [(2, 0), (2, 1), (4, 0), (4, 1), (6, 0), (6, 1)]
    assert len({trial.trial_id for trial in spec.trials}) == 6
    assert spec.trials[3].name == "K=4 joint s1"
    assert spec.total == 6


def test_default_values_depend_on_the_skeleton(dataset: ArrowDataset) -> None:
    assert [trial.label for trial in make_spec(dataset).trials] == ["K=2", "K=6"]


def test_baseline_outside_the_grid_is_replaced_by_the_value_of_the_base(dataset: ArrowDataset) -> None:
    base = small.small_config(dataset, model__focal_joints=4)
    definition = dataclasses.replace(FOCAL_K, baseline=2)
    assert build_spec(definition, base, dataset, values=[2, 4], seeds=2).baseline == 2
    assert build_spec(definition, base, dataset, values=[3, 4, 5], seeds=2).baseline == 4
    assert build_spec(definition, base, dataset, values=[3, 5], seeds=2).baseline == 2


def test_specification_is_hashable_and_restored_from_json(dataset: ArrowDataset) -> None:
    grid = make_spec(dataset, [2, 4], seeds=2)
    stop = EarlyStopping(1, 3)
    search = build_spec(
        JOINT, small.small_config(dataset), dataset, also=["lr"], early_stop=stop, initial_points=[{"lr": 0.1}]
    )
    for spec in (grid, search):
        restored = SweepSpec.from_json(spec.to_json())
        assert restored == spec
        assert hash(restored) == hash(spec)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": 1}', "null"])
def test_invalid_specification_is_rejected(text: str) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        SweepSpec.from_json(text)


def test_changed_specification_is_rejected(dataset: ArrowDataset) -> None:
    text = make_spec(dataset, [2, 4], seeds=2).to_json()
    content = json.loads(text)
    assert content["seeds"] == 2
    with pytest.raises(InputError, match="was modified after it was written"):
        SweepSpec.from_json(json.dumps(content | {"seeds": 3}))
    del content["sha256"]  # as in earlier versions
    assert SweepSpec.from_json(json.dumps(content)) == SweepSpec.from_json(text)


def test_trial_id_depends_on_the_clips_and_not_on_their_folder(dataset: ArrowDataset, tmp_path: Path) -> None:
    moved = small.write_small(tmp_path / "moved")
    other_clips = small.write_small(tmp_path / "other", small.motion_clips(seed=1))
    ids = [make_spec(d, [2]).trials[0].trial_id for d in (dataset, moved, other_clips)]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(("values", "message"), [([2, 7], "model.focal_joints is 7"), ([2, 2], "twice"), ([0], "is 0")])
def test_invalid_values_are_rejected(dataset: ArrowDataset, values: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_spec(dataset, values)


@pytest.mark.parametrize(
    ("changes", "message"),
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
def test_invalid_searches_are_rejected(dataset: ArrowDataset, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_spec(JOINT, small.small_config(dataset), dataset, **changes)


def test_searches_and_early_stopping_require_validation_clips(dataset: ArrowDataset) -> None:
    paper = small.small_config(dataset, data__protocol="paper")
    with pytest.raises(InputError, match="a search chooses by validation"):
        build_spec(JOINT, paper, dataset)
    with pytest.raises(InputError, match="--early-stop compares trials by validation"):
        build_spec(FOCAL_K, paper, dataset, early_stop=EarlyStopping(1, 3))


def test_initial_points_are_completed_and_accept_field_names(dataset: ArrowDataset) -> None:
    spec = build_spec(
        JOINT, small.small_config(dataset), dataset, initial_points=[{"model.focal_joints": 3}, {"heads": 1}]
    )
    assert [dict(params) for params in spec.initial_points] == [
        {"K": 3, "L1": 2, "heads": 2, "d2": 2},
        {"K": 4, "L1": 2, "heads": 1},
    ]
    default = build_spec(JOINT, small.small_config(dataset), dataset)
    assert [dict(params) for params in default.initial_points] == [{"K": 4, "L1": 2, "heads": 2, "d2": 2}]


def test_rows_contain_means_over_seeds_and_the_published_accuracy(dataset: ArrowDataset) -> None:
    spec = dataclasses.replace(make_spec(dataset, [2, 4, 6], seeds=2), public_benchmark="NTU-60 X-Sub")
    results = [
        make_result(spec, 0, val_top1=50.0, test_top1=40.0, minutes=1.0),
        make_result(spec, 1, val_top1=60.0, test_top1=44.0, minutes=3.0),
        make_result(spec, 2, val_top1=70.0, test_top1=41.0, minutes=2.0),
        make_result(spec, 3, TrialStatus.FAILED, val_top1=99.0),
    ]
    first, second, third = rows = build_rows(spec, results)
    assert first.val == pytest.approx((55.0, 50**0.5))
    assert first.minutes == pytest.approx((2.0, 2**0.5))
    assert (first.finished, first.trials, first.published) == (2, 2, 88.0)
    assert second.val == (70.0, 0.0)  # without the failed trial
    assert (second.finished, second.failed, second.published) == (1, 1, 89.0)
    assert (third.val, third.test, third.finished, third.published) == (None, None, 0, None)
    read = list(csv.DictReader(io.StringIO(to_csv(spec, rows))))
    assert [row["K"] for row in read] == ["2", "4", "6"]
    assert float(read[0]["test_top1_mean"]) == 42.0
    assert read[2]["val_top1_mean"] == ""


def test_best_trial_is_chosen_by_validation_and_not_by_test(dataset: ArrowDataset) -> None:
    spec = make_spec(dataset, [2, 4, 6])
    results = [
        make_result(spec, 2, TrialStatus.FAILED, val_top1=99.0),
        make_result(spec, 1, val_top1=60.0, test_top1=10.0),
        make_result(spec, 0, val_top1=50.0, test_top1=90.0),
    ]
    best = best_result(spec, results)
    assert best is not None
    assert best.trial_id == spec.trials[1].trial_id


def test_best_trial_without_validation_is_the_first(dataset: ArrowDataset) -> None:
    spec = make_spec(dataset, [2, 4])
    best = best_result(spec, [make_result(spec, 1, test_top1=90.0), make_result(spec, 0, test_top1=10.0)])
    assert best is not None
    assert best.trial_id == spec.trials[0].trial_id


def load_definition(path: Path) -> SweepDefinition:
    definition = runpy.run_path(str(path))["definition"]
    assert isinstance(definition, SweepDefinition)
    return definition


def test_scripts_for_all_sweeps_exist() -> None:
    assert {path.stem for path in SWEEPS} == {
        "focal_k", "layers", "spatial_blocks", "temporal_blocks", "components", "parts_p", "dilation", "modalities",
        "search",
    }  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("skeleton", [NTU_25, NW_UCLA_20], ids=lambda skeleton: skeleton.name)
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_all_points_of_the_scripts_are_valid_networks(path: Path, skeleton: Skeleton, preset: str) -> None:
    definition = load_definition(path)
    base = PRESETS[preset].with_values({"data.frames": 16})
    parameters = [p for p in definition.parameters(skeleton, base) if not p.optional]
    assert definition.name == path.stem
    if definition.search != "grid":
        assert definition.initial_params is not None
        initial = definition.initial_params(skeleton, base)
        assert all(p.allows(initial[p.name]) for p in parameters if p.name in initial)
        points = [initial]
    else:
        points = list(grid_points(parameters))
        assert len(points) == len(parameters[0].values) > 2
    for params in points:
        base.with_values(dict(definition.settings(params, base))).model.check_skeleton(skeleton)


def test_published_accuracies_and_baselines_belong_to_values_of_the_grids() -> None:
    base = PRESETS["paper"]
    for path in SWEEPS:
        definition = load_definition(path)
        if definition.search == "grid":
            (parameter,) = definition.parameters(NTU_25, base)
            if definition.published is not None:
                assert set(definition.published.values) <= set(parameter.values)
                assert definition.published.benchmark in PUBLIC_BENCHMARKS
            assert definition.baseline in parameter.values
    focal_k = load_definition(SWEEPS[0].with_name("focal_k.py"))
    assert focal_k.parameters(NW_UCLA_20, base)[0].values == (3, 6, 9, 12, 15, 18, 20)
    assert focal_k.published is not None
    assert focal_k.published.values[15] == 89.5


def broken_settings(params: Any, base: Any) -> Any:
    return {"model.focal_joints": {2: 2}[params["K"]]}  # a table without the default value 6


def test_exception_for_a_default_value_is_raised_unchanged(dataset: ArrowDataset) -> None:
    definition = dataclasses.replace(FOCAL_K, settings=broken_settings)
    with pytest.raises(KeyError, match="6"):
        build_spec(definition, small.small_config(dataset), dataset)


def test_exception_for_another_value_is_invalid_input(dataset: ArrowDataset) -> None:
    definition = dataclasses.replace(FOCAL_K, settings=broken_settings)
    with pytest.raises(InputError, match="--values: there is no K=3; K: 2, 6"):
        build_spec(definition, small.small_config(dataset), dataset, values=[3])


def test_overrides_of_varied_fields_are_reported(dataset: ArrowDataset) -> None:
    fields = ["model.focal_joints", "train.lr"]
    for definition, parameter in ((FOCAL_K, "K"), (JOINT, "K")):
        spec = build_spec(definition, small.small_config(dataset), dataset)
        factory = TrialFactory(definition, spec.base, dataset)
        assert ineffective_overrides(spec, factory, fields) == {"model.focal_joints": parameter}
        assert ineffective_overrides(spec, factory, []) == {}


def test_published_accuracies_of_several_parameters_are_keyed_by_tuples(dataset: ArrowDataset) -> None:
    two = dataclasses.replace(
        FOCAL_K,
        parameters=lambda skeleton, base: [Parameter("K", (2, 4)), Parameter("frames", (4, 8))],
        settings=lambda params, base: {"model.focal_joints": params["K"], "data.frames": params["frames"]},
        published=Published({(2, 8): 90.0}, source="Table 2", benchmark="NTU-60 X-Sub"),
        baseline=(4, 8),
    )
    spec = build_spec(two, small.small_config(dataset), dataset)
    spec = dataclasses.replace(spec, public_benchmark="NTU-60 X-Sub")
    assert spec.published_top1({"K": 2, "frames": 8}) == 90.0
    wrong = Published({2: 90.0}, source="Table 2", benchmark="NTU-60 X-Sub")
    for changes in ({"published": wrong}, {"baseline": 4}, {"baseline": (4, 8, 1)}):
        with pytest.raises(ValueError, match="must be a tuple of values of K, frames"):
            build_spec(dataclasses.replace(two, **changes), small.small_config(dataset), dataset)
