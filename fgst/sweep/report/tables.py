"""The table that a sweep leaves, as text and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from fgst.sweep.results import Difference, MeanStd, Row
from fgst.sweep.spec import SweepSpec

SHOWN = 20  # rows of a search that a terminal shows


def format_figure(figure: MeanStd | None) -> str:
    """``81.2``, or ``81.2 ± 0.4`` over several seeds, or ``-``."""
    if figure is None:
        return "-"
    mean, std = figure
    return f"{mean:.1f} ± {std:.1f}" if std == std and std > 0 else f"{mean:.1f}"


def format_difference(difference: Difference | None) -> str:
    """``+0.8 ± 0.5``; in brackets where that is within noise."""
    if difference is None:
        return "-"
    text = f"{difference.mean:+.1f} ± {difference.half_width:.1f}"
    return text if difference.beyond_noise else f"({text})"


def to_csv(spec: SweepSpec, rows: Sequence[Row]) -> str:
    """The table as CSV, unrounded."""
    text = io.StringIO()
    writer = csv.writer(text)
    columns = ("val_top1", "test_top1", "minutes")
    names = [f"{column}_{kind}" for column in columns for kind in ("mean", "std")]
    differences = [f"{split}_difference{kind}" for split in ("val", "test") for kind in ("", "_half_width_95")]
    writer.writerow([spec.axis, "finished", "trials", "pruned", "failed", *names, *differences, "paper_top1"])
    for row in rows:
        figures = [value for figure in (row.val, row.test, row.minutes) for value in (figure or ("", ""))]
        for difference in (row.val_difference, row.test_difference):
            figures += (difference.mean, difference.half_width) if difference else ("", "")
        published = "" if row.published is None else row.published
        writer.writerow([short(spec, row.label), row.finished, row.trials, row.pruned, row.failed, *figures, published])
    return text.getvalue()


def to_markdown(spec: SweepSpec, rows: Sequence[Row], best: str | None) -> str:
    """The table in brief, as MLflow's page of a run shows it under its name."""
    shown = rows[:SHOWN]
    several = any(row.trials > 1 for row in rows)
    lines = [f"**{spec.title}**", "", "| | val top-1 % | test top-1 % | paper |", "| --- | --- | --- | --- |"]
    for row in shown:
        label = f"**{row.label}**" if row.label == best else row.label
        published = "" if row.published is None else f"{row.published:.1f}"
        lines.append(f"| {label} | {format_figure(row.val)} | {format_figure(row.test)} | {published} |")
    lines += [""] + [f"mean ± standard deviation of {spec.seeds} seeds"] * several + ["More: artifact report.html"]
    return "\n".join(lines)


def short(spec: SweepSpec, label: str) -> str:
    """A row's label under its heading: the value alone where one thing is varied."""
    return label.partition("=")[2] if len(spec.parameters) == 1 else label


def print_table(spec: SweepSpec, rows: Sequence[Row], best: str | None, baseline: str | None = None) -> None:
    """The table on stdout; the best row (by validation) is marked. A search's shows what ran to the end."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=spec.title, title_justify="left", caption_justify="left")
    ended = rows if spec.search == "grid" else [row for row in rows if row.finished]
    shown = ended if spec.search == "grid" else ended[:SHOWN]
    one = len(spec.parameters) == 1
    table.add_column(spec.axis if one else "trial", justify="right", no_wrap=one)  # a long label may be of two lines
    several = any(row.trials > 1 for row in shown)
    compared = any(row.val_difference or row.test_difference for row in rows)
    published = any(row.published is not None for row in rows)
    halted = spec.search == "grid" and any(row.pruned or row.failed for row in rows)
    paper = spec.base.data.protocol == "paper"
    headings = ["finished"] * several + ["stopped,\nfailed"] * halted
    headings += ["validation\ntop-1 %"] * (not paper) + ["test\ntop-1 %"]
    headings += ["difference\n95 %"] * compared + ["minutes"] + ["paper\ntop-1 %"] * published
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in shown:
        cells = [short(spec, row.label) + (" *" if row.label == best else "")]
        cells += [f"{row.finished} of {row.trials}"] * several
        cells += [f"{row.pruned}, {row.failed}"] * halted
        cells += [format_figure(row.val)] * (not paper) + [format_figure(row.test)]
        cells += [format_difference(row.test_difference if paper else row.val_difference)] * compared
        cells.append(format_figure(row.minutes))
        cells += ["-" if row.published is None else f"{row.published:.1f}"] * published
        table.add_row(*cells)
    notes = [f"paper: {spec.source}"] * published + ["* best by validation"] * (best is not None)
    if compared:
        what = "test" if paper else "validation"
        notes.append(f"difference: {what}, to {baseline}, same seeds; (within noise)")
    if len(shown) < len(ended):
        notes.append(f"{len(ended) - len(shown)} more in the report")
    if spec.search != "grid":
        for count, what in (
            (sum(row.pruned for row in rows), "stopped early"),
            (sum(r.failed for r in rows), "failed"),
        ):
            notes += [f"{count} {what}"] * bool(count)
    table.caption = " · ".join(notes) or None
    Console(highlight=False, width=None).print(table)
