"""What a sweep reports: the result table as text, CSV and Markdown, and a self-contained HTML page with pictures.

The names below are imported on first use: every sweep needs the table, while the page imports matplotlib and Jinja2.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgst.sweep.report.html import write_report
    from fgst.sweep.report.sections import ReportData
    from fgst.sweep.report.tables import format_difference, format_mean_std, print_table, to_csv, to_markdown

__all__ = [
    "ReportData",
    "format_difference",
    "format_mean_std",
    "print_table",
    "to_csv",
    "to_markdown",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "html" if name in ("ReportData", "write_report") else "tables"
    return getattr(import_module(f"{__name__}.{module}"), name)
