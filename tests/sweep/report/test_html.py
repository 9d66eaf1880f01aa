"""The HTML report, read back by an HTML parser: numbers, sections, and escaping of user input."""

from __future__ import annotations

import base64
import dataclasses
import math
import shlex
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState

from fgst.config import DataConfig, ModelConfig, TrainConfig, TrialConfig
from fgst.result_setting import ResultSetting
from fgst.sweep.definition import Parameter, Trial, format_params
from fgst.sweep.report import plots
from fgst.sweep.report.analysis import early_stopping_verdict, parameter_importance, pareto_front
from fgst.sweep.report.html import ReportData, write_report
from fgst.sweep.report.tables import format_mean_std
from fgst.sweep.results import Rung, TrialResult, build_rows
from fgst.sweep.spec import EarlyStopping, SweepSpec
from fgst.sweep.status import TrialStatus

PAPER = ResultSetting("NW-UCLA X-View", "paper", "joint", "paper", "80", "not stated")
SAME_BENCHMARK: dict[str, Any] = {"published_setting": PAPER, "public_benchmark": "NW-UCLA X-View"}
EPOCHS = 9
BASE = TrialConfig(ModelConfig(), DataConfig("data", "x-view"), TrainConfig(epochs=EPOCHS, repeat=5))
RESUME = ["python", "sweeps/focal_k.py", "--resume", "ab" * 16]
SEARCHED = (
    Parameter("K", low=2, high=20),
    Parameter("heads", (1, 2)),
    Parameter("d2", low=1, high=4, condition=("heads", (2,))),
    Parameter("lr", low=0.005, high=0.2, log=True),
)


