"""The page of a sweep, read back by an HTML parser: its numbers, its sections, and nothing that is not escaped."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import optuna
import pytest

from fgst.config import DataConfig, ModelConfig, TrainConfig, TrialConfig
from fgst.sweep.definition import EarlyStop, Parameter, SweepSpec, Trial, format_params
from fgst.sweep.report import html as page_module
from fgst.sweep.report.html import ReportData, importances, pareto_front, write_page
from fgst.sweep.report.tables import format_figure
from fgst.sweep.results import TrialResult, build_rows

EPOCHS = 9
BASE = TrialConfig(ModelConfig(), DataConfig("data", "x-view"), TrainConfig(epochs=EPOCHS, repeat=5))
AGAIN = "python sweeps/focal_k.py --resume " + "ab" * 16
SEARCHED = (
    Parameter("K", low=2, high=20),
    Parameter("heads", (1, 2)),
    Parameter("d2", low=1, high=4, condition=("heads", (2,))),
    Parameter("lr", low=0.005, high=0.2, log=True),
)


class Page(HTMLParser):
    """What a reader sees: headings, all text, tables as rows of cells, pictures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.headings: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.text = ""
        self._into: str | None = None
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "h2":
            self.headings.append("")
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "img":
            self.images.append(dict(attrs))
        self._into = tag if tag in ("h2", "td", "th", "style") else self._into

    def handle_endtag(self, tag: str) -> None:
        if tag == self._into or tag in ("td", "th"):
            self._into = None

    def handle_data(self, data: str) -> None:
        if self._into == "style":
            return
        self.text += data
        if self._into == "h2":
            self.headings[-1] += data
        elif self._into in ("td", "th"):
            self.tables[-1][-1][-1] += data


def make_sweep(
    parameters: Sequence[Parameter], trials: Sequence[Trial] = (), base: TrialConfig = BASE, **changes: Any
) -> SweepSpec:
    spec = SweepSpec(
        name="focal_k", title="How many?", parameters=tuple(parameters), search="grid", seeds=3, limit=None,
        objectives=("val_top1",), early_stop=None, initial_points=(), base=base, trials=tuple(trials), published=(), source="",
        baseline="", dataset_name="nw-ucla", dataset_digest="9f" * 32,
    )  # fmt: skip
    return dataclasses.replace(spec, **changes)


def history(final: float, last: int = EPOCHS, start: float = 20) -> dict[str, dict[int, float]]:
    """From ``start`` to ``final`` in a straight line, as far as epoch ``last``."""
    val = {epoch: start + (final - start) * epoch / EPOCHS for epoch in range(1, last + 1)}
    return {"val/top1": val, "train/loss": {epoch: 2 - epoch / EPOCHS for epoch in val}}


def grid(means: dict[Any, float], name: str = "K", seeds: int = 3, **changes: Any) -> ReportData:
    """Seeds lie 0.2 apart; those of odd rows in another order, so that paired differences vary."""
    trials, results, histories = [], [], {}
    for row, (value, mean) in enumerate(means.items()):
        for seed in range(seeds):
            params = {name: value}
            trial = Trial(format_params(params), BASE, f"{value} {seed}", tuple(params.items()))
            top1 = mean + 0.2 * (seed if row % 2 else -seed)
            run_id = f"{len(trials):032x}"
            metrics = {
                "val/top1": top1, "test/top1": top1 - 1.5, "minutes": 2.0 + seed, "device_seconds": 1800.0,
                "cost": 0.25, "peak_memory_gib": 2.0 + row, "clips_per_second": 100.0 + len(trials),
            }  # fmt: skip
            trials.append(trial)
            results.append(TrialResult(trial.trial_id, trial.label, seed, params, run_id, "finished", metrics))
            histories[run_id] = history(top1)
    spec = make_sweep([Parameter(name, tuple(means))], trials, seeds=seeds, **changes)
    return ReportData(spec, results, histories, None, "ab" * 16, AGAIN)


