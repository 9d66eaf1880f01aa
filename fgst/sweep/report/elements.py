"""The building blocks of the HTML report, as the template expects them: tables and embedded pictures."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cell:
    """A table cell: text with optional badges (small labels) around it.

    Attributes:
        text: unescaped text; the template escapes it.
        badges_before: badges in front of the text, e.g. ``("within noise",)``.
        badges_after: badges behind the text, e.g. ``("best", "baseline")``.
        is_code: whether to use a monospaced font.
    """

    text: str
    badges_before: Sequence[str] = ()
    badges_after: Sequence[str] = ()
    is_code: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        headings: column headings; empty for a table without a header.
        rows: cells by row.
        text_columns: indices of left-aligned columns; the other columns contain numbers.
        highlighted_row: index of the row to emphasize.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text_columns: Sequence[int] = (0,)
    highlighted_row: int | None = None


@dataclass(frozen=True)
class Picture:
    """A PNG that is embedded into the report.

    Attributes:
        alt: alternative text with the main values, for screen readers.
        caption: text below the picture, without a final period.
        base64_png: the file's content.
        css_width: width in CSS pixels, half of the width in image pixels.
    """

    alt: str
    caption: str
    base64_png: str
    css_width: int


def make_table(headings: Sequence[str], rows: Iterable[Iterable[Cell | str]], **options: Any) -> Table:
    """Build a table; strings become plain cells, ``options`` are further fields of :class:`Table`."""
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    return Table(headings, cells, **options)


def draw_picture(path: Path, alt: str, caption: str, plot: Callable[..., None], *arguments: Any) -> Picture:
    """Draw ``plot(*arguments, path)`` and read the PNG file back for embedding."""
    plot(*arguments, path)
    content = path.read_bytes()
    pixels = struct.unpack(">I", content[16:20])[0]  # the width field of the PNG header
    return Picture(alt, caption, base64.b64encode(content).decode(), pixels // 2)
