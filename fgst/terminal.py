"""Tables on terminals of any width."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # only commands that print tables import it
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text


MAX_WIDTH = 10_000


def print_table(console: Console, table: Table) -> None:
    """Print a table; on a console that is too narrow, print each row as lines ``column: cell`` instead."""
    from rich.measure import Measurement  # lazy: only commands that print tables need it

    for column in table.columns:
        column.overflow = "fold"  # by default, Rich replaces the ends of long words with "…"
    if Measurement.get(console, console.options.update(width=MAX_WIDTH), table).minimum <= console.width:
        console.print(table)
        return
    first, *others = table.columns
    lines = [_text(console, table.title or "")]
    for cells in zip(*(list(column.cells) for column in table.columns), strict=True):
        lines.append(_text(console, first.header, " ", cells[0]))
        lines += [
            _text(console, "  ", column.header, ": ", cell) for column, cell in zip(others, cells[1:], strict=True)
        ]
    lines.append(_text(console, table.caption or ""))
    for line in lines:
        if line.plain.strip():
            console.print(line, overflow="fold")


def _text(console: Console, *parts: RenderableType) -> Text:
    """Join parts of a table into one line."""
    from rich.text import Text  # lazy: only commands that print tables need it

    texts = [console.render_str(part) if isinstance(part, str) else part for part in parts]
    return Text(" ").join(line for line in Text.assemble(*texts).split())  # type: ignore[arg-type]
