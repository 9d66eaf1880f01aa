"""Published results next to a sweep's: in its own table only if they are comparable, otherwise in one of their own."""

from __future__ import annotations

from rich.table import Table

from fgst.result_setting import COLUMNS
from fgst.sweep.definition import format_params, format_value
from fgst.sweep.spec import SweepSpec
from fgst.table_files import rows_to_csv


def heading(spec: SweepSpec) -> str:
    """What is published, and why it cannot be compared with the sweep's results if it cannot."""
    reason = why_not_comparable(spec)
    return f"Published results, {reason}" if reason else "Published results"


def why_not_comparable(spec: SweepSpec) -> str:
    """Why the published results are not in the table of the sweep's; empty if they are."""
    if spec.has_comparable_published:
        return ""
    theirs = spec.published_setting
    if theirs is None or not spec.public_benchmark or theirs.data != spec.public_benchmark:
        return "not comparable with this sweep: another data set"
    return "not comparable with this sweep: another modality"


def settings(spec: SweepSpec) -> list[tuple[str, ...]]:
    """What the sweep's and the published results were obtained with; the columns are :data:`COLUMNS`, after a name."""
    rows = [("this sweep", *spec.setting.cells())]
    if spec.published_setting is not None:  # sweeps of earlier versions did not record it
        rows.append((spec.source or "published", *spec.published_setting.cells()))
    return rows


def values(spec: SweepSpec) -> list[tuple[str, str]]:
    """The published values: label of the configuration, and top-1 in %."""
    names = [parameter.name for parameter in spec.parameters]
    if len(names) == 1:
        return [(format_value(value), f"{top1:.1f}") for value, top1 in spec.published]
    return [(format_params(dict(zip(names, value, strict=False))), f"{top1:.1f}") for value, top1 in spec.published]


def values_in_words(spec: SweepSpec) -> str:
    """The published values in one line, e.g. ``Table 2, top-1 % by K: 3: 88.6, 6: 88.9``."""
    listed = ", ".join(f"{label}: {top1}" for label, top1 in values(spec))
    return f"{spec.source or 'published'}, top-1 % by {spec.axis}: {listed}"


def to_csv(spec: SweepSpec) -> str:
    """The published values with their settings, as CSV."""
    theirs = spec.published_setting
    headings = [spec.axis, "top1", "source", *(column.replace(" ", "_") for column in COLUMNS)]
    cells = theirs.cells() if theirs is not None else [None] * len(COLUMNS)
    return rows_to_csv([headings, *([label, top1, spec.source, *cells] for label, top1 in values(spec))])


def published_table(spec: SweepSpec) -> Table | None:
    """The settings of the sweep's and of the published results, for the terminal; ``None`` if nothing is published."""
    if not spec.published:
        return None
    table = Table(title=heading(spec), title_justify="left", caption_justify="left")
    table.add_column("results")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in ("passes", "seeds") else "left")
    for row in settings(spec):
        table.add_row(*row)
    if not spec.has_comparable_published:
        table.caption = values_in_words(spec)
    return table
