"""Tables of ``fgst evaluate``."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from fgst.evaluation.report import flat_rows
from fgst.table_files import NOTE_SEPARATOR, NamedTable, records_to_csv, rows_to_csv

MAX_COLUMNS = 20
"""Classes of a confusion matrix that fits a page; a larger one is written as CSV only."""
METRICS = {
    "top5": "top-5 [%]",
    "mean_class": "mean over classes [%]",
    "ece": "calibration error [%]",
    "loss": "cross-entropy [nats]",
}


def per_class_table(report: dict[str, Any], title: str | None = None) -> Table:
    """The number of correct clips by class."""
    table = Table("class", "clips", "correct", "top-1 %", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in report["per_class"]:
        top1 = "-" if row["top1"] is None else f"{row['top1']:.1f}"
        table.add_row(Text(row["class"]), str(row["num_clips"]), str(row["correct"]), top1)
    return table


def report_tables(report: dict[str, Any]) -> list[NamedTable]:
    """Tables of an evaluation for files: per class, metrics, confused pairs and, if compared, the other run."""
    what = f"{report['num_clips']} {report['split']} clips of {report['dataset']} {report['benchmark']}"
    low, high = report["top1_interval"]
    metrics = Table("metric", "value", title=f"Metrics on {what}", caption="interval: 95 %, bootstrap over clips")
    metrics.columns[1].justify = "right"
    # As text: brackets are no markup.
    metrics.add_row(Text("top-1 [%]"), f"{report['top1']:.2f}")
    metrics.add_row(Text("interval [%]"), f"{low:.2f} to {high:.2f}")
    for name, title in METRICS.items():
        metrics.add_row(Text(title), f"{report[name]:.2f}")
    values = {name: report[name] for name in ("num_clips", "top1", *METRICS)}
    confused = Table("true class", "classified as", "clips", "% of the class", title=f"Most confused classes on {what}")
    for pair in report["confused"]:
        confused.add_row(Text(pair["true"]), Text(pair["predicted"]), str(pair["count"]), f"{pair['share']:.1f}")
    for column in confused.columns[2:]:
        column.justify = "right"
    pairs = [{name: pair[name] for name in ("true", "predicted", "count", "share")} for pair in report["confused"]]
    tables = [
        NamedTable(
            "per-class", per_class_table(report, f"Top-1 by class on {what}"), records_to_csv(report["per_class"])
        ),
        NamedTable("metrics", metrics, records_to_csv([values | {"top1_low": low, "top1_high": high}])),
        NamedTable("confused", confused, records_to_csv(pairs)),
        _confusion(report, what),
    ]
    if "compare" in report:
        tables.append(_compared(report, what))
    return tables


def _confusion(report: dict[str, Any], what: str) -> NamedTable:
    classes = [row["class"] for row in report["per_class"]]
    # Names of columns would be too wide.
    table = Table("true class", *map(str, range(1, len(classes) + 1)), title=f"Confusion matrix of {what}")
    for column in table.columns[1:]:
        column.justify = "right"
    for number, (name, counts) in enumerate(zip(classes, report["confusion"], strict=True), 1):
        table.add_row(Text(f"{number} {name}"), *(str(count) if count else "" for count in counts))
    table.caption = "rows: true classes; columns: predicted classes, by their numbers; clips"
    rows = [["true class", *classes]]
    rows += [[name, *counts] for name, counts in zip(classes, report["confusion"], strict=True)]
    return NamedTable("confusion", table, rows_to_csv(rows), csv_only=len(classes) > MAX_COLUMNS)


def _compared(report: dict[str, Any], what: str) -> NamedTable:
    comparison = report["compare"]
    first, second = f"run {report['run_id'][:8]}", f"run {comparison['run_id'][:8]}"
    table = Table("class", "clips", f"{first}\ntop-1 %", f"{second}\ntop-1 %", "difference\n95 %")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in comparison["per_class"]:
        low, high = row["interval"]
        table.add_row(
            Text(row["class"]), str(row["num_clips"]), f"{row['first']:.1f}", f"{row['second']:.1f}",
            f"{row['difference']:+.1f} ({low:+.1f} to {high:+.1f})", style="bold" if row["beyond_noise"] else None,
        )  # fmt: skip
    low, high = comparison["interval"]
    table.title = f"Comparison by class on {what}"
    table.caption = NOTE_SEPARATOR.join(
        (
            f"all clips: {comparison['difference']:+.2f} ({low:+.2f} to {high:+.2f}), McNemar p = "
            f"{comparison['p_value']:.2g}",
            "bold: McNemar's exact test, corrected for the number of classes (Holm, 5 %)",
        )
    )
    return NamedTable("comparison", table, records_to_csv(flat_rows(comparison["per_class"])))