def search(count: int, objectives: Sequence[str] = ("val_top1",), pruned_at: int = 3) -> ReportData:
    """Every fifth trial from the fourth on is stopped early, every fifth from the fifth on fails."""
    way = {"val_top1": "maximize", "flops": "minimize"}
    study = optuna.create_study(
        directions=[way[name] for name in objectives], sampler=optuna.samplers.RandomSampler(seed=0)
    )
    results, histories = [], {}
    for number in range(count):
        asked = study.ask()
        params: dict[str, Any] = {
            "K": asked.suggest_int("K", 2, 20),
            "heads": asked.suggest_categorical("heads", (1, 2)),
        }
        if params["heads"] == 2:
            params["d2"] = asked.suggest_int("d2", 1, 4)
        params["lr"] = asked.suggest_float("lr", 0.005, 0.2, log=True)
        status = {3: "pruned", 4: "failed"}.get(number % 5, "finished")
        top1 = 60 + params["K"] + number / 100
        run_id = f"{number:032x}"
        metrics = {"model/gflops": 1 + (params["K"] + number * 7 % 5) / 10, "device_seconds": 360.0}
        if status != "failed":
            histories[run_id] = history(top1, EPOCHS if status == "finished" else pruned_at)
            metrics["val/top1"] = [*histories[run_id]["val/top1"].values()][-1]
        reason = 'OutOfMemoryError: <GPU 0> & "more"' if status == "failed" else ""
        results.append(TrialResult(str(number), format_params(params), 0, params, run_id, status, metrics, reason))
        if status == "finished":
            study.tell(asked, [metrics["val/top1"], metrics["model/gflops"]][: len(objectives)])
        else:
            study.tell(asked, state=optuna.trial.TrialState[{"pruned": "PRUNED", "failed": "FAIL"}[status]])
    spec = make_sweep(
        SEARCHED, search="optuna" if len(objectives) == 1 else "nsga2", seeds=1, limit=count,
        objectives=tuple(objectives), early_stop=EarlyStop(1, 3) if len(objectives) == 1 else None,
    )  # fmt: skip
    return ReportData(spec, results, histories, study, "ab" * 16, AGAIN)


@pytest.fixture
def read(tmp_path: Path) -> Callable[[ReportData], Page]:
    return lambda told: Page(write_page(told, tmp_path))


def test_a_grids_page_has_the_numbers_of_its_rows(read: Callable[[ReportData], Page], tmp_path: Path) -> None:
    means = {3: 78.0, 9: 81.0, 15: 80.0, 20: 80.1}
    told = grid(means, published=(("K=9", 89.0),), source="Table 2", baseline="K=15")
    before = dict(matplotlib.rcParams)
    page = read(told)
    assert dict(matplotlib.rcParams) == before
    assert page.headings == [
        "Table", "Accuracy by K", "Learning curves", "Would early stopping have been safe?", "Cost", "Settings",
        "How to repeat it",
    ]  # fmt: skip
    headings, *table = page.tables[0]
    assert [heading.split()[0] for heading in headings] == [
        "K", "finished", "validation", "test", "difference", "minutes", "paper",
    ]  # fmt: skip
    rows = build_rows(told.spec, told.results)
    assert len(table) == len(rows) == 4
    for cells, row in zip(table, rows, strict=True):
        assert cells[0].startswith(row.label.partition("=")[2])
        assert ("best" in cells[0], "baseline" in cells[0]) == (row.label == "K=9", row.label == "K=15")
        assert cells[1:4] == ["3 of 3", format_figure(row.val), format_figure(row.test)]
        if row.val_difference is None:
            assert cells[4] == "–"
        else:
            text = f"{row.val_difference.mean:+.1f} ± {row.val_difference.half_width:.1f}".replace("-", "−")
            assert cells[4] == ("" if row.val_difference.beyond_noise else "within noise") + text
        assert cells[5:] == ["3.0 ± 1.0", "89.0" if row.label == "K=9" else "–"]
    assert "within noise" in table[3][4]
    best = rows[1]
    assert best.val_difference is not None
    answer = f"K=9 is the best by validation: {format_figure(best.val)} % (mean ± standard deviation of 3 seeds)"
    assert answer in page.text
    assert "from the baseline K=15 (95 % interval), which is beyond noise." in page.text
    for said in ("12 by grid: 12 finished", "nw-ucla · x-view · joint", "9 epochs of 5 passes"):
        assert said in page.text
    assert AGAIN in page.source
    assert "python -m fgst.evaluate --run-id " + f"{5:032x}" in page.source  # the best seed of K=9
    assert told.spec.dataset_digest in page.text
    assert ["train.epochs", "9"] in page.tables[-1]
    # Everything is in the one file.
    assert "http" not in page.source
    assert page.tags.isdisjoint({"script", "link", "iframe"})
    pictures = {base64.b64decode(str(image["src"]).partition("base64,")[2]) for image in page.images}
    assert pictures == {path.read_bytes() for path in (tmp_path / "figures").glob("*.png")}
    assert len(pictures) == 2
    assert all(image["alt"] for image in page.images)


