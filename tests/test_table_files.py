"""Tables as LaTeX, checked by a small parser and, where it is installed, by pdfLaTeX; and as CSV."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from fgst.errors import InputError
from fgst.table_files import NamedTable, check_files, escape, records_to_csv, to_csv, to_latex, write_tables

HOSTILE = r"\input{/etc/passwd} $x$ & 50 % #1 a_b ~ ^ {} <b> | \\ `'\" --set"
DOCUMENT = (
    r"\documentclass{article}\usepackage{booktabs}\usepackage{threeparttable}\begin{document}%s\end{document}"
    "\n"
)


def make_table() -> Table:
    """Make a table with a best row, several lines in a cell, notes, and text that LaTeX would interpret."""
    table = Table(title="How many?", caption="demo x-sub · * best by validation · difference: (within noise)")
    table.add_column("K", justify="right")
    table.add_column("validation\ntop-1 %", justify="right")
    table.add_column(Text("name"))
    table.add_row("3", "-", "*first*")
    table.add_row("15 *", "+0.8 ± 0.5", Text("[red]two[/red]\nlines"), style="bold")
    table.add_row("", "", "")
    table.add_row(Text("[not red]"), "(-1.0 ± 2.0)", HOSTILE)
    return table


def rows_of(latex: str) -> list[list[str]]:
    """The cells of the outer tabular: split at ampersands and line ends outside of nested tabulars."""
    body = latex.partition(r"\toprule")[2].partition(r"\bottomrule")[0]
    body = re.sub(r"\\begin\{tabular\}.*?\\end\{tabular\}", lambda match: match[0].replace("\\\\", "/"), body)
    body = body.replace(r"\midrule", "")
    lines = [line.strip() for line in re.split(r"(?<!\\textbackslash)\\\\", body) if line.strip()]
    return [[cell.strip() for cell in re.split(r"(?<!\\)&", line)] for line in lines]


def test_latex_has_the_cells_of_the_table() -> None:
    latex = to_latex(NamedTable("results", make_table()))
    heading, first, best, last = rows_of(latex)
    assert r"\begin{tabular}{rrl}" in latex
    assert heading == ["K", r"\begin{tabular}[b]{@{}r@{}}validation / top-1 \%\end{tabular}", "name"]
    assert first == ["3", "--", "*first*"]
    assert best[:2] == [r"\textbf{\boldmath 15}\tnote{*}", r"\textbf{\boldmath $+$0.8 $\pm$ 0.5}"]
    assert best[2].startswith(r"\begin{tabular}[t]{@{}l@{}}\textbf{\boldmath [red]two[/red]} / ")
    assert last[:2] == ["{}[not red]", r"($-$1.0 $\pm$ 2.0)"]
    assert latex.count(r"\midrule") == 2  # of the header, and between the groups
    notes = re.findall(r"\\item(.*)", latex)
    assert notes == [" demo x-sub", "[*] best by validation", " difference: (within noise)"]
    assert r"\caption{How many?}" in latex
    assert r"\label{tab:results}" in latex


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_escaped_text_contains_no_command_of_its_own(text: str) -> None:
    escaped = escape(text)
    known = r"textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar|dots"
    signs = r"\+|-|\^\\circ|\\(pm|times|cdot|leq|geq|to|leftarrow|mu)"
    rest = re.sub(rf"\\({known})\{{\}}|\\`\{{\}}|\\[{{}}$&#%_]|\$({signs})\$", "", escaped)
    rest = rest.replace("{''}", "").replace("{}", "")
    assert not set(rest) & set('\\{}$&#%_~^<>|"`')
    assert all(character.isprintable() or character == "\n" for character in escaped)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-1.5 and +2", "$-$1.5 and $+$2"),
        ("nw-ucla x-view 2026-11-26", "nw-ucla x-view 2026-11-26"),
        ("--set a_b=1", r"-{}-set a\_b=1"),
        ("5 – 7 · 50 %", r"5 -- 7 $\cdot$ 50 \%"),
        ("Übung\x00\x1b[31m", "Übung[31m"),
    ],
)
def test_escape(text: str, expected: str) -> None:
    assert escape(text) == expected


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path: Path) -> None:
    tables = [NamedTable("one", make_table()), NamedTable("two", Table("a", "b", title=HOSTILE, caption=HOSTILE))]
    tables[1].table.add_row(HOSTILE, "* [x]")
    (path,) = write_tables(tables, tmp_path / "tables.tex", None)
    (tmp_path / "main.tex").write_text(DOCUMENT % rf"\input{{{path.name}}}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_csv_has_unrounded_values_or_the_cells(tmp_path: Path) -> None:
    cells = list(csv.reader(to_csv(NamedTable("results", make_table())).splitlines()))
    assert cells[0] == ["K", "validation top-1 %", "name"]
    assert cells[1] == ["3", "-", "*first*"]
    exact = NamedTable("per-class", make_table(), records_to_csv([{"top1": 81.25, "note": None}]))
    files = write_tables([exact, NamedTable("other", make_table())], None, tmp_path / "t.csv")
    assert files == [tmp_path / "t.csv", tmp_path / "t-other.csv"]
    assert (tmp_path / "t.csv").read_text().splitlines() == ["top1,note", "81.25,"]
    assert len((tmp_path / "t-other.csv").read_text().splitlines()) >= 5
    assert records_to_csv([]) == ""


def test_wide_table_is_not_in_latex(tmp_path: Path) -> None:
    tables = [NamedTable("one", make_table()), NamedTable("wide", make_table(), csv_only=True)]
    write_tables(tables, tmp_path / "t.tex", tmp_path / "t.csv")
    assert re.findall("tab:([a-z]+)", (tmp_path / "t.tex").read_text()) == ["one"]
    assert (tmp_path / "t-wide.csv").exists()


@pytest.mark.parametrize(
    ("latex", "table", "message"),
    [
        ("missing/t.tex", None, "--latex missing/t.tex: there is no folder missing; create it first"),
        (None, ".", "--csv .: is a folder"),
        ("same", "same", "--latex and --csv are the same file same"),
    ],
)
def test_unusable_files_are_reported(
    latex: str | None, table: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)):
        check_files(latex, table)
    check_files("t.tex", "t.csv")