class Page(HTMLParser):
    """The visible content of a page: headings, text, tables as rows of cells, and pictures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.headings: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.text = ""
        self._element: str | None = None
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
        self._element = tag if tag in ("h2", "td", "th", "style") else self._element

    def handle_endtag(self, tag: str) -> None:
        if tag == self._element or tag in ("td", "th"):
            self._element = None

    def handle_data(self, data: str) -> None:
        if self._element == "style":
            return
        self.text += data
        if self._element == "h2":
            self.headings[-1] += data
        elif self._element in ("td", "th"):
            self.tables[-1][-1][-1] += data


def make_sweep(
    parameters: Sequence[Parameter], trials: Sequence[Trial] = (), base: TrialConfig = BASE, **changes: Any
) -> SweepSpec:
    spec = SweepSpec(
        name="focal_k", title="How many?", parameters=tuple(parameters), search="grid", seeds=3, limit=None,
        objectives=("val_top1",), early_stop=None, initial_points=(), base=base, trials=tuple(trials), published=(),
        source="", baseline="", dataset_name="nw-ucla", dataset_digest="9f" * 32,
    )  # fmt: skip
    return dataclasses.replace(spec, **changes)


def history(final: float, last: int = EPOCHS, start: float = 20) -> dict[str, dict[int, float]]:
    """Rise linearly from ``start`` to ``final``, up to epoch ``last``."""
    val = {epoch: start + (final - start) * epoch / EPOCHS for epoch in range(1, last + 1)}
    return {"val/top1": val, "train/loss": {epoch: 2 - epoch / EPOCHS for epoch in val}}


def grid_report(means: dict[Any, float], name: str = "K", seeds: int = 3, **changes: Any) -> ReportData:
    """Make the report of a grid. Seeds differ by 0.2, in opposite directions in even and odd rows."""
    trials: list[Trial] = []
    results, histories = [], {}
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
            status = TrialStatus.FINISHED
            results.append(TrialResult(trial.trial_id, trial.label, seed, params, run_id, status, metrics))
            histories[run_id] = history(top1)
    spec = make_sweep([Parameter(name, tuple(means))], trials, seeds=seeds, **changes)
    return ReportData(spec, results, histories, None, "ab" * 16, RESUME)


def search_report(count: int, objectives: Sequence[str] = ("val_top1",), pruned_at: int = 3) -> ReportData:
    """Make the report of a search. Of every five trials, the fourth is pruned and the fifth fails."""
    directions = {"val_top1": StudyDirection.MAXIMIZE, "flops": StudyDirection.MINIMIZE}
    study = optuna.create_study(
        directions=[directions[name] for name in objectives], sampler=optuna.samplers.RandomSampler(seed=0)
    )
    results, histories = [], {}
    for number in range(count):
        trial = study.ask()
        params: dict[str, Any] = {
            "K": trial.suggest_int("K", 2, 20),
            "heads": trial.suggest_categorical("heads", (1, 2)),
        }
        if params["heads"] == 2:
            params["d2"] = trial.suggest_int("d2", 1, 4)
        params["lr"] = trial.suggest_float("lr", 0.005, 0.2, log=True)
        status = {3: TrialStatus.PRUNED, 4: TrialStatus.FAILED}.get(number % 5, TrialStatus.FINISHED)
        top1 = 60 + params["K"] + number / 100
        run_id = f"{number:032x}"
        metrics = {"model/gflops": 1 + (params["K"] + number * 7 % 5) / 10, "device_seconds": 360.0}
        if status != TrialStatus.FAILED:
            histories[run_id] = history(top1, EPOCHS if status == TrialStatus.FINISHED else pruned_at)
            metrics["val/top1"] = [*histories[run_id]["val/top1"].values()][-1]
        reason = 'OutOfMemoryError: <GPU 0> & "more"' if status == TrialStatus.FAILED else ""
        results.append(TrialResult(str(number), format_params(params), 0, params, run_id, status, metrics, reason))
        if status == TrialStatus.FINISHED:
            study.tell(trial, [metrics["val/top1"], metrics["model/gflops"]][: len(objectives)])
        else:
            study.tell(trial, state=TrialState.PRUNED if status == TrialStatus.PRUNED else TrialState.FAIL)
    spec = make_sweep(
        SEARCHED, search="optuna" if len(objectives) == 1 else "nsga2", seeds=1, limit=count,
        objectives=tuple(objectives), early_stop=EarlyStopping(1, 3) if len(objectives) == 1 else None,
    )  # fmt: skip
    return ReportData(spec, results, histories, study, "ab" * 16, RESUME)


@pytest.fixture
def read(tmp_path: Path) -> Callable[[ReportData], Page]:
    return lambda data: Page(write_report(data, tmp_path))


def test_grid_report_shows_table_answer_and_settings(read: Callable[[ReportData], Page]) -> None:
    means = {3: 78.0, 9: 82.0, 15: 80.0, 20: 80.1}
    data = grid_report(means, published=((9, 89.0),), source="Table 2", baseline=15, **SAME_BENCHMARK)
    page = read(data)
    assert page.headings == [
        "Table", "Published results", "Accuracy by K", "Learning curves", "Would early stopping have been safe?",
        "Cost", "Settings", "Reproducing the results",
    ]  # fmt: skip
    headings, *table = page.tables[0]
    assert [heading.split()[0] for heading in headings] == [
        "K", "finished", "validation", "test", "difference", "minutes", "paper",
    ]  # fmt: skip
    rows = build_rows(data.spec, data.results)
    assert len(table) == len(rows) == 4
    for cells, row, value in zip(table, rows, means, strict=True):
        assert cells[0].startswith(str(value))
        assert ("best" in cells[0], "baseline" in cells[0]) == (value == 9, value == 15)
        assert cells[1:4] == ["3 of 3", format_mean_std(row.val), format_mean_std(row.test)]
        if row.val_difference is None:
            assert cells[4] == "–"
        else:
            text = f"{row.val_difference.mean:+.1f} ± {row.val_difference.half_width:.1f}".replace("-", "−")
            assert cells[4] == ("" if row.val_difference.beyond_noise else "within noise") + text
        assert cells[5:] == ["3.0 ± 1.0", "89.0" if value == 9 else "–"]
    assert "within noise" in table[3][4]
    best = rows[1]
    assert best.val_difference is not None
    answer = f"K=9 is the best by validation: {format_mean_std(best.val)} % (mean ± standard deviation over 3 seeds)"
    assert answer in page.text
    assert "; it differs from the baseline K=15 by +" in page.text
    assert "points (95 % interval), which is beyond noise." in page.text
    for fact in ("12 by grid: 12 finished", "nw-ucla · x-view · joint", "9 epochs of 5 passes"):
        assert fact in page.text
    assert shlex.join(RESUME) in page.source
    assert "python -m fgst.evaluate --run-id " + f"{5:032x}" in page.source  # the best seed of K=9
    assert data.spec.dataset_digest in page.text
    assert ["train.epochs", "9"] in page.tables[-1]


def test_report_is_one_file_without_external_resources(read: Callable[[ReportData], Page], tmp_path: Path) -> None:
    page = read(grid_report({3: 78.0, 9: 81.0}))
    assert "http" not in page.source
    assert page.tags.isdisjoint({"script", "link", "iframe"})
    assert "prefers-color-scheme: dark" in page.source
    pictures = {base64.b64decode(str(image["src"]).partition("base64,")[2]) for image in page.images}
    assert pictures == {path.read_bytes() for path in (tmp_path / "figures").glob("*.png")}
    assert len(pictures) == 2
    assert all(image["alt"] for image in page.images)


def test_drawing_leaves_matplotlib_settings_unchanged(read: Callable[[ReportData], Page]) -> None:
    before = dict(matplotlib.rcParams)
    read(grid_report({3: 78.0, 9: 81.0}))
    assert dict(matplotlib.rcParams) == before


def test_cost_is_summed_over_trials(read: Callable[[ReportData], Page]) -> None:
    page = read(grid_report({3: 78.0, 9: 81.0}))
    cost = dict(next(table for table in page.tables if table[0][0].startswith("device hours")))
    assert [*cost.values()] == ["3.00", "1.50", "3.00 GiB", "102"]  # 6 · 1800 s, 6 · 0.25, max, median of 100 … 105


def test_search_report_shows_pruned_and_failed_trials(read: Callable[[ReportData], Page]) -> None:
    data = search_report(20)
    page = read(data)
    assert page.headings == [
        "Table", "Learning curves", "Parallel coordinates", "Parameter importance", "Was early stopping safe?",
        "Failures", "Cost", "Settings", "Reproducing the results",
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
    # 4 of 16 trials were stopped after 3 of 9 epochs.
    assert ["epochs saved by early stopping", "24 of 144 (17 %)"] in next(t for t in page.tables if "hours" in t[0][0])
    assert "one seed" in page.text
    assert "±" not in page.text.replace("mean ±", "")
    alternatives = [image["alt"] for image in page.images]
    assert any(str(alt).startswith("Importance: ") and "K " in str(alt) for alt in alternatives)


def test_long_search_shows_its_best_rows(read: Callable[[ReportData], Page]) -> None:
    data = search_report(60)
    page = read(dataclasses.replace(data, histories={}, spec=dataclasses.replace(data.spec, parameters=SEARCHED[:1])))
    rows = build_rows(data.spec, data.results)
    assert len(rows) == 60
    assert [cells[4] for cells in page.tables[0][1:]] == [format_mean_std(row.val) for row in rows[:30]]
    assert "The best 30 of 60 configurations; 30 more, 6 of them finished" in page.text


def test_search_for_two_objectives_shows_the_pareto_front(read: Callable[[ReportData], Page]) -> None:
    data = search_report(20, ("val_top1", "flops"))
    page = read(data)
    assert "Pareto front" in page.headings
    finished = [result for result in data.results if result.status == TrialStatus.FINISHED]

    def is_dominated(trial: TrialResult) -> bool:
        own = trial.metrics
        gains = [
            (other.metrics["val/top1"] - own["val/top1"], own["model/gflops"] - other.metrics["model/gflops"])
            for other in finished
        ]
        return any(min(gain) >= 0 and max(gain) > 0 for gain in gains)

    expected = sorted(
        (result for result in finished if not is_dominated(result)), key=lambda result: result.metrics["model/gflops"]
    )
    assert 1 < len(expected) < len(finished)
    headings, *table = next(table for table in page.tables if table[0][0] == "#")
    assert headings == ["#", "trial", "GFLOPs per clip", "validation top-1 [%]", "run"]
    assert [cells[-1] for cells in table] == [result.run_id for result in expected]
    # Four significant digits are off by at most half a unit in the last one: 5e-4 of the value.
    assert [float(cells[2]) for cells in table] == pytest.approx(
        [result.metrics["model/gflops"] for result in expected], rel=5e-4
    )


def test_pareto_front_includes_equal_trials() -> None:
    spec = make_sweep([], objectives=("flops", "val_top1"))
    values = [(80.0, 1.0), (80.0, 1.0), (79.0, 1.0), (80.0, 2.0), (81.0, 2.0)]
    results = [
        TrialResult(str(i), "x", 0, {}, str(i), TrialStatus.FINISHED, {"val/top1": top1, "model/gflops": gflops})
        for i, (top1, gflops) in enumerate(values)
    ]
    assert [result.run_id for result in pareto_front(spec, results)] == ["0", "1", "4"]


def test_report_selects_no_configuration_under_the_paper_protocol(read: Callable[[ReportData], Page]) -> None:
    paper = dataclasses.replace(BASE, data=dataclasses.replace(BASE.data, protocol="paper"))
    data = grid_report({3: 78.0, 9: 81.0}, base=paper, objectives=("test_top1",))
    data = dataclasses.replace(
        data,
        results=[
            dataclasses.replace(r, metrics={m: v for m, v in r.metrics.items() if m != "val/top1"})
            for r in data.results
        ],
        histories={run_id: {"val/top1": {}, "train/loss": h["train/loss"]} for run_id, h in data.histories.items()},
    )
    page = read(data)
    assert "no configuration was selected" in page.text
    assert page.tables[0][0][:4] == ["K", "finished", "test\ntop-1 %", "difference to\nbaseline, 95 %"]
    row = build_rows(data.spec, data.results)[1]
    assert row.test_difference is not None
    assert page.tables[0][2][3] == f"{row.test_difference.mean:+.1f} ± {row.test_difference.half_width:.1f}"
    assert "best" not in page.tables[0][1][0] + page.tables[0][2][0]
    assert page.headings[:3] == ["Table", "Accuracy by K", "Learning curves"]  # the curves are those of the loss
    assert not any("early stopping" in heading for heading in page.headings)


HOSTILE = '<script>alert("1")</script> & $x_{$ {{ 7 * 7 }}'


def test_user_input_is_escaped(read: Callable[[ReportData], Page]) -> None:
    data = grid_report({HOSTILE: 80.0, "b": 79.0}, name="<i>", title=HOSTILE, dataset_name=HOSTILE, source=HOSTILE)
    results = [dataclasses.replace(data.results[-1], status=TrialStatus.FAILED, reason=HOSTILE), *data.results[:-1]]
    page = read(dataclasses.replace(data, results=results, notes=[HOSTILE], resume_command=[HOSTILE], sweep_id=HOSTILE))
    assert page.tags.isdisjoint({"script", "i"})
    assert page.text.count(HOSTILE) >= 8
    assert page.tables[0][1][0].startswith(HOSTILE)
    assert page.headings[1] == "Accuracy by <i>"
    assert any(HOSTILE in str(image["alt"]) for image in page.images)


@pytest.mark.parametrize("is_started", [True, False])
def test_report_without_finished_trials(read: Callable[[ReportData], Page], is_started: bool) -> None:
    data = grid_report({3: 78.0, 9: 81.0})
    failed = [dataclasses.replace(r, status=TrialStatus.FAILED, metrics={}, reason="boom") for r in data.results]
    page = read(dataclasses.replace(data, results=failed if is_started else [], histories={}))
    assert "No trial has finished" in page.text
    assert page.headings == ["Table", *["Failures"] * is_started, "Settings", "Reproducing the results"]
    assert [cells[0] for cells in page.tables[0][1:]] == ["3baseline", "9"]
    assert set(page.tables[0][2][-3:]) == {"–"}
    assert "fgst.evaluate" not in page.text
    assert ("6 failed" if is_started else "none started") in page.text


def test_report_of_a_single_trial(read: Callable[[ReportData], Page]) -> None:
    page = read(grid_report({15: 80.0}, seeds=1))
    assert "K=15 is the best by validation: 80.0 % (one seed), with 78.5 % on the test clips." in page.text
    assert page.headings == [
        "Table", "Accuracy by K", "Learning curves", "Cost", "Settings", "Reproducing the results",
    ]  # fmt: skip


def test_metrics_that_are_not_finite_are_omitted(read: Callable[[ReportData], Page]) -> None:
    data = grid_report({15: 80.0}, seeds=1)
    result = dataclasses.replace(data.results[0], metrics={"val/top1": math.nan, "device_seconds": math.nan})
    assert "Cost" not in read(dataclasses.replace(data, results=[result])).headings


def test_evaluation_command_uses_the_tracking_store_of_the_sweep(read: Callable[[ReportData], Page]) -> None:
    words = [*RESUME, "--tracking-uri", "sqlite:///a team.db", "--yes"]
    page = read(dataclasses.replace(grid_report({15: 80.0}, seeds=1), resume_command=words))
    assert shlex.join(words) in page.text
    assert f"python -m fgst.evaluate --run-id {0:032x} --tracking-uri 'sqlite:///a team.db'\n" in page.text


def test_single_seeds_are_not_compared(read: Callable[[ReportData], Page]) -> None:
    page = read(dataclasses.replace(grid_report({3: 78.0, 9: 81.0}, seeds=1), histories={}))
    assert "differences cannot be separated from noise" in page.text
    assert "difference" not in " ".join(page.tables[0][0])
    assert "±" not in page.text


@pytest.mark.parametrize("early_stop", [EarlyStopping(1, 3), None])
@pytest.mark.parametrize("early_order", ["as at the end", "only the best is right", "reversed"])
def test_early_stopping_section_judges_the_early_order(
    read: Callable[[ReportData], Page],
    monkeypatch: pytest.MonkeyPatch,
    early_stop: EarlyStopping | None,
    early_order: str,
) -> None:
    def write_dummy_png(*arguments: Any) -> None:
        Path(arguments[-1]).write_bytes(b" " * 20)

    monkeypatch.setattr(plots, "learning_curves", write_dummy_png)
    monkeypatch.setattr(plots, "accuracy_curve", write_dummy_png)
    data = grid_report({3: 70.0, 9: 75.0, 15: 80.0, 18: 79.0}, seeds=1, early_stop=early_stop)
    finals = [result.metrics["val/top1"] for result in data.results]
    starts = {
        "as at the end": finals,
        "only the best is right": [60.0, 40.0, 90.0, 20.0],
        "reversed": [100 - final for final in finals],
    }[early_order]
    histories = {r.run_id: history(final, start=s) for r, final, s in zip(data.results, finals, starts, strict=True)}
    page = read(dataclasses.replace(data, histories=histories))
    verdicts = {
        (True, "as at the end"): "early stopping looks safe",
        (True, "only the best is right"): "an equally good trial may have been stopped",
        (True, "reversed"): "Early stopping was a risk. After epochs 1 and 3",
        (False, "as at the end"): "Early stopping would have been safe",
        (False, "only the best is right"): "Early stopping would have been safe",
        (False, "reversed"): "Early stopping would not have been safe",
    }
    assert verdicts[early_stop is not None, early_order] in page.text
    table = next(table for table in page.tables if table[0][0] == "after epoch")
    tau = {"as at the end": "+1.00", "only the best is right": "+0.00", "reversed": "−1.00"}[early_order]
    assert table[1] == ["1 of 9", tau, "4", "stopped" if early_order == "reversed" else "continues"]


def test_early_stopping_verdict_names_every_epoch_that_lost_the_best_trial() -> None:
    rungs = [Rung(1, 0.9, 8, False), Rung(3, 0.9, 8, False), Rung(9, None, 8, True)]
    assert "After epochs 1 and 3, the trial" in early_stopping_verdict(rungs, EarlyStopping(1, 3))


def test_parameter_importance_ranks_parameters() -> None:
    shares, caption = parameter_importance(search_report(30).study)
    assert max(shares, key=lambda name: shares[name]) == "K"
    assert sum(shares.values()) == pytest.approx(1)
    assert "among the best" in caption


def test_parameter_importance_gives_a_reason_if_it_cannot_be_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parameter_importance(None)[0] == {}
    assert "there are 3" in parameter_importance(search_report(3).study)[1]
    constant = optuna.create_study()
    for _ in range(5):
        trial = constant.ask()
        trial.suggest_int("K", 1, 9)
        constant.tell(trial, 1.0)
    assert parameter_importance(constant) == ({}, "all trials have the same result")

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("no regime.\nmore")

    monkeypatch.setattr(optuna.importance, "get_param_importances", fail)
    assert parameter_importance(search_report(10).study) == ({}, "no regime")
