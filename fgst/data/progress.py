"""Progress of long loops, shown on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")
_REPORT_SECONDS = 30.0  # between two lines when stderr is not a terminal


def _progress_bar() -> Progress:
    # lazy: model servers import this module with the raw formats, but display no progress
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def tracked(items: Iterable[T], total: int, description: str) -> Generator[T, None, None]:
    """Yield the items, with a progress bar if stderr is a terminal.

    Close the generator before printing an error message, so that the bar is removed first.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    with _progress_bar() as progress:
        yield from progress.track(items, total=total, description=description)


def tracked_clips(items: Iterable[tuple[T, int]], *, total: int, done: int) -> Generator[T, None, None]:
    """Yield items that represent several clips each, reporting clips per second and the remaining time.

    The report is a progress bar on a terminal, and otherwise a line every half minute.

    Args:
        items: pairs of an item and its number of clips.
        total: number of clips altogether.
        done: number of clips that were processed before.
    """
    start, started = done, time.monotonic()
    if sys.stderr.isatty():
        with _progress_bar() as progress:
            bar = progress.add_task("", total=total, completed=done)
            for item, clips in items:
                done += clips
                rate = (done - start) / max(time.monotonic() - started, 1e-9)
                progress.update(bar, completed=done, description=f"{rate:,.0f} clips/s")
                yield item
        return
    reported = started
    for item, clips in items:
        done += clips
        now = time.monotonic()
        if now - reported >= _REPORT_SECONDS:
            rate = (done - start) / (now - started)
            minutes = (total - done) / rate / 60
            print(f"{done:,}/{total:,} clips, {rate:,.0f} clips/s, {minutes:.0f} min left", file=sys.stderr, flush=True)
            reported = now
        yield item
