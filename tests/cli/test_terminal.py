"""Tables on narrow terminals: nothing is cut off."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from fgst import terminal

CELLS = ["pick up with two hands *", "85.0 ± 0.4", "84.1 ± 1.2", "+0.8 ± 0.5", "12.5"]


def printed(width: int) -> str:
    table = Table(title="How many focal joints K?", caption="* best by validation")
    for heading in ("K", "validation\ntop-1 %", "test\ntop-1 %", "difference\n95 %", "minutes"):
        table.add_column(heading, no_wrap=True)
    table.add_row(*CELLS)
    file = io.StringIO()
    terminal.print_table(Console(file=file, width=width), table)
    return file.getvalue()


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_no_cell_is_cut_off_at_any_width(width: int) -> None:
    text = printed(width)
    assert "…" not in text
    words = " ".join(text.split())
    for cell in [*CELLS, "How many focal joints K?", "* best by validation"]:
        assert set(cell.split()) <= set(words.split()), cell
    assert max(map(len, text.splitlines())) <= width


def test_rows_are_printed_as_lines_on_a_narrow_terminal() -> None:
    assert printed(40).splitlines() == [
        "How many focal joints K?",
        "K pick up with two hands *",
        "  validation top-1 %: 85.0 ± 0.4",
        "  test top-1 %: 84.1 ± 1.2",
        "  difference 95 %: +0.8 ± 0.5",
        "  minutes: 12.5",
        "* best by validation",
    ]
