"""Published results are in the table and figure of a sweep only if they are of the same clips and modality."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fgst.evaluation import plots as evaluation_plots
from fgst.result_setting import COLUMNS, ResultSetting
from fgst.sweep.modality_ensemble import EnsembleResult, Line, ensemble_table
from fgst.sweep.report import plots
from fgst.sweep.report.html import ReportData, write_report
from fgst.sweep.report.tables import print_table, to_csv, to_markdown
from fgst.sweep.results import build_rows
from fgst.sweep.spec import SweepSpec
from tests.sweep.report.test_html import PAPER, Page, grid_report

NTU = dataclasses.replace(PAPER, data="NTU-60 X-Sub")
PUBLISHED = ((3, 88.6), (9, 89.0))
TITLE = "Published results, not comparable with this sweep: another data set"


def report(**changes: Any) -> ReportData:
    """Make the report of a grid on NW-UCLA, next to the results of a paper on NTU-60 by default."""
    defaults: dict[str, Any] = {
        "published": PUBLISHED,
        "source": "Table 2",
        "published_setting": NTU,
        "public_benchmark": "NW-UCLA X-View",
    }
    return grid_report({3: 78.0, 9: 81.0}, **defaults | changes)


@pytest.fixture
def read(tmp_path: Path) -> Callable[[ReportData], Page]:
    return lambda data: Page(write_report(data, tmp_path))


def legend_of(data: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Draw the accuracy curve, and return the texts of its legend."""
    figures: list[Any] = []

    def save_figure(figure: Any, path: Path) -> None:
        figures.append(figure)
        evaluation_plots.save_figure(figure, path)

    monkeypatch.setattr(plots, "save_figure", save_figure)
    plots.accuracy_curve(data.spec, build_rows(data.spec, data.results), tmp_path / "curve.png")
    (axes,) = figures[0].axes
    return [text.get_text() for text in axes.get_legend().get_texts()]


def printed(data: ReportData, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Print the tables of a sweep; return that of results, and what follows it."""
    monkeypatch.setenv("COLUMNS", "200")
    print_table(data.spec, build_rows(data.spec, data.results), None)
    text = capsys.readouterr().out
    before, found, after = text.partition("Published results")
    return before, found + after


def test_values_of_another_data_set_are_in_a_table_of_their_own(
    read: Callable[[ReportData], Page], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = report()
    rows = build_rows(data.spec, data.results)
    assert [row.published for row in rows] == [None, None]

    page = read(data)
    results, settings, values = page.tables[:3]
    assert not any("paper" in heading for heading in results[0])
    assert not any("88.6" in cell for row in results for cell in row)
    assert settings[0] == ["results", *COLUMNS]
    assert settings[1] == ["this sweep", "NW-UCLA X-View", "validation", "joint", "paper", "45", "3"]
    assert settings[2] == ["Table 2", "NTU-60 X-Sub", "paper", "joint", "paper", "80", "not stated"]
    assert values == [["K", "Table 2,\ntop-1 %"], ["3", "88.6"], ["9", "89.0"]]
    assert TITLE in page.headings

    table, after = printed(data, capsys, monkeypatch)
    assert "88.6" not in table
    assert "paper\n" not in table
    assert TITLE in after
    assert "Table 2, top-1 % by K: 3: 88.6, 9: 89.0" in after

    markdown = to_markdown(data.spec, rows, None)
    table, _, after = markdown.partition(TITLE)
    assert "88.6" not in table
    assert "| Table 2 | NTU-60 X-Sub | paper | joint | paper | 80 | not stated |" in after
    assert "3: 88.6" in after

    (first, _) = csv.DictReader(io.StringIO(to_csv(data.spec, rows)))
    assert first["paper_top1"] == ""
    assert (first["data_set"], first["protocol"], first["passes"], first["seeds"]) == (
        "NW-UCLA X-View", "validation", "45", "3",
    )  # fmt: skip


def test_published_values_are_not_printed_after_a_sweep_on_generated_motion(
    read: Callable[[ReportData], Page], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = report(generated=True)
    assert printed(data, capsys, monkeypatch)[1] == ""
    assert TITLE in read(data).headings


def test_values_of_the_same_benchmark_are_a_column(
    read: Callable[[ReportData], Page], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = report(public_benchmark="NTU-60 X-Sub")
    rows = build_rows(data.spec, data.results)
    page = read(data)
    assert page.tables[0][0][-1] == "paper\ntop-1 %"
    assert [row[-1] for row in page.tables[0][1:]] == ["88.6", "89.0"]
    assert page.tables[1][0] == ["results", *COLUMNS]
    assert "Published results" in page.headings
    table, after = printed(data, capsys, monkeypatch)
    assert "88.6" in table
    assert "not comparable" not in after
    assert "| K=3 | 77.8 ± 0.2 | 76.3 ± 0.2 | 88.6 |" in to_markdown(data.spec, rows, None)


def test_figure_has_published_curve_only_of_the_same_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert legend_of(report(), tmp_path, monkeypatch) == ["validation", "test"]
    assert legend_of(report(public_benchmark="NTU-60 X-Sub"), tmp_path, monkeypatch) == ["paper", "validation", "test"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"public_benchmark": ""}, "another data set"),
        ({"published_setting": dataclasses.replace(PAPER, modality="bone")}, "another modality"),
        ({"published_setting": None}, "another data set"),  # a sweep of an earlier version
        ({"published_setting": dataclasses.replace(NTU, data=""), "public_benchmark": ""}, "another data set"),
    ],
)
def test_reason_is_given(changes: dict[str, Any], reason: str, read: Callable[[ReportData], Page]) -> None:
    data = report(**changes)
    assert f"Published results, not comparable with this sweep: {reason}" in read(data).headings
    assert all(row.published is None for row in build_rows(data.spec, data.results))


def test_sweep_without_published_results_has_no_such_table(
    read: Callable[[ReportData], Page], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = report(published=(), source="", published_setting=None)
    assert not any("Published" in heading for heading in read(data).headings)
    table, after = printed(data, capsys, monkeypatch)
    assert after == ""
    assert "NW-UCLA X-View, protocol validation, joint, preset paper, 45 passes, 3 seeds" in " ".join(table.split())


@pytest.mark.parametrize(("public", "shown"), [("NW-UCLA X-View", True), ("", False)])
def test_ensemble_shows_papers_accuracy_of_the_same_clips_only(public: str, shown: bool) -> None:
    spec: SweepSpec = report(public_benchmark=public).spec
    assert spec.experiment == "nw-ucla x-view"  # the name alone says nothing
    lines = (Line(("joint",), "alone", None, (90.0, 1.0)), Line(("joint", "bone"), "equal", None, (92.0, 1.0)))
    caption = str(ensemble_table(EnsembleResult("a" * 32, lines, is_refit=False), spec).caption)
    paper = "paper: 97.0 % (NW-UCLA X-View, protocol paper, J + B + JM + BM, preset paper, 80 passes"
    assert (paper in caption) == shown
    assert "protocol validation, J + B, preset paper, 45 passes, 3 seeds" in caption


def test_setting_in_words() -> None:
    assert ResultSetting("demo x-sub", "validation", "joint_motion", "tiny", "1", "1").in_words() == (
        "demo x-sub, protocol validation, joint motion, preset tiny, 1 pass, 1 seed"
    )
