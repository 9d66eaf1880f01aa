"""Tables of ``fgst runs``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fgst.parsing import printable
from fgst.result_setting import COLUMNS
from fgst.table_files import NamedTable, records_to_csv, rows_to_csv
from fgst.terminal import print_table

RUNS_PER_TABLE = 3  # columns of a comparison
NOT_COMPARABLE = "other data sets or benchmarks: accuracies on different test clips cannot be compared"


def list_tables(report: dict[str, Any]) -> list[NamedTable]:
    """Tables of the result of :func:`fgst.tracking.queries.list_runs` or ``list_trials``, one per experiment."""
    tables = []
    for experiment, rows in itertools.groupby(sorted(report["runs"], key=lambda r: r["experiment"]), _experiment):
        shown = list(rows)
        table = _table("run", "status", "val %", "test %", "min", "age")
        for row in shown:
            star = " * best by validation" if row.get("best") else ""
            trials = ", ".join(f"{count} {status}" for status, count in row.get("trials", {}).items())
            summary = f"{row['kind']}: {trials or 'no trials'}\n" if row["kind"] == "sweep" else ""
            table.add_row(
                _text(row["name"], star, "\n", summary, _setting(row), row["run_id"]), _text(row["ending"]),
                _percent(row["val_top1"]), _percent(row["test_top1"]), _minutes(row["minutes"]),
                _age(row["age_seconds"]),
            )  # fmt: skip
        tables.append(NamedTable(_name(experiment), table, records_to_csv([_record(row) for row in shown]), experiment))
    return tables


def print_list(report: dict[str, Any]) -> None:
    """Print :func:`list_tables`."""
    console = Console(highlight=False)
    if not report["runs"]:
        console.print("no runs")
    _print(console, list_tables(report))
    if report["more"]:
        console.print(f"and {report['more']} older runs; show more with --limit")


def best_tables(report: dict[str, Any]) -> list[NamedTable]:
    """Tables of the result of :func:`fgst.tracking.queries.best_runs`, one per group."""
    tables = []
    for number, group in enumerate(report["groups"], 1):
        table = _table("run", "val %", "test %", "min", "settings that differ")
        table.columns[-1].justify = "left"
        for row in group["runs"]:
            settings = "\n".join(f"{name.partition('.')[2] or name}={value}" for name, value in row["settings"].items())
            kind = " (ensemble)" if row["kind"] == "ensemble" else ""
            table.add_row(
                _text(row["name"], kind, "\n", _setting(row), row["run_id"]), _percent(row["val_top1"]),
                _percent(row["test_top1"]), _minutes(row["minutes"]), _text(settings),
            )  # fmt: skip
        title = f"{group['experiment']}: best of {group['candidates']} by validation ({group['validation']})"
        name = f"{_name(group['experiment'])}-{number}"
        tables.append(NamedTable(name, table, records_to_csv([_record(row) for row in group["runs"]]), title))
    return tables


def print_best(report: dict[str, Any]) -> None:
    """Print :func:`best_tables`."""
    console = Console(highlight=False)
    if not report["groups"]:
        console.print("no run has a validation accuracy")
    _print(console, best_tables(report))


def compare_tables(report: dict[str, Any]) -> list[NamedTable]:
    """Tables of the result of :func:`fgst.tracking.queries.compare_runs`, each of a few runs; the first has the CSV."""
    names = ["", *(f"{run['name']} {run['run_id']}" for run in report["runs"])]
    settings = list(zip(*(run["setting"].values() for run in report["runs"]), strict=True))
    rows = [names, *([column, *values] for column, values in zip(COLUMNS, settings, strict=True))]
    rows += [[name, *values] for name, values in (report["parameters"] | report["metrics"]).items()]
    tables = []
    for start in range(0, len(report["runs"]), RUNS_PER_TABLE):
        part = slice(start, start + RUNS_PER_TABLE)
        table = _table("", *(f"{run['name'][:16]}\n{run['run_id'][:8]}" for run in report["runs"][part]))
        for name, values in zip(COLUMNS, settings, strict=True):
            table.add_row(_text(name), *map(_text, values[part]))
        table.add_section()
        table.add_row(*[""] * len(table.columns))
        for name, values in report["parameters"].items():
            table.add_row(_text(name), *(_text("-" if v is None else v) for v in values[part]))
        table.add_section()
        table.add_row(*[""] * len(table.columns))
        for name, numbers in report["metrics"].items():
            table.add_row(_text(name), *("-" if n is None else f"{n:.6g}" for n in numbers[part]))
        if not report["same_clips"]:
            table.caption = NOT_COMPARABLE
        name = f"comparison-{start // RUNS_PER_TABLE + 1}" if start else "comparison"
        tables.append(NamedTable(name, table, rows_to_csv(rows), "Comparison of runs"))
    return tables


def print_compare(report: dict[str, Any]) -> None:
    """Print :func:`compare_tables`."""
    console = Console(highlight=False)
    for named in compare_tables(report):
        print_table(console, named.table)


def print_gc(report: dict[str, Any]) -> None:
    """Print the result of :func:`fgst.tracking.queries.collect_garbage`."""
    console = Console(highlight=False)
    if report["found"]:
        table = _table("", "what", "size", "")
        table.columns[1].justify = "left"
        for row in report["found"]:
            status = row.get("fault") or ("removed" if row["removed"] else "")
            if not status and not row["place"]:
                status = f"in {row['store']}: cannot be deleted from here"
            table.add_row(
                _text(row["name"], "\n", row["run_id"]), row["what"], format_size(row["bytes"]), _text(status)
            )
        print_table(console, table)
    for reason, count in report["kept"].items():
        console.print(_text(f"retained: {count} {'trial' if count == 1 else 'trials'} ({reason})"))
    remote, local = report["elsewhere_bytes"], report["bytes"] - report["elsewhere_bytes"]
    if remote:
        console.print(
            f"{format_size(remote)} are on a server, in an object store or outside the folder of the tracking store, "
            "where this command deletes nothing; delete them there by the run ids above"
        )
    if report["delete"]:
        console.print(f"removed {format_size(report['removed_bytes'])} of {format_size(local)}")
    elif local:
        console.print(f"{format_size(local)} can be freed; delete with --delete")
    else:
        console.print("nothing to free on this machine")


TABLES = {"list": list_tables, "best": best_tables, "compare": compare_tables}
PRINTERS = {"list": print_list, "best": print_best, "compare": print_compare, "gc": print_gc}


def format_size(count: int) -> str:
    """Format a number of bytes, e.g. ``1.2 MB``."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _print(console: Console, tables: Sequence[NamedTable]) -> None:
    for named in tables:
        console.print(_text(named.title, style="bold"))
        print_table(console, named.table)


