"""HTML of one page that needs nothing else: its style, its tables and its pictures within it."""

from __future__ import annotations

import base64
import html
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

STYLE = """
:root { color-scheme: light dark; --text: #1c2126; --soft: #5a646e; --line: #dfe4e8; --back: #f7f8f9; --card: #fff;
  --mark: #eaf3f9; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7ea; --soft: #a2abb4; --line: #363d44; --back: #15181b;
  --card: #1d2125; --mark: #1c2f3b; --accent: #56b4e9; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 56rem; padding: 2.6rem 1.2rem 4rem; background: var(--back); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 1rem; text-wrap: balance; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .6rem; }
p { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.soft, figcaption { color: var(--soft); font-size: .88rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.1rem; margin: 0; font-size: .92rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.answer { font-size: 1.12rem; background: var(--mark); border-left: 4px solid var(--accent); border-radius: 0 8px 8px 0;
  padding: .8rem 1.1rem; margin: 1.4rem 0; max-width: none; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  margin: .7rem 0; width: fit-content; min-width: min(100%, 22rem); max-width: 100%; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .42rem .75rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; font-size: .84rem; line-height: 1.3; vertical-align: bottom;
  white-space: pre; }
.text { text-align: left; } td.text { white-space: normal; min-width: 7rem; }
tbody tr:last-child td { border-bottom: 0; }
tr.best td { background: var(--mark); font-weight: 600; }
.tag { color: var(--soft); border: 1px solid var(--line); border-radius: 1em; padding: 0 .5em; margin: 0 .35em;
  font-size: .76rem; font-weight: 400; white-space: nowrap; }
tr.best .tag { border-color: var(--accent); }
figure { margin: .9rem 0; }
figure img { display: block; width: 100%; height: auto; padding: .7rem; margin-bottom: .4rem; background: #fff;
  border: 1px solid var(--line); border-radius: 10px; }
code, pre { font: .85rem/1.6 ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .7rem .9rem;
  margin: .4rem 0; white-space: pre-wrap; }
summary { cursor: pointer; color: var(--accent); }
@media (max-width: 30rem) { body { padding: 1.4rem .8rem 3rem; } h1 { font-size: 1.45rem; }
  figure img { padding: .2rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .35rem; } th, td { padding: .4rem .6rem; }
  td.text { min-width: 10.5rem; font-size: .82rem; } }
@media print { :root { --text: #000; --soft: #444; --line: #ccc; --back: #fff; --card: #fff; --mark: #f0f4f7; }
  body { max-width: none; padding: 0; } figure, tr, pre { break-inside: avoid; } h2 { break-after: avoid; }
  .wide { overflow: visible; } }
"""


class Markup(str):
    """Text that is HTML already; everything else is escaped on its way into the page."""


def document(title: str, sections: Iterable[str]) -> str:
    """The whole page, of sections that are HTML."""
    body = "\n".join(sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def figure(path: Path, alt: str, caption: str, picture: Callable[..., None], *shown: Any) -> str:
    picture(*shown, path)
    content = path.read_bytes()
    pixels = struct.unpack(">I", content[16:20])[0]  # the width, in a PNG's first chunk
    width = f"max-width:calc({pixels // 2}px + 1.4rem)"
    image = (
        f'<img alt="{escape(alt)}" style="{width}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'
    )
    return f"<figure>{image}<figcaption>{escape(caption)}.</figcaption></figure>"


def grid(
    headings: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] = (), text: Sequence[int] = (0,)
) -> str:
    """A table; columns in ``text`` are words, the others figures."""
    sides = [' class="text"' if column in text else "" for column in range(len(headings))]
    head = "".join(f"<th{side}>{escape(heading)}</th>" for heading, side in zip(headings, sides, strict=True))
    lines = []
    for count, row in enumerate(rows):
        cells = "".join(f"<td{side}>{escape(cell)}</td>" for cell, side in zip(row, sides, strict=True))
        lines.append(f"<tr{' class=best' if count < len(marked) and marked[count] else ''}>{cells}</tr>")
    top = f"<thead><tr>{head}</tr></thead>" if any(headings) else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(lines)}</tbody></table></div>'


def escape(text: str) -> str:
    return text if isinstance(text, Markup) else html.escape(str(text))
