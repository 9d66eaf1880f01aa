"""What simulated searches say, as tables on the terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from fgst.sweep.results import rank_report
from fgst.sweep.simulation.simulator import Limits, Records, Simulated
from fgst.sweep.spec import SweepSpec

MOMENTS = 8  # of the time that the longest search took, at which the best so far is told


def print_simulated(
    spec: SweepSpec, records: Records, limits: Limits, found: Sequence[Simulated], what: str, command: str
) -> None:
    """All that came of the searches; the last line is the command that runs one for real.

    Args:
        what: the file of curves.
    """
    console = Console(highlight=False)
    console.print(_heading(spec, records, limits, found, what), markup=False)
    for note in _notes(spec, records, found):
        console.print(f"note: {note}", markup=False)
    if chosen := [one for one in found if one.chosen is not None]:
        console.print(_found(records, limits, found, chosen))
        console.print(_growth(found))
    else:
        console.print("no trial ran to its end, so there is no answer")
    _ranks(console, spec, records, found)
    print(f"to run it for real:\n{command}", flush=True)


def _heading(spec: SweepSpec, records: Records, limits: Limits, found: Sequence[Simulated], what: str) -> str:
    stop = spec.early_stop
    rungs = f", early stopping (grace {stop.grace_period}, reduction {stop.reduction_factor})" if stop else ""
    searches = "1 search" if len(found) == 1 else f"{len(found)} searches"
    return (
        f"{spec.title}\nsimulated: {searches} by {spec.search} of up to {spec.total} trials{rungs}, "
        f"{limits.max_concurrent} at a time,\non {len(records.curves)} trials recorded in {what} "
        f"({len(records.worth)} points, {records.epochs} epochs)"
    )


def _notes(spec: SweepSpec, records: Records, found: Sequence[Simulated]) -> list[str]:
    notes = []
    if records.outside:
        notes.append(f"{records.outside} recorded trials lie outside of what is searched, and are left out")
    if records.short:
        notes.append(f"{records.short} recorded trials have fewer than {records.epochs} epochs, and are left out")
    if any(len(curve.val) > records.epochs for curve in records.curves):
        notes.append(
            f"recorded trainings were planned for more than {records.epochs} epochs: their learning rate was not that "
            "of shorter ones"
        )
    begun = sum(one.begun for one in found)
    if begun and sum(one.neighbours for one in found) > begun / 2:
        notes.append("most suggested points were not recorded: record more before believing this")
    if spec.seeds == 1 and len({curve.seed for curve in records.curves}) > 1:
        notes.append("rank and regret are by the mean over a point's recorded seeds, and a search saw one of them")
    return notes


def _found(records: Records, limits: Limits, found: Sequence[Simulated], chosen: Sequence[Simulated]) -> Table:
    table = _table("", "mean ± std", "range")
    several = len(found) > 1

    def row(name: str, values: Sequence[float], form: str = ".1f") -> None:
        mean = f"{statistics.fmean(values):{form}}"
        mean += f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
        spread = f"{min(values):{form}} … {max(values):{form}}" if several else ""
        table.add_row(name, mean, spread)

    def of(what: Callable[[Simulated], float], ones: Sequence[Simulated] = found) -> list[float]:
        return [what(one) for one in ones]

    row("best found, validation top-1 %", of(lambda one: one.val, chosen))
    row(f"its rank among {len(records.worth)} points", of(lambda one: one.rank, chosen))
    row(f"regret, points (best recorded: {records.best:.1f} %)", of(lambda one: one.regret, chosen), form=".2f")
    tests = [one.chosen.end["test/top1"] for one in chosen if one.chosen and "test/top1" in one.chosen.end]
    if tests:
        row("its test top-1 %", tests)
    table.add_section()
    wall, device = records.hours(limits.max_concurrent)
    form = ".1f" if wall >= 10 else ".3f"
    row(f"wall hours (everything recorded: {wall:{form}})", of(lambda one: one.hours), form=form)
    row(f"device hours (everything recorded: {device:{form}})", of(lambda one: one.device_hours), form=form)
    row("trials begun", of(lambda one: one.begun))
    saved = [100 * (1 - one.epochs / one.planned) for one in found if one.planned]
    row("epochs of these not trained %", saved)
    table.add_section()
    row("trials recorded exactly", of(lambda one: one.exact))
    row("recorded with another seed", of(lambda one: one.other_seed))
    row("not recorded, nearest taken", of(lambda one: one.neighbours))
    distances = [distance for one in found for distance in one.distances]
    if distances:
        table.add_row("their distance, in ranges", f"{statistics.fmean(distances):.2f}", f"up to {max(distances):.2f}")
    return table


def _growth(found: Sequence[Simulated]) -> Table:
    """Regret of the best so far as time goes on."""
    table = _table("after hours", "regret of the best so far, points", "searches that have one")
    longest = max(one.hours for one in found)
    for step in range(1, MOMENTS + 1):
        hours = longest * step / MOMENTS
        regrets = [[r for when, r in one.growth if when <= hours + 1e-12][-1:] for one in found]
        known = [regret for some in regrets for regret in some]
        mean = "-" if not known else f"{statistics.fmean(known):.2f}"
        mean += f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
        table.add_row(f"{hours:.1f}" if longest >= 10 else f"{hours:.3f}", mean, f"{len(known)} of {len(found)}")
    return table


def _ranks(console: Console, spec: SweepSpec, records: Records, found: Sequence[Simulated]) -> None:
    """Whether early epochs foretold the end, over everything that was recorded."""
    rungs = rank_report(spec, [dict(enumerate(curve.val[: records.epochs], 1)) for curve in records.curves])
    if rungs:
        table = _table("after epoch", "Kendall's tau with the end", "the best trial would be")
        for rung in rungs:
            tau = "-" if rung.tau is None or math.isnan(rung.tau) else f"{rung.tau:+.2f}"
            table.add_row(f"{rung.epoch} of {records.epochs}", tau, "kept" if rung.kept_best else "lost")
        console.print(table)
    if spec.early_stop is not None:
        lost = sum(one.lost for one in found)
        console.print(
            f"early stopping ended the trial that would have come out best of those begun in {lost} of {len(found)} "
            f"{'search' if len(found) == 1 else 'searches'}"
        )


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table
