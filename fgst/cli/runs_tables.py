"""The answers of :mod:`fgst.cli.runs` as tables, readable at 80 columns."""

from __future__ import annotations

import itertools
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fgst.data.sources import printable

SIDE_BY_SIDE = 3  # runs that a comparison shows beside each other


def print_list(report: dict[str, Any]) -> None:
    console = Console(highlight=False)
    if not report["runs"]:
        console.print("no runs")
    for experiment, rows in itertools.groupby(sorted(report["runs"], key=lambda r: r["experiment"]), _experiment):
        table = _table("run", "ending", "val %", "test %", "min", "age")
        for row in rows:
            star = " * best by validation" if row.get("best") else ""
            folded = ", ".join(f"{count} {ending}" for ending, count in row.get("trials", {}).items())
            what = f"{row['kind']}: {folded or 'no trials'}\n" if row["kind"] == "sweep" else ""
            table.add_row(
                _text(row["name"], star, "\n", what, row["run_id"]), _text(row["ending"]), _percent(row["val_top1"]),
                _percent(row["test_top1"]), _minutes(row["minutes"]), _age(row["age_seconds"]),
            )  # fmt: skip
        console.print(_text(experiment, style="bold"))
        console.print(table)
    if report["more"]:
        console.print(f"and {report['more']} older ones; --limit shows more")


def print_best(report: dict[str, Any]) -> None:
    console = Console(highlight=False)
    if not report["groups"]:
        console.print("no run has a validation figure")
    for group in report["groups"]:
        table = _table("run", "val %", "test %", "min", "settings that differ")
        table.columns[-1].justify = "left"
        for row in group["runs"]:
            settings = "\n".join(f"{name.partition('.')[2] or name}={value}" for name, value in row["settings"].items())
            kind = " (ensemble)" if row["kind"] == "ensemble" else ""
            table.add_row(
                _text(row["name"], kind, "\n", row["run_id"]), _percent(row["val_top1"]), _percent(row["test_top1"]),
                _minutes(row["minutes"]), _text(settings),
            )  # fmt: skip
        where = f": best of {group['candidates']} by validation ({group['validation']})"
        console.print(_text(group["experiment"], where, style="bold"))
        console.print(table)


def print_compare(report: dict[str, Any]) -> None:
    console = Console(highlight=False)
    for start in range(0, len(report["runs"]), SIDE_BY_SIDE):
        part = slice(start, start + SIDE_BY_SIDE)
        table = _table("", *(f"{run['name'][:16]}\n{run['run_id'][:8]}" for run in report["runs"][part]))
        for name, values in report["parameters"].items():
            table.add_row(_text(name), *(_text("-" if v is None else v) for v in values[part]))
        table.add_section()
        table.add_row(*[""] * len(table.columns))
        for name, numbers in report["metrics"].items():
            table.add_row(_text(name), *("-" if n is None else f"{n:.6g}" for n in numbers[part]))
        console.print(table)


def print_gc(report: dict[str, Any]) -> None:
    console = Console(highlight=False)
    if report["found"]:
        table = _table("", "what", "size", "")
        table.columns[1].justify = "left"
        for row in report["found"]:
            told = row.get("fault") or ("removed" if row["removed"] else "")
            told = told or ("" if row["place"] else f"in {row['store']}: not from here")
            table.add_row(_text(row["name"], "\n", row["run_id"]), row["what"], size(row["bytes"]), _text(told))
        console.print(table)
    for reason, count in report["kept"].items():
        console.print(_text(f"kept: {count} {'trial' if count == 1 else 'trials'}, {reason}"))
    elsewhere, here = report["elsewhere_bytes"], report["bytes"] - report["elsewhere_bytes"]
    if elsewhere:
        console.print(
            f"{size(elsewhere)} lie in a store that this command cannot delete from (a server's, or an object store): "
            "remove them where they lie, by the run ids above"
        )
    if report["delete"]:
        console.print(f"removed {size(report['removed_bytes'])} of {size(here)}")
    elif here:
        console.print(f"{size(here)} can be freed; --delete removes it")
    else:
        console.print("nothing here can be freed")


def size(count: int) -> str:
    """``1.2 MB``."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        # Ids are copied from here: they are never cut or broken, other columns give way.
        first = number == 0
        table.add_column(_text(column), justify="left" if first else "right", overflow="fold", no_wrap=False)
    if columns[0] == "run":
        table.columns[0].min_width = 32
    return table


def _text(*parts: Any, style: str = "") -> Text:
    """Names as they are, never as markup or control characters."""
    lines = "".join(str(part) for part in parts).split("\n")
    return Text("\n".join(printable(line) for line in lines), style=style)


def _experiment(row: dict[str, Any]) -> str:
    return str(row["experiment"])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _minutes(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
