"""Simulated searches, on artificial curves with a known result and on the curves of a real sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgst.cli import runs
from fgst.cli.sweep import sweep
from fgst.data.dataset import ArrowDataset
from fgst.errors import InputError
from fgst.sweep.definition import Parameter, SweepDefinition
from fgst.sweep.simulation.curves import LearningCurve, most_common_length, read_curves
from fgst.sweep.simulation.simulator import (
    RecordedCurves,
    SimulationLimits,
    SimulationResult,
    simulate_repeatedly,
    simulate_search,
)
from fgst.sweep.spec import EarlyStopping
from fgst.tracking.store import TrackingStore
from tests.support import small
from tests.support.definitions import FOCAL_K, JOINT, build_sweep
from tests.support.workspace import TINY

EPOCHS = 4


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


def make_curve(
    final: float, *, minutes: float = 10.0, seed: int = 0, first: float | None = None, **params: Any
) -> LearningCurve:
    """Make a curve that rises linearly from ``first`` (default: half of ``final``) to ``final`` in ``minutes``."""
    start = final / 2 if first is None else first
    val = tuple(start + (final - start) * n / (EPOCHS - 1) for n in range(EPOCHS))
    times = tuple(minutes * (n + 1) / EPOCHS for n in range(EPOCHS))
    return LearningCurve(params, seed, val, times, {"test/top1": final + 5})


def grid(values: Sequence[int]) -> SweepDefinition:
    return SweepDefinition("focal_k", "How many?", lambda s, base: [Parameter("K", tuple(values))], FOCAL_K.settings)


def run_simulation(
    dataset: ArrowDataset,
    curves: Sequence[LearningCurve],
    definition: SweepDefinition,
    limits: SimulationLimits | None = None,
    **changes: Any,
) -> SimulationResult:
    spec, trials = build_sweep(definition, dataset, small.small_config(dataset), **changes)
    return simulate_search(spec, trials, RecordedCurves(spec, curves, "test"), limits or SimulationLimits(), 0)


def write_curves(folder: Path, curves: Sequence[LearningCurve]) -> str:
    path = folder / "curves.jsonl"
    path.write_text("".join(curve.to_json() + "\n" for curve in curves))
    return str(path)


def test_grid_finds_the_best_trial_in_the_recorded_time(dataset: ArrowDataset) -> None:
    curves = [make_curve(60, K=2, minutes=10), make_curve(80, K=4, minutes=20), make_curve(70, K=6, minutes=30)]
    result = run_simulation(dataset, curves, grid([2, 4, 6]))
    assert result.best is curves[1]
    assert (result.val, result.rank, result.regret) == (80, 1, 0)
    assert (result.started, result.exact, result.other_seed, result.approximated) == (3, 3, 0, 0)
    assert (result.epochs, result.planned_epochs) == (12, 12)
    assert result.hours == pytest.approx(1.0)
    assert result.device_hours == pytest.approx(1.0)
    # K=2 finishes after 10 minutes with a regret of 20, K=4 after 30 minutes with a regret of 0.
    assert np.array(result.improvements) == pytest.approx(np.array([(10 / 60, 20.0), (0.5, 0.0)]))


def test_concurrent_trials_shorten_the_search(dataset: ArrowDataset) -> None:
    curves = [make_curve(60, K=2, minutes=10), make_curve(80, K=4, minutes=20), make_curve(70, K=6, minutes=30)]
    result = run_simulation(dataset, curves, grid([2, 4, 6]), SimulationLimits(max_concurrent=2))
    assert result.hours == pytest.approx(40 / 60)  # the third trial starts when the first one ends
    assert result.device_hours == pytest.approx(1.0)


def test_hours_of_all_recorded_trials(dataset: ArrowDataset) -> None:
    spec, _ = build_sweep(grid([2, 4, 6]), dataset, small.small_config(dataset))
    minutes = (1.0, 2.0, 3.0, 60.0)
    curves = [
        LearningCurve({"K": k}, 0, (1.0,) * EPOCHS, minutes, {"device_seconds": 7200.0})  # two devices for an hour
        for k in (2, 4, 6)
    ]
    assert RecordedCurves(spec, curves, "test").hours(2) == (2.0, 6.0)


def test_early_stopping_of_parallel_curves_is_safe(dataset: ArrowDataset) -> None:
    curves = [make_curve(90 - 10 * n, K=k) for n, k in enumerate((6, 5, 4, 3))]
    result = run_simulation(dataset, curves, grid([6, 5, 4, 3]), early_stop=EarlyStopping(1, 2))
    assert (result.regret, result.lost_best) == (0, False)
    assert (result.epochs, result.planned_epochs) == (4 + 3, 16)  # all but the first trial stop at the first rung
    assert result.hours == pytest.approx((10 + 3 * 2.5) / 60)


def test_early_stopping_of_crossing_curves_loses_the_best(dataset: ArrowDataset) -> None:
    curves = [make_curve(60, first=50, K=2), make_curve(90, first=10, K=4)]
    result = run_simulation(dataset, curves, grid([2, 4]), early_stop=EarlyStopping(1, 2))
    assert result.lost_best
    assert (result.val, result.rank, result.regret) == (60, 2, 30)


def test_points_that_were_not_recorded_use_the_nearest_curve(dataset: ArrowDataset) -> None:
    spec, _ = build_sweep(JOINT, dataset, small.small_config(dataset), also=["lr"])
    points: list[dict[str, Any]] = [
        {"K": 1, "L1": 1, "heads": 1, "lr": 0.01},
        {"K": 6, "L1": 1, "heads": 1, "lr": 0.01},
        {"K": 1, "L1": 1, "heads": 2, "d2": 3, "lr": 0.01},
    ]
    curves = [*(make_curve(50 + n, **p) for n, p in enumerate(points)), make_curve(90, seed=1, **points[0])]
    records = RecordedCurves(spec, curves, "test")

    def assert_nearest(curve: LearningCurve, distance: float, **changes: Any) -> None:
        nearest = records.nearest(points[0] | changes, 0)
        assert nearest[0] == curve
        assert nearest[1] == pytest.approx(distance)

    assert records.nearest(points[0], 0) == (curves[0], 0)
    assert records.nearest(points[0], 1) == (curves[3], 0)
    assert records.nearest(points[1], 1) == (curves[1], 0)  # recorded with another seed
    assert_nearest(curves[0], 2 / 5, K=3)
    assert_nearest(curves[1], 2 / 5, K=4)
    assert_nearest(curves[0], 1.0, lr=0.2)
    assert_nearest(curves[0], 0.5, lr=(0.01 * 0.2) ** 0.5)  # the range is logarithmic
    assert_nearest(curves[2], 1 / 2, heads=2, d2=2)
    assert records.nearest({"K": 1, "L1": 1, "heads": 2, "d2": 1, "lr": 0.01}, 0)[1] == pytest.approx(1.0)
    assert records.mean_val(points[0]) == (50 + 90) / 2


def test_strings_are_at_distance_zero_or_one(dataset: ArrowDataset) -> None:
    names = ("fg", "attention", "convolution")
    definition = SweepDefinition(
        "temporal", "Which?", lambda s, base: [Parameter("t", names)], lambda p, base: {"model.temporal": p["t"]}
    )
    spec, _ = build_sweep(definition, dataset, small.small_config(dataset))
    for recorded in names:
        records = RecordedCurves(spec, [make_curve(50, t=recorded)], "test")
        assert [records.nearest({"t": name}, 0)[1] for name in names] == [float(name != recorded) for name in names]


@pytest.mark.parametrize(
    ("limits", "started", "minutes", "stop_reason"),
    [
        # The time is up half-way through the second trial, which stops after that epoch.
        (SimulationLimits(max_hours=0.25), 2, 15, "--max-hours 0.25"),
        (SimulationLimits(max_trials=1), 1, 10, "--max-trials 1"),
        (SimulationLimits(until_top1=75), 2, 20, "--until-top1 75 (a trial reached 80.0 %)"),
    ],
)
def test_limits_end_a_simulated_search(
    dataset: ArrowDataset, limits: SimulationLimits, started: int, minutes: float, stop_reason: str
) -> None:
    curves = [make_curve(60, K=2), make_curve(80, K=4), make_curve(70, K=6)]
    result = run_simulation(dataset, curves, grid([2, 4, 6]), limits)
    assert (result.started, result.stop_reason) == (started, stop_reason)
    assert result.hours == pytest.approx(minutes / 60)


def test_repeated_simulations_are_reproducible_and_differ_in_their_draws(dataset: ArrowDataset) -> None:
    curves = [make_curve(50 + 3 * k + l1, K=k, L1=l1, heads=1) for k in range(1, 7) for l1 in (1, 2, 3)]
    spec, trials = build_sweep(JOINT, dataset, small.small_config(dataset), search="random", limit=5, initial_points=[])
    records = RecordedCurves(spec, curves, "test")
    results = simulate_repeatedly(spec, trials, records, SimulationLimits(2), 8)
    assert results == simulate_repeatedly(spec, trials, records, SimulationLimits(2), 8)
    assert len({result.val for result in results}) > 1
    assert {result.started for result in results} == {5}
    assert all(result.regret == pytest.approx(records.best_val - result.val) for result in results)


def test_tpe_has_no_more_regret_than_random_search(dataset: ArrowDataset) -> None:
    curves = [
        make_curve(90 - 5 * abs(k - 5) - 3 * abs(l1 - 3), K=k, L1=l1, heads=1) for k in range(1, 7) for l1 in (1, 2, 3)
    ]

    def total_regret(search: str) -> float:
        spec, trials = build_sweep(
            JOINT, dataset, small.small_config(dataset), search=search, limit=12, initial_points=[]
        )
        records = RecordedCurves(spec, curves, "test")
        return sum(result.regret for result in simulate_repeatedly(spec, trials, records, SimulationLimits(), 6))

    assert total_regret("optuna") <= total_regret("random")


def test_second_objective_must_be_recorded(dataset: ArrowDataset) -> None:
    changes: dict[str, Any] = {"search": "nsga2", "objectives": ("val_top1", "flops"), "limit": 6}
    curves = [make_curve(50 + k, K=k, L1=1, heads=1) for k in range(1, 7)]
    with pytest.raises(InputError, match="6 of its trials have no model/gflops, which --objectives requires"):
        run_simulation(dataset, curves, JOINT, **changes)
    with_flops = [LearningCurve(c.params, 0, c.val, c.minutes, {"model/gflops": float(c.params["K"])}) for c in curves]
    assert run_simulation(dataset, with_flops, JOINT, **changes).started == 6


def test_csv_and_json_files_give_the_same_curves(tmp_path: Path) -> None:
    curves = [
        LearningCurve({"K": 2, "kind": "a,b"}, 0, (10.0, 20.5), (1.0, 2.0), {"test/top1": 30.0}),
        LearningCurve({"K": 4, "kind": "c", "lr": 0.5}, 1, (11.0, 21.0), (1.5, 3.0)),
    ]
    table = tmp_path / "curves.csv"
    table.write_text(
        "K,kind,lr,seed,val/top1@1,minutes@1,val/top1@2,minutes@2,test/top1\n"
        '2,"a,b",,0,10,1,20.5,2,30\n'
        "4,c,0.5,1,11,1.5,21,3,\n"
    )
    assert read_curves(table) == curves == read_curves(Path(write_curves(tmp_path, curves)))
    assert most_common_length(curves) == 2


VALID: Mapping[str, Any] = {"params": {"K": 2}, "seed": 0, "val/top1": [1, 2], "minutes": [1, 2]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "contains no learning curves; create one with: python -m fgst.runs curves"),
        ("hello\nworld\n", "neither JSON lines nor CSV"),
        (json.dumps(VALID) + "\n{", "line 2 is not a valid learning curve"),
        (json.dumps({k: v for k, v in VALID.items() if k != "seed"}), "line 1 .*missing required field seed"),
        (
            json.dumps({**VALID, "minutes": [1]}),
            r"line 1 is not a valid .* \(minutes is not given for each of the 2",
        ),
        (json.dumps({**VALID, "minutes": [2, 1]}), "minutes do not increase"),
        (json.dumps({**VALID, "val/top1": [1, float("nan")]}), "line 1 .*not valid JSON"),
        (json.dumps({**VALID, "params": {"K": [1]}}), r"line 1 .*params\[...\]: expected int"),
        (json.dumps({**VALID, "val/top1": []}), "no val/top1"),
    ],
)
def test_invalid_curves_are_reported_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "curves.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        read_curves(tmp_path / "curves.jsonl")


def test_curves_that_do_not_match_the_sweep_are_rejected(dataset: ArrowDataset, tmp_path: Path) -> None:
    base = ["--dataset", str(dataset.path), "--preset", "tiny", "--epochs", "4", *TINY]
    curves = write_curves(tmp_path, [make_curve(60, K=2), make_curve(80, K=4)])
    for argv, message in (
        (["--simulate", str(tmp_path / "none.jsonl")], "none.jsonl: cannot be read"),
        (["--simulate", curves, "--epochs", "9"], "have at most 4 epochs, and the sweep has 9; use --epochs 4"),
        (["--simulate", curves, "--values", "3,5"], "none of its 2 trials is within the searched space"),
        (["--simulate", curves, "--resume", "0" * 32], "--simulate trains nothing; remove --resume"),
        (["--simulate", curves, "--dry-run"], "remove --dry-run"),
        (["--simulate", curves, "--protocol", "paper"], "has no validation"),
        (["--repeats", "5"], "--repeats is the number of simulated searches"),
    ):
        with pytest.raises(InputError, match=message):
            sweep(FOCAL_K, None, [*base, *argv])
    with pytest.raises(InputError, match="a trial varies K, and this sweep varies K, L1, heads, d2"):
        sweep(JOINT, None, [*base, "--simulate", curves])


def test_simulation_on_the_curves_of_a_real_sweep_gives_the_same_result(
    dataset: ArrowDataset,
    tracking_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["--dataset", str(dataset.path), "--preset", "tiny", "--values", "2,4,6", *TINY]
    sweep(FOCAL_K, None, [*settings, "--epochs", "2", "--local", "--cpus-per-trial", "1", "--seed", "3"])
    store = TrackingStore(tracking_uri)
    [run] = store.runs(list(store.experiments()), "tags.`fgst.kind` = 'sweep'")
    capsys.readouterr()
    runs.main(["curves", run.info.run_id])
    output = capsys.readouterr()
    assert "3 curves" in output.err
    (tmp_path / "curves.jsonl").write_text(output.out)
    curves, trials = read_curves(tmp_path / "curves.jsonl"), store.children(run.info.run_id)
    for curve, trial in zip(curves, trials, strict=True):
        assert curve.seed == 3
        assert curve.val[-1] == trial.data.metrics["val/top1"]
        assert curve.minutes[-1] == trial.data.metrics["minutes"]
        assert curve.final["test/top1"] == trial.data.metrics["test/top1"]
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    sweep(FOCAL_K, None, [*settings, "--seed", "3", "--simulate", "curves.jsonl"])
    lines = capsys.readouterr().out.splitlines()
    shown = " ".join(" ".join(lines).split())
    best = store.run(run.data.tags["fgst.best_run"])
    assert f"validation top-1 % of the best trial {best.data.metrics['val/top1']:.1f} " in shown
    assert "its rank among 3 points 1.0 " in shown
    assert "trials recorded with their seed 3.0 " in shown
    assert lines[-1].endswith("--values 2,4,6 " + " ".join(TINY) + " --seed 3")
    # The simulation writes no files and adds no runs.
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == files
    assert len(store.runs(list(store.experiments()))) == 4
    with pytest.raises(InputError, match="is not a sweep"):
        runs.main(["curves", best.info.run_id])