def test_cost_is_summed_over_trials(read: Callable[[ReportData], Page]) -> None:
    page = read(grid({3: 78.0, 9: 81.0}))
    cost = dict(next(table for table in page.tables if table[0][0].startswith("device hours")))
    assert [*cost.values()] == ["3.00", "1.50", "3.00 GiB", "102"]  # 6 · 1800 s, 6 · 0.25, max, median of 100 … 105


def test_a_search_with_pruned_and_failed_trials(read: Callable[[ReportData], Page]) -> None:
    told = search(20)
    page = read(told)
    assert page.headings == [
        "Table", "Learning curves", "All trials together", "What matters", "Was early stopping safe?", "Failures",
        "Cost", "Settings", "How to repeat it",
    ]  # fmt: skip
    assert "up to 20 by optuna: 12 finished, 4 stopped early, 4 failed" in page.text
    headings, *table = page.tables[0]
    assert headings[2:4] == ["stopped\nearly", "failed"]
    assert sum(cells[2] == "1" for cells in table) == sum(cells[3] == "1" for cells in table) == 4
    assert table[-1][4:] == ["–", "–", "–"]
    top1 = [float(cells[4]) for cells in table if cells[4] != "–"]
    assert top1 == sorted(top1, reverse=True)
    assert len(top1) == 12
    failures = next(table for table in page.tables if table[0] == ["trials", "reason"])
    assert failures[1][1] == 'OutOfMemoryError: <GPU 0> & "more"'
    assert failures[1][0].count(" s0") == 4
    assert "epochs that early stopping saved24 of 144 (17 %)" in page.text  # 4 trials stopped at 3 of 9; 16 were told
    assert "one seed" in page.text
    assert "±" not in page.text.replace("mean ±", "")
    names = [image["alt"] for image in page.images]
    assert any(str(name).startswith("Importance: ") and "K " in str(name) for name in names)


def test_a_long_search_shows_its_best(read: Callable[[ReportData], Page]) -> None:
    told = search(60)
    page = read(dataclasses.replace(told, histories={}, spec=dataclasses.replace(told.spec, parameters=SEARCHED[:1])))
    rows = build_rows(told.spec, told.results)
    assert len(rows) == 60
    assert [cells[4] for cells in page.tables[0][1:]] == [format_figure(row.val) for row in rows[:30]]
    assert "The best 30 of 60 configurations; 30 more, 6 of them finished" in page.text


