"""Tables as files: LaTeX for papers, and CSV.

A command makes a :class:`NamedTable` of each table that it prints, so that files and terminal show the same.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fgst import durable
from fgst.errors import InputError

if TYPE_CHECKING:  # only commands that print tables import it
    from rich.table import Table

NOTE_SEPARATOR: Final = " · "
"""Between the notes of a table's caption."""
BEST: Final = " *"
"""Behind the first cell of the best row, which a note that starts with ``* `` explains."""
_PREAMBLE: Final = r"""% Tables by fgst. The preamble of the document needs:
% \usepackage{booktabs}
% \usepackage{threeparttable}
"""
_PLUS, _NOTHING = "\0", "\1"  # stand for LaTeX while text is escaped; no text contains them
_ESCAPES: Final = {
    _PLUS: "$+$", _NOTHING: "{}",
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "{''}", "`": r"\`{}",
    "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "·": r"$\cdot$", "≤": r"$\leq$", "≥": r"$\geq$", "→": r"$\to$",
    "←": r"$\leftarrow$", "–": "--", "—": "---", "…": r"\dots{}", "°": r"$^\circ$", "µ": r"$\mu$",
}  # fmt: skip


@dataclass(frozen=True)
class NamedTable:
    """A table that can be written to a file.

    Attributes:
        name: part of its label in LaTeX and of its file name, e.g. ``per-class``.
        table: the table as printed.
        csv: its values without rounding, as CSV; ``None`` for a table of which the cells are all that there is.
        title: the caption in LaTeX; empty for the title of the table.
        csv_only: the table is too wide for a page, so it is not written in LaTeX.
    """

    name: str
    table: Table
    csv: str | None = None
    title: str = ""
    csv_only: bool = False


def check_files(latex: str | None, csv: str | None) -> None:
    """Check the files for tables before anything is computed.

    Raises:
        InputError: naming the option of the file that cannot be written.
    """
    if latex is not None and csv is not None and Path(latex).absolute() == Path(csv).absolute():
        raise InputError(f"--latex and --csv are the same file {latex}; name two files")
    for flag, name in (("--latex", latex), ("--csv", csv)):
        path = Path(name or "")
        if name is not None and not path.parent.is_dir():
            raise InputError(f"{flag} {name}: there is no folder {path.parent}; create it first")
        if name is not None and path.is_dir():
            raise InputError(f"{flag} {name}: is a folder; name a file")


def write_tables(
    tables: Sequence[NamedTable], latex: str | os.PathLike[str] | None, csv: str | os.PathLike[str] | None
) -> list[Path]:
    """Write tables to files, which replace existing ones.

    Args:
        tables: the tables; the first is the main one.
        latex: the file for all tables in LaTeX; ``None`` for none.
        csv: the file for the main table as CSV; the others are next to it, ``NAME`` appended to its stem.

    Returns:
        The files.

    Raises:
        InputError: if a file cannot be written.
    """
    files: dict[Path, str] = {}
    if latex is not None:
        files[Path(latex)] = _PREAMBLE + "\n".join(to_latex(table) for table in tables if not table.csv_only)
    if csv is not None:
        for number, table in enumerate(tables):
            path = Path(csv)
            path = path.with_name(f"{path.stem}-{table.name}{path.suffix}") if number else path
            files[path] = to_csv(table)
    for path, content in files.items():
        try:
            durable.write(path, content)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    return list(files)


def to_csv(table: NamedTable) -> str:
    """Return a table as CSV: its values without rounding if it has them, else its cells."""
    if table.csv is not None:
        return table.csv
    headings, rows, _ = _content(table.table)
    return rows_to_csv([[" ".join(heading.split()) for heading in headings], *rows])


def rows_to_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV, with ``None`` as an empty cell."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def records_to_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records with the same keys as CSV, with the keys as headings; nothing without records."""
    return rows_to_csv([list(records[0]), *(list(record.values()) for record in records)]) if records else ""


