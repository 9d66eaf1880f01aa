"""Searches on recorded curves: made ones, whose answer is known, and those of a real sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fgst.cli import runs
from fgst.cli.sweep import sweep
from fgst.data.dataset import ArrowDataset
from fgst.errors import InputError
from fgst.sweep.definition import EarlyStop, Parameter, SweepDefinition
from fgst.sweep.simulation.curves import Curve, epochs_of, read_curves
from fgst.sweep.simulation.simulator import Limits, Records, Simulated, simulate, simulate_all
from fgst.tracking.store import TrackingStore
from tests.support import small
from tests.support.place import TINY
from tests.support.questions import FOCAL_K, JOINT, ask_for

EPOCHS = 4


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


def curve(end: float, *, minutes: float = 10.0, seed: int = 0, first: float | None = None, **params: Any) -> Curve:
    """From ``first`` (half of the end) to ``end`` in equal steps, in so many minutes."""
    begin = end / 2 if first is None else first
    val = tuple(begin + (end - begin) * n / (EPOCHS - 1) for n in range(EPOCHS))
    return Curve(params, seed, val, tuple(minutes * (n + 1) / EPOCHS for n in range(EPOCHS)), {"test/top1": end + 5})


def grid(values: Sequence[int]) -> SweepDefinition:
    return SweepDefinition("focal_k", "How many?", lambda s, base: [Parameter("K", tuple(values))], FOCAL_K.settings)


def tried(
    dataset: ArrowDataset,
    curves: Sequence[Curve],
    question: SweepDefinition,
    limits: Limits | None = None,
    **changes: Any,
) -> Simulated:
    spec, trials = ask_for(question, dataset, small.small_config(dataset), **changes)
    return simulate(spec, trials, Records(spec, curves, "made"), limits or Limits(), 0)


def written(folder: Path, curves: Sequence[Curve]) -> str:
    path = folder / "curves.jsonl"
    path.write_text("".join(c.to_json() + "\n" for c in curves))
    return str(path)


def test_a_grid_finds_the_best_and_takes_as_long_as_it_took(dataset: ArrowDataset) -> None:
    curves = [curve(60, K=2, minutes=10), curve(80, K=4, minutes=20), curve(70, K=6, minutes=30)]
    alone = tried(dataset, curves, grid([2, 4, 6]))
    assert alone.chosen is curves[1]
    assert (alone.val, alone.rank, alone.regret) == (80, 1, 0)
    assert (alone.begun, alone.exact, alone.other_seed, alone.neighbours) == (3, 3, 0, 0)
    assert (alone.epochs, alone.planned) == (12, 12)
    assert alone.hours == pytest.approx(1.0)
    assert alone.device_hours == pytest.approx(1.0)
    # Each new best, when it came: K=2 after 10 minutes, K=4 after 30.
    assert alone.growth == (pytest.approx((10 / 60, 20.0)), pytest.approx((0.5, 0.0)))
    two = tried(dataset, curves, grid([2, 4, 6]), Limits(max_concurrent=2))
    assert two.hours == pytest.approx(40 / 60)  # the third begins when the first ends
    assert two.device_hours == pytest.approx(1.0)


def test_everything_recorded_to_its_end(dataset: ArrowDataset) -> None:
    spec, _ = ask_for(grid([2, 4, 6]), dataset, small.small_config(dataset))
    curves = [Curve({"K": k}, 0, (1.0,) * EPOCHS, (1.0, 2.0, 3.0, 60.0), {"device_seconds": 7200.0}) for k in (2, 4, 6)]
    assert Records(spec, curves, "made").hours(2) == (2.0, 6.0)  # two devices each


def test_early_stopping_where_it_is_safe_and_where_it_is_not(dataset: ArrowDataset) -> None:
    stop = EarlyStop(1, 2)
    parallel = [curve(90 - 10 * n, K=k) for n, k in enumerate((6, 5, 4, 3))]
    safe = tried(dataset, parallel, grid([6, 5, 4, 3]), early_stop=stop)
    assert (safe.regret, safe.lost) == (0, False)
    assert (safe.epochs, safe.planned) == (4 + 3, 16)  # all but the first end at the first rung
    assert safe.hours == pytest.approx((10 + 3 * 2.5) / 60)
    crossing = [curve(60, initial_points=50, K=2), curve(90, initial_points=10, K=4)]
    unsafe = tried(dataset, crossing, grid([2, 4]), early_stop=stop)
    assert unsafe.lost
    assert (unsafe.val, unsafe.rank, unsafe.regret) == (60, 2, 30)


def test_what_was_not_recorded_takes_its_nearest(dataset: ArrowDataset) -> None:
    spec, _ = ask_for(JOINT, dataset, small.small_config(dataset), also=["lr"])
    points: list[dict[str, Any]] = [
        {"K": 1, "L1": 1, "heads": 1, "lr": 0.01},
        {"K": 6, "L1": 1, "heads": 1, "lr": 0.01},
        {"K": 1, "L1": 1, "heads": 2, "d2": 3, "lr": 0.01},
    ]
    curves = [*(curve(50 + n, **p) for n, p in enumerate(points)), curve(90, seed=1, **points[0])]
    records = Records(spec, curves, "made")

    def near(**changes: Any) -> tuple[Curve, float]:
        return records.nearest(points[0] | changes, 0)

    assert near() == (curves[0], 0)
    assert records.nearest(points[0], 1) == (curves[3], 0)
    assert records.nearest(points[1], 1) == (curves[1], 0)  # with another seed
    assert near(K=3) == (curves[0], pytest.approx(2 / 5))
    assert near(K=4) == (curves[1], pytest.approx(2 / 5))
    assert near(lr=0.2) == (curves[0], pytest.approx(1.0))
    assert near(lr=(0.01 * 0.2) ** 0.5)[1] == pytest.approx(0.5)  # by ratios
    assert near(heads=2, d2=2) == (curves[2], pytest.approx(1 / 2))
    assert records.nearest({"K": 1, "L1": 1, "heads": 2, "d2": 1, "lr": 0.01}, 0)[1] == pytest.approx(1.0)
    assert records.worth[tuple(sorted(points[0].items()))] == (50 + 90) / 2  # over its seeds


def test_texts_are_alike_or_not() -> None:
    parameter = Parameter("block", ("a", "b", "c"))
    places = [Records._place(parameter, value) for value in ("a", "b", "c")]
    assert [min(1, abs(x - y)) for x in places for y in places] == [0, 1, 1, 1, 0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("limits", "begun", "stopped"),
    [
        (Limits(max_hours=0.25), 2, "--max-hours 0.25"),
        (Limits(max_trials=1), 1, "--max-trials 1"),
        (Limits(until_top1=75), 2, "--until-top1 75 (a trial reached 80.0 %)"),
    ],
)
def test_limits_are_those_of_a_real_search(dataset: ArrowDataset, limits: Limits, begun: int, stopped: str) -> None:
    curves = [curve(60, K=2), curve(80, K=4), curve(70, K=6)]
    one = tried(dataset, curves, grid([2, 4, 6]), limits)
    assert (one.begun, one.stopped) == (begun, stopped)
    # Time is up in the middle of the second: it ends with its epoch.
    assert one.hours == pytest.approx({1: 10 / 60, 2: 20 / 60 if not limits.max_hours else 15 / 60}[begun])


def test_repeats_differ_by_their_draws_alone(dataset: ArrowDataset) -> None:
    curves = [curve(50 + 3 * k + l1, K=k, L1=l1, heads=1) for k in range(1, 7) for l1 in (1, 2, 3)]
    spec, trials = ask_for(JOINT, dataset, small.small_config(dataset), search="random", limit=5, initial_points=[])
    records = Records(spec, curves, "made")
    several = simulate_all(spec, trials, records, Limits(2), 8)
    assert several == simulate_all(spec, trials, records, Limits(2), 8)
    assert len({one.val for one in several}) > 1
    assert {one.begun for one in several} == {5}
    assert all(one.regret == pytest.approx(records.best - one.val) for one in several)


def test_tpe_regrets_less_than_random_search(dataset: ArrowDataset) -> None:
    curves = [
        curve(90 - 5 * abs(k - 5) - 3 * abs(l1 - 3), K=k, L1=l1, heads=1) for k in range(1, 7) for l1 in (1, 2, 3)
    ]

    def regret(search: str) -> float:
        spec, trials = ask_for(JOINT, dataset, small.small_config(dataset), search=search, limit=12, initial_points=[])
        return sum(one.regret for one in simulate_all(spec, trials, Records(spec, curves, "made"), Limits(), 6))

    assert regret("optuna") <= regret("random")


def test_two_objectives_need_both_recorded(dataset: ArrowDataset) -> None:
    changes = {"search": "nsga2", "objectives": ("val_top1", "flops"), "limit": 6}
    plain = [curve(50 + k, K=k, L1=1, heads=1) for k in range(1, 7)]
    with pytest.raises(InputError, match="6 of its trials have no model/gflops, which --objectives needs"):
        tried(dataset, plain, JOINT, **changes)
    costed = [Curve(c.params, 0, c.val, c.minutes, {"model/gflops": float(c.params["K"])}) for c in plain]
    assert tried(dataset, costed, JOINT, **changes).begun == 6


def test_csv_and_json_say_the_same(tmp_path: Path) -> None:
    curves = [
        Curve({"K": 2, "kind": "a,b"}, 0, (10.0, 20.5), (1.0, 2.0), {"test/top1": 30.0}),
        Curve({"K": 4, "kind": "c", "lr": 0.5}, 1, (11.0, 21.0), (1.5, 3.0)),
    ]
    table = tmp_path / "curves.csv"
    table.write_text(
        "K,kind,lr,seed,val/top1@1,minutes@1,val/top1@2,minutes@2,test/top1\n"
        '2,"a,b",,0,10,1,20.5,2,30\n'
        "4,c,0.5,1,11,1.5,21,3,\n"
    )
    assert read_curves(table) == curves == read_curves(Path(written(tmp_path, curves)))
    assert epochs_of(curves) == 2


GOOD: Mapping[str, Any] = {"params": {"K": 2}, "seed": 0, "val/top1": [1, 2], "minutes": [1, 2]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no curve; python -m fgst.runs curves"),
        ("hello\nworld\n", "neither JSON lines nor CSV"),
        (json.dumps(GOOD) + "\n{", "line 2 is no curve"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "seed"}), "line 1 has no 'seed'"),
        (json.dumps({**GOOD, "minutes": [1]}), r"line 1 is no curve \(it does not have minutes for each of its 2"),
        (json.dumps({**GOOD, "minutes": [2, 1]}), "minutes do not grow"),
        (json.dumps({**GOOD, "val/top1": [1, float("nan")]}), "val/top1 is not always a number"),
        (json.dumps({**GOOD, "params": {"K": [1]}}), "neither a number nor a text"),
        (json.dumps({**GOOD, "val/top1": []}), "it has no val/top1"),
    ],
)
def test_what_is_no_curve_is_named_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "curves.jsonl").write_text(text)
    with pytest.raises(InputError, match=words):
        read_curves(tmp_path / "curves.jsonl")


def test_curves_that_do_not_fit_are_refused(dataset: ArrowDataset, tmp_path: Path) -> None:
    base = ["--dataset", str(dataset.path), "--preset", "tiny", "--epochs", "4", *TINY]
    curves = [curve(60, K=2), curve(80, K=4)]
    good = written(tmp_path, curves)
    for argv, words in (
        (["--simulate", str(tmp_path / "none.jsonl")], "none.jsonl: cannot be read"),
        (["--simulate", good, "--epochs", "9"], "have up to 4 epochs, and 9 are asked; give --epochs 4"),
        (["--simulate", good, "--values", "3,5"], "none of its 2 trials lies in what is searched"),
        (["--simulate", good, "--resume", "0" * 32], "--simulate runs nothing for real; leave --resume out"),
        (["--simulate", good, "--dry-run"], "leave --dry-run out"),
        (["--simulate", good, "--protocol", "paper"], "holds nothing out"),
        (["--repeats", "5"], "--repeats is how many searches --simulate tries"),
    ):
        with pytest.raises(InputError, match=words):
            sweep(FOCAL_K, None, [*base, *argv])
    with pytest.raises(InputError, match="varies K, and this sweep varies K, L1, heads, d2"):
        sweep(JOINT, None, [*base, "--simulate", good])


def test_a_real_sweeps_curves_give_its_own_answer(
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
    told = capsys.readouterr()
    assert "3 curves" in told.err
    (tmp_path / "curves.jsonl").write_text(told.out)
    curves, trials = read_curves(tmp_path / "curves.jsonl"), store.children(run.info.run_id)
    for one, trial in zip(curves, trials, strict=True):
        assert one.seed == 3
        assert one.val[-1] == trial.data.metrics["val/top1"]
        assert one.minutes[-1] == trial.data.metrics["minutes"]
        assert one.end["test/top1"] == trial.data.metrics["test/top1"]
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    sweep(FOCAL_K, None, [*settings, "--seed", "3", "--simulate", "curves.jsonl"])
    lines = capsys.readouterr().out.splitlines()
    shown = " ".join(" ".join(lines).split())
    best = store.run(run.data.tags["fgst.best_run"])
    assert f"best found, validation top-1 % {best.data.metrics['val/top1']:.1f} " in shown
    assert "its rank among 3 points 1.0 " in shown
    assert "trials recorded exactly 3.0 " in shown
    assert lines[-1].endswith("--values 2,4,6 " + " ".join(TINY) + " --seed 3")
    # Nothing was written.
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
    assert len(store.runs(list(store.experiments()))) == 4
    with pytest.raises(InputError, match="is not a sweep"):
        runs.main(["curves", best.info.run_id])