def test_two_objectives_have_a_front(read: Callable[[ReportData], Page]) -> None:
    told = search(20, ("val_top1", "flops"))
    page = read(told)
    assert "Pareto front" in page.headings
    finished = [o for o in told.results if o.status == "finished"]

    def beaten(one: TrialResult) -> bool:
        gains = [
            (o.metrics["val/top1"] - one.metrics["val/top1"], one.metrics["model/gflops"] - o.metrics["model/gflops"])
            for o in finished
        ]
        return any(min(gain) >= 0 and max(gain) > 0 for gain in gains)

    expected = sorted((o for o in finished if not beaten(o)), key=lambda o: o.metrics["model/gflops"])
    assert 1 < len(expected) < len(finished)
    headings, *table = next(table for table in page.tables if table[0][0] == "#")
    assert headings == ["#", "trial", "GFLOPs a clip", "validation top-1 [%]", "run"]
    assert [cells[-1] for cells in table] == [o.run_id for o in expected]
    assert [float(cells[2]) for cells in table] == pytest.approx(
        [o.metrics["model/gflops"] for o in expected], rel=1e-3
    )


def test_equal_trials_are_on_the_front_together() -> None:
    spec = make_sweep([], objectives=("flops", "val_top1"))
    points = [(80.0, 1.0), (80.0, 1.0), (79.0, 1.0), (80.0, 2.0), (81.0, 2.0)]
    results = [
        TrialResult(str(i), "x", 0, {}, str(i), "finished", {"val/top1": top1, "model/gflops": flops})
        for i, (top1, flops) in enumerate(points)
    ]
    assert [o.run_id for o in pareto_front(spec, results)] == ["0", "1", "4"]


def test_where_nothing_is_held_out_nothing_is_chosen(read: Callable[[ReportData], Page]) -> None:
    paper = dataclasses.replace(BASE, data=dataclasses.replace(BASE.data, protocol="paper"))
    told = grid({3: 78.0, 9: 81.0}, base=paper, objectives=("test_top1",))
    told = dataclasses.replace(
        told,
        results=[
            dataclasses.replace(o, metrics={m: v for m, v in o.metrics.items() if m != "val/top1"})
            for o in told.results
        ],
        histories={run_id: {"val/top1": {}, "train/loss": h["train/loss"]} for run_id, h in told.histories.items()},
    )
    page = read(told)
    assert "nothing was chosen" in page.text
    assert page.tables[0][0][:4] == ["K", "finished", "test\ntop-1 %", "difference to\nbaseline, 95 %"]
    row = build_rows(told.spec, told.results)[1]
    assert row.test_difference is not None
    assert page.tables[0][2][3] == f"{row.test_difference.mean:+.1f} ± {row.test_difference.half_width:.1f}"
    assert "best" not in page.tables[0][1][0] + page.tables[0][2][0]
    assert page.headings[:3] == ["Table", "Accuracy by K", "Learning curves"]  # of the loss
    assert not any("early stopping" in heading for heading in page.headings)


HOSTILE = '<script>alert("1")</script> & $x_{$'


def test_what_comes_from_outside_is_escaped(read: Callable[[ReportData], Page]) -> None:
    told = grid({HOSTILE: 80.0, "b": 79.0}, name="<i>", title=HOSTILE, dataset_name=HOSTILE, source=HOSTILE)
    results = [dataclasses.replace(told.results[-1], status="failed", reason=HOSTILE), *told.results[:-1]]
    page = read(dataclasses.replace(told, results=results, notes=[HOSTILE], again=HOSTILE, sweep_id=HOSTILE))
    assert page.tags.isdisjoint({"script", "i"})
    assert page.text.count(HOSTILE) >= 8
    assert page.tables[0][1][0].startswith(HOSTILE)
    assert page.headings[1] == "Accuracy by <i>"
    assert any(HOSTILE in str(image["alt"]) for image in page.images)


@pytest.mark.parametrize("begun", [True, False])
def test_without_a_finished_trial_there_is_no_answer(read: Callable[[ReportData], Page], begun: bool) -> None:
    told = grid({3: 78.0, 9: 81.0})
    failed = [dataclasses.replace(o, status="failed", metrics={}, reason="boom") for o in told.results]
    page = read(dataclasses.replace(told, results=failed if begun else [], histories={}))
    assert "No trial has finished" in page.text
    assert page.headings == ["Table", *["Failures"] * begun, "Settings", "How to repeat it"]
    assert [cells[0] for cells in page.tables[0][1:]] == ["3baseline", "9"]
    assert set(page.tables[0][2][-3:]) == {"–"}
    assert "fgst.evaluate" not in page.text
    assert ("6 failed" if begun else "none has begun") in page.text


