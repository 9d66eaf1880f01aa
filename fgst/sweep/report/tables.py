"""The result table of a sweep, for the terminal, as CSV and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fgst import terminal
from fgst.result_setting import COLUMNS
from fgst.sweep.definition import format_value
from fgst.sweep.noise import Difference
from fgst.sweep.report import published_results
from fgst.sweep.results import MeanStd, Row
from fgst.sweep.spec import SweepSpec
from fgst.table_files import BEST, NOTE_SEPARATOR, NamedTable, rows_to_csv

MAX_ROWS = 20  # of a search, on a terminal
WIDTH_WITH_CLIPS = 96  # columns of a terminal that has room for the noise of clips; the text below says it as well


def format_mean_std(value: MeanStd | None) -> str:
    """Format as ``81.2``, as ``81.2 ± 0.4`` where the standard deviation is positive, or as ``-`` for ``None``."""
    if value is None:
        return "-"
    mean, std = value
    return f"{mean:.1f} ± {std:.1f}" if std > 0 else f"{mean:.1f}"


def format_difference(difference: Difference | None) -> str:
    """Format as ``+0.8 ± 0.5``, in parentheses if that is within noise, or as ``-`` for ``None``."""
    if difference is None:
        return "-"
    text = f"{difference.mean:+.1f} ± {difference.half_width:.1f}"
    return text if difference.beyond_noise else f"({text})"


def _format_half_width(difference: Difference | None) -> str:
    """Format as ``± 1.2``, in parentheses if the difference is within noise, or as ``-`` for ``None``."""
    if difference is None:
        return "-"
    text = f"± {difference.half_width:.1f}"
    return text if difference.beyond_noise else f"({text})"


def row_heading(spec: SweepSpec, row: Row) -> str:
    """Name a row: its value if the sweep varies one parameter, else its whole label (``K=15 P=10``)."""
    if len(spec.parameters) == 1 and len(row.params) == 1:
        return format_value(next(iter(row.params.values())))
    return row.label


def row_number(spec: SweepSpec, row: Row) -> float | None:
    """The row's value of a sweep's only parameter as a finite number; ``None`` if it is not one."""
    try:
        value = float(row_heading(spec, row))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def to_csv(spec: SweepSpec, rows: Sequence[Row]) -> str:
    """Format all rows as CSV, with unrounded values and empty cells for missing ones.

    The last columns are what the sweep's results were obtained with, unless varied.
    """
    columns = ("val_top1", "test_top1", "minutes")
    names = [f"{column}_{statistic}" for column in columns for statistic in ("mean", "std")]
    differences = [f"{split}_difference{suffix}" for split in ("val", "test") for suffix in ("", "_half_width_95")]
    noise = ["seeds_p_holm", "clips_half_width_95", "clips_p_holm"]
    setting = {name.replace(" ", "_"): cell for name, cell in zip(COLUMNS, spec.setting.cells(), strict=True)}
    setting.pop(spec.axis, None)  # the modality may be what is varied
    lines: list[list[Any]] = [
        [spec.axis, "finished", "trials", "pruned", "failed", *names, *differences, "paper_top1", *noise, *setting]
    ]
    for row in rows:
        values = [value for mean_std in (row.val, row.test, row.minutes) for value in (mean_std or ("", ""))]
        for difference in (row.val_difference, row.test_difference):
            values += (difference.mean, difference.half_width) if difference else ("", "")
        seeds = row.test_difference if spec.compared_split == "test" else row.val_difference
        clips = row.clip_difference
        noise_cells = [seeds.p_value if seeds else "", *((clips.half_width, clips.p_value) if clips else ("", ""))]
        counts = (row.finished, row.trials, row.pruned, row.failed)
        lines.append([row_heading(spec, row), *counts, *values, row.published, *noise_cells, *setting.values()])
    return rows_to_csv(lines)


def to_markdown(spec: SweepSpec, rows: Sequence[Row], best: str | None) -> str:
    """Format the first rows as a Markdown table, for the description of the sweep's MLflow run.

    Args:
        best: label of the row to print in bold.
    """
    has_seeds = any(row.trials > 1 for row in rows)
    headings = ["", "val top-1 %", "test top-1 %"] + ["paper"] * spec.has_comparable_published
    lines = [f"**{spec.title}**", "", *_markdown_rows([headings, ["---"] * len(headings)])]
    for row in rows[:MAX_ROWS]:
        cells = [f"**{row.label}**" if row.label == best else row.label]
        cells += [format_mean_std(row.val), format_mean_std(row.test)]
        cells += ["" if row.published is None else f"{row.published:.1f}"] * spec.has_comparable_published
        lines += _markdown_rows([cells])
    lines += ["", f"Setting: {spec.setting.in_words()}", ""]
    if has_seeds:
        lines += [f"mean ± standard deviation over {spec.seeds} {spec.repetitions}", ""]
    if spec.published:
        headings = ["", *COLUMNS]
        lines += [f"**{published_results.heading(spec)}**", ""]
        lines += [*_markdown_rows([headings, ["---"] * len(headings), *published_results.settings(spec)]), ""]
        lines += [published_results.values_in_words(spec), ""] * (not spec.has_comparable_published)
    lines.append("More in the artifact report.html")
    return "\n".join(lines)


def _markdown_rows(rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in rows]


def print_table(spec: SweepSpec, rows: Sequence[Row], best: str | None, baseline: str | None = None) -> None:
    """Print the table to stdout, and that of published results if there are any; see :func:`results_table`.

    Published results are not printed for generated motion, which is not compared with anything; the report has them.
    """
    console = Console(highlight=False)
    for named in named_tables(spec, rows, best, baseline, console.width):
        if named.name == "published" and spec.generated:
            continue
        terminal.print_table(console, named.table)


def named_tables(
    spec: SweepSpec, rows: Sequence[Row], best: str | None, baseline: str | None = None, width: int | None = None
) -> list[NamedTable]:
    """The tables of a sweep, as printed and for files: its results, and what is published."""
    tables = [NamedTable("results", results_table(spec, rows, best, baseline, width), to_csv(spec, rows))]
    if (table := published_results.published_table(spec)) is not None:
        tables.append(NamedTable("published", table, published_results.to_csv(spec)))
    return tables


def results_table(
    spec: SweepSpec, rows: Sequence[Row], best: str | None, baseline: str | None = None, width: int | None = None
) -> Table:
    """Return the table of results. That of a search contains configurations with a finished trial only.

    Args:
        best: label of the best row by validation, which gets an asterisk.
        baseline: label of the row that differences refer to.
        width: columns of the terminal; ``None`` for a file.
    """
    is_grid, is_paper = spec.search == "grid", spec.base.data.protocol == "paper"
    has_one_parameter = len(spec.parameters) == 1
    candidates = rows if is_grid else [row for row in rows if row.finished]
    shown = candidates if is_grid else candidates[:MAX_ROWS]
    has_seeds = any(row.trials > 1 for row in shown)
    has_losses = is_grid and any(row.pruned or row.failed for row in rows)
    has_differences = any(row.val_difference or row.test_difference for row in rows)
    has_clips = has_differences and any(row.clip_difference for row in rows) and not spec.varies_folds
    has_clips = has_clips and (width is None or width >= WIDTH_WITH_CLIPS)
    has_published = any(row.published is not None for row in rows)

    table = Table(title=spec.title, title_justify="left", caption_justify="left")
    # Labels of several parameters are long and may wrap.
    table.add_column(spec.axis if has_one_parameter else "trial", justify="right", no_wrap=has_one_parameter)
    headings = ["finished"] * has_seeds + ["stopped,\nfailed"] * has_losses
    headings += ["validation\ntop-1 %"] * (not is_paper) + ["test\ntop-1 %"]
    headings += ["difference\n95 %"] * has_differences + ["other\nclips"] * has_clips
    headings += ["minutes"] + ["paper\ntop-1 %"] * has_published
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in shown:
        # As text: brackets in a value are no markup.
        cells: list[str | Text] = [Text(row_heading(spec, row) + (BEST if row.label == best else ""))]
        cells += [f"{row.finished} of {row.trials}" if row.dropped is None else f"{row.finished}, dropped"] * has_seeds
        cells += [f"{row.pruned}, {row.failed}"] * has_losses
        cells += [format_mean_std(row.val)] * (not is_paper) + [format_mean_std(row.test)]
        cells += [format_difference(row.test_difference if is_paper else row.val_difference)] * has_differences
        cells += [_format_half_width(row.clip_difference)] * has_clips
        cells.append(format_mean_std(row.minutes))
        cells += ["-" if row.published is None else f"{row.published:.1f}"] * has_published
        table.add_row(*cells, style="bold" if row.label == best else None)

    notes = [spec.setting.in_words()] + [f"paper: {spec.source}"] * has_published
    notes += ["* best by validation"] * (best is not None)
    notes += [f"validation: {spec.held_out}"] * bool(spec.held_out)
    if has_differences:
        split = "test" if is_paper else "validation"
        notes.append(f"difference: {split}, to {baseline}, same {spec.repetitions}; (within noise)")
        notes += ["other clips: interval that includes the choice of clips"] * has_clips
    if len(shown) < len(candidates):
        notes.append(f"{len(candidates) - len(shown)} more in the report")
    if not is_grid:
        notes += [f"{count} stopped early" for count in [sum(row.pruned for row in rows)] if count]
        notes += [f"{count} failed" for count in [sum(row.failed for row in rows)] if count]
    table.caption = NOTE_SEPARATOR.join(notes)
    return table