def to_latex(named: NamedTable) -> str:
    """Return a table as a LaTeX environment ``table`` in the style of booktabs.

    The title is the caption, rows in bold are bold, and the notes of the caption are notes of threeparttable.
    """
    table = named.table
    headings, rows, bold = _content(table)
    title = " ".join((named.title or _plain(table.title)).split())
    notes = [note for note in _plain(table.caption).replace("\n", " ").split(NOTE_SEPARATOR) if note.strip()]
    alignment = "".join({"right": "r", "center": "c"}.get(column.justify, "l") for column in table.columns)
    lines = [
        r"\begin{table}",
        r"  \centering",
        r"  \begin{threeparttable}",
        *([rf"    \caption{{{escape(title)}}}"] if title else []),
        rf"    \label{{tab:{named.name}}}",
        rf"    \begin{{tabular}}{{{alignment}}}",
        r"      \toprule",
        _row([_lines(escape(text), side, "b") for text, side in zip(headings, alignment, strict=True)]),
        r"      \midrule",
    ]
    for cells, is_bold in zip(rows, bold, strict=True):
        if any(cells):
            lines.append(_row([_cell(cell, side, is_bold) for cell, side in zip(cells, alignment, strict=True)]))
        else:  # an empty row separates groups
            lines.append(r"      \midrule")
    lines += [r"      \bottomrule", r"    \end{tabular}"]
    if notes:
        lines += [
            r"    \begin{tablenotes}\footnotesize",
            *(rf"      \item{_note(' '.join(note.split()))}" for note in notes),
            r"    \end{tablenotes}",
        ]
    return "\n".join([*lines, r"  \end{threeparttable}", r"\end{table}", ""])


def escape(text: str) -> str:
    """Escape text for LaTeX, and set signs of numbers in mathematics; line breaks are preserved.

    Letters outside ASCII are unchanged: pdfLaTeX knows those of European languages, LuaLaTeX all.
    """
    printable = "".join(character for character in text if character == "\n" or character.isprintable())
    signs = re.sub(r"(?<![\w.)\]])[+-](?=[\d.])", lambda match: {"+": _PLUS, "-": "−"}[match[0]], printable)
    separated = re.sub(r"-(?=-)", f"-{_NOTHING}", signs)  # two hyphens would be a dash
    return "".join(_ESCAPES.get(character, character) for character in separated)


def _content(table: Table) -> tuple[list[str], list[list[str]], list[bool]]:
    """Headings, rows of cells, and which rows are bold, as plain text."""
    columns = [[_plain(cell) for cell in column.cells] for column in table.columns]
    rows = [list(cells) for cells in zip(*columns, strict=True)]
    bold = [row.style is not None and "bold" in str(row.style) for row in table.rows]
    return [_plain(column.header) for column in table.columns], rows, bold


def _plain(content: Any) -> str:
    """The text of a cell, without markup."""
    from rich.text import Text  # lazy: only commands that print tables need it

    if content is None:
        return ""
    return content.plain if isinstance(content, Text) else Text.from_markup(str(content)).plain


def _row(cells: Sequence[str]) -> str:
    # "\\" takes a following "*" or "[" as an argument, so a row must not begin with one.
    first = f"{{}}{cells[0]}" if cells[0].startswith(("*", "[")) else cells[0]
    return f"      {' & '.join([first, *cells[1:]])} \\\\"


def _cell(text: str, side: str, is_bold: bool) -> str:
    mark = r"\tnote{*}" if text.endswith(BEST) else ""
    escaped = "--" if text == "-" else escape(text.removesuffix(BEST) if mark else text)
    if is_bold and escaped:
        # \boldmath for the signs.
        escaped = "\n".join(rf"\textbf{{\boldmath {line}}}" for line in escaped.split("\n"))
    return _lines(escaped, side, "t") + mark


def _lines(escaped: str, side: str, position: str) -> str:
    """A cell of several lines, which LaTeX only has as a table in the table."""
    if "\n" not in escaped:
        return escaped
    lines = " \\\\ ".join(f"{{}}{line}" if line.startswith(("*", "[")) else line for line in escaped.split("\n"))
    return rf"\begin{{tabular}}[{position}]{{@{{}}{side}@{{}}}}{lines}\end{{tabular}}"


def _note(note: str) -> str:
    return f"[*] {escape(note[2:])}" if note.startswith("* ") else f" {escape(note)}"