def test_one_trial_and_numbers_that_are_none(read: Callable[[ReportData], Page]) -> None:
    told = dataclasses.replace(grid({15: 80.0}, seeds=1), again=AGAIN + " --tracking-uri sqlite:///team.db --yes")
    page = read(told)
    assert f"python -m fgst.evaluate --run-id {0:032x} --tracking-uri sqlite:///team.db<" in page.source
    assert "K=15 is the best by validation: 80.0 % (one seed), and 78.5 % on the test clips." in page.text
    assert page.headings == ["Table", "Accuracy by K", "Learning curves", "Cost", "Settings", "How to repeat it"]
    lost = [dataclasses.replace(told.results[0], metrics={"val/top1": math.nan, "device_seconds": math.nan})]
    assert "Cost" not in read(dataclasses.replace(told, results=lost)).headings


def test_single_seeds_are_not_compared(read: Callable[[ReportData], Page]) -> None:
    page = read(dataclasses.replace(grid({3: 78.0, 9: 81.0}, seeds=1), histories={}))
    assert "what is noise cannot be told" in page.text
    assert "difference" not in " ".join(page.tables[0][0])
    assert "±" not in page.text


@pytest.mark.parametrize("stop", [EarlyStop(1, 3), None])
@pytest.mark.parametrize("early", ["as the end", "only the best", "the opposite"])
def test_the_rank_report_is_said_in_words(
    read: Callable[[ReportData], Page], monkeypatch: pytest.MonkeyPatch, stop: EarlyStop | None, early: str
) -> None:
    monkeypatch.setattr(page_module.plots, "learning", lambda *shown: Path(shown[-1]).write_bytes(b" " * 20))
    monkeypatch.setattr(page_module.plots, "curve", lambda *shown: Path(shown[-1]).write_bytes(b" " * 20))
    told = grid({3: 70.0, 9: 75.0, 15: 80.0, 18: 79.0}, seeds=1, early_stop=stop)
    finals = [o.metrics["val/top1"] for o in told.results]
    opposite = [100 - final for final in finals]
    starts = {
        "as the end": finals,
        "only the best": [60.0, 40.0, 90.0, 20.0],  # the others against it
        "the opposite": opposite,
    }[early]
    histories = {o.run_id: history(final, start=s) for o, final, s in zip(told.results, finals, starts, strict=True)}
    page = read(dataclasses.replace(told, histories=histories))
    said = {
        (True, "as the end"): "early stopping looks safe",
        (True, "only the best"): "may well have stopped one as good",
        (True, "the opposite"): "Early stopping was a risk. After epoch 1",
        (False, "as the end"): "Early stopping would have been safe",
        (False, "only the best"): "Early stopping would have been safe",
        (False, "the opposite"): "Early stopping would not have been safe",
    }
    assert said[stop is not None, early] in page.text
    table = next(table for table in page.tables if table[0][0] == "after epoch")
    tau = {"as the end": "+1.00", "only the best": "+0.00", "the opposite": "−1.00"}[early]
    assert table[1] == ["1 of 9", tau, "4", "lost" if early == "the opposite" else "kept"]


def test_importances_or_why_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    shares, words = importances(search(30).study)
    assert max(shares, key=lambda name: shares[name]) == "K"
    assert sum(shares.values()) == pytest.approx(1)
    assert "among the best" in words
    assert importances(None)[0] == {}
    assert "there are 3" in importances(search(3).study)[1]
    alike = optuna.create_study()
    for _ in range(5):
        asked = alike.ask()
        asked.suggest_int("K", 1, 9)
        alike.tell(asked, 1.0)
    assert importances(alike) == ({}, "all trials came out alike")

    def refuse(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("no regime.\nmore")

    monkeypatch.setattr(optuna.importance, "get_param_importances", refuse)
    assert importances(search(10).study) == ({}, "no regime")