def _setting(row: dict[str, Any]) -> str:
    """A line with what a run's result was obtained with; empty if it is not recorded."""
    setting = row["setting"]
    words = [setting[name] for name in ("protocol", "modality", "preset") if setting[name] != "-"]
    units = {"passes": "pass", "seeds": "seed"} if row["kind"] != "trial" else {"passes": "pass"}
    words += [f"{setting[name]} {unit if setting[name] == '1' else name}" for name, unit in units.items()
              if setting[name] != "-"]  # fmt: skip
    return f"{', '.join(words)}\n" if words else ""


def _record(row: dict[str, Any]) -> dict[str, Any]:
    """A run as a record of numbers and text, for CSV."""
    names = ("run_id", "kind", "name", "ending", "val_top1", "test_top1", "minutes")
    return {"experiment": row.get("experiment")} | {name: row[name] for name in names} | row["setting"]


def _name(experiment: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", experiment).strip("-").lower() or "runs"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
    for number, column in enumerate(columns):
        table.add_column(_text(column), justify="right" if number else "left", overflow="fold", no_wrap=False)
    if columns[0] == "run":
        table.columns[0].min_width = 32  # run ids must fit on a line, because they are copied from here
    return table


def _text(*parts: Any, style: str = "") -> Text:
    """Join parts into text without interpreting markup; control characters are escaped."""
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
