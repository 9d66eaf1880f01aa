"""Printed report of simulated searches, as tables on the terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from fgst import terminal
from fgst.sweep.results import rank_report
from fgst.sweep.simulation.curves import LearningCurve
from fgst.sweep.simulation.simulator import RecordedCurves, SimulationLimits, SimulationResult
from fgst.sweep.spec import SweepSpec

TIME_STEPS = 8  # rows of the table of regret over time
HOURS_TOLERANCE = 1e-12  # for rounding errors of the time steps


def print_simulation(
    spec: SweepSpec,
    records: RecordedCurves,
    limits: SimulationLimits,
    results: Sequence[SimulationResult],
    source: str,
    command: str,
) -> None:
    """Print the outcome of simulated searches to stdout.

    Args:
        spec: the sweep.
        records: the recorded curves.
        limits: the limits of each search.
        results: one result per simulated search.
        source: name of the file of curves.
        command: the command that runs the search for real; printed as the last line.
    """
    console = Console(highlight=False)
    console.print(_heading(spec, records, limits, results, source), markup=False)
    for note in _notes(spec, records, results):
        console.print(f"note: {note}", markup=False)
    if any(result.best is not None for result in results):
        terminal.print_table(console, _summary_table(records, limits, results))
        terminal.print_table(console, _regret_over_time(results))
    else:
        console.print("no trial ran to its last epoch, so there is no result")
    _print_early_stopping(console, spec, records, results)
    print(f"to run this search:\n{command}", flush=True)


def _heading(
    spec: SweepSpec,
    records: RecordedCurves,
    limits: SimulationLimits,
    results: Sequence[SimulationResult],
    source: str,
) -> str:
    stop = spec.early_stop
    early_stopping = f", early stopping (grace {stop.grace_period}, reduction {stop.reduction_factor})" if stop else ""
    searches = "1 search" if len(results) == 1 else f"{len(results)} searches"
    return (
        f"{spec.title}\nsimulation: {searches} by {spec.search} of up to {spec.total} trials{early_stopping}, "
        f"{limits.max_concurrent} at a time,\non {len(records.curves)} recorded trials from {source} "
        f"({records.num_points} points, {records.epochs} epochs)"
    )


def _notes(spec: SweepSpec, records: RecordedCurves, results: Sequence[SimulationResult]) -> list[str]:
    notes = []
    if records.outside:
        notes.append(f"{records.outside} recorded trials are outside of the searched space and are ignored")
    if records.short:
        notes.append(f"{records.short} recorded trials have fewer than {records.epochs} epochs and are ignored")
    if any(len(curve.val) > records.epochs for curve in records.curves):
        notes.append(
            f"some recorded trials have more than {records.epochs} epochs, and thus another learning rate schedule "
            "than the simulated ones"
        )
    started = sum(result.started for result in results)
    if started and sum(result.approximated for result in results) > started / 2:
        notes.append("most suggested points were not recorded, so the results are unreliable; record more trials")
    if spec.seeds == 1 and len({curve.seed for curve in records.curves}) > 1:
        notes.append("rank and regret use the mean over all recorded seeds of a point, of which a search saw one")
    return notes


def _summary_table(records: RecordedCurves, limits: SimulationLimits, results: Sequence[SimulationResult]) -> Table:
    """Summarize results over all searches: accuracy, time, and how the trials were matched to recorded ones."""
    table = _make_table("", "mean ± std", "range")
    with_best = [result for result in results if result.best is not None]

    def add_row(name: str, values: Sequence[float], precision: str = ".1f") -> None:
        mean = f"{statistics.fmean(values):{precision}}"
        mean += f" ± {statistics.stdev(values):{precision}}" if len(values) > 1 else ""
        spread = f"{min(values):{precision}} … {max(values):{precision}}" if len(results) > 1 else ""
        table.add_row(name, mean, spread)

    def collect(get: Callable[[SimulationResult], float], chosen: Sequence[SimulationResult] = results) -> list[float]:
        return [get(result) for result in chosen]

    add_row("validation top-1 % of the best trial", collect(lambda r: r.val, with_best))
    add_row(f"its rank among {records.num_points} points", collect(lambda r: r.rank, with_best))
    best_recorded = f"best recorded: {records.best_val:.1f} %"
    add_row(f"its regret in points ({best_recorded})", collect(lambda r: r.regret, with_best), precision=".2f")
    tests = [r.best.final["test/top1"] for r in with_best if r.best is not None and "test/top1" in r.best.final]
    if tests:
        add_row("its test top-1 %", tests)
    table.add_section()
    wall, device = records.hours(limits.max_concurrent)
    precision = ".1f" if wall >= 10 else ".3f"
    add_row(f"wall hours (all recorded trials: {wall:{precision}})", collect(lambda r: r.hours), precision)
    add_row(f"device hours (all recorded trials: {device:{precision}})", collect(lambda r: r.device_hours), precision)
    add_row("started trials", collect(lambda r: r.started))
    not_trained = [100 * (1 - result.epochs / result.planned_epochs) for result in results if result.planned_epochs]
    add_row("epochs of these not trained %", not_trained)
    table.add_section()
    add_row("trials recorded with their seed", collect(lambda r: r.exact))
    add_row("trials recorded with another seed", collect(lambda r: r.other_seed))
    add_row("trials not recorded, nearest used", collect(lambda r: r.approximated))
    distances = [distance for result in results for distance in result.distances]
    if distances:
        name = "their distance, in parameter ranges"
        table.add_row(name, f"{statistics.fmean(distances):.2f}", f"up to {max(distances):.2f}")
    return table


def _regret_over_time(results: Sequence[SimulationResult]) -> Table:
    """Tabulate the regret of the best trial so far at equally spaced times."""
    table = _make_table("after hours", "regret of the best so far, points", "searches with a finished trial")
    longest = max(result.hours for result in results)
    for step in range(1, TIME_STEPS + 1):
        hours = longest * step / TIME_STEPS
        regrets = [_regret_at(result, hours) for result in results]
        known = [regret for regret in regrets if regret is not None]
        mean = "-" if not known else f"{statistics.fmean(known):.2f}"
        mean += f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
        table.add_row(f"{hours:.1f}" if longest >= 10 else f"{hours:.3f}", mean, f"{len(known)} of {len(results)}")
    return table


def _regret_at(result: SimulationResult, hours: float) -> float | None:
    regrets = [regret for time, regret in result.improvements if time <= hours + HOURS_TOLERANCE]
    return regrets[-1] if regrets else None


def _print_early_stopping(
    console: Console, spec: SweepSpec, records: RecordedCurves, results: Sequence[SimulationResult]
) -> None:
    """Print how well early epochs predict the last one over all recorded curves, and how often the best was lost."""

    def history(curve: LearningCurve) -> dict[int, float]:
        return dict(enumerate(curve.val[: records.epochs], 1))

    if rungs := rank_report(spec, [history(curve) for curve in records.curves]):
        table = _make_table("after epoch", "Kendall's tau with the last epoch", "best trial")
        for rung in rungs:
            tau = "-" if rung.tau is None or math.isnan(rung.tau) else f"{rung.tau:+.2f}"
            table.add_row(f"{rung.epoch} of {records.epochs}", tau, "continues" if rung.kept_best else "stopped")
        terminal.print_table(console, table)
    if spec.early_stop is not None:
        lost = sum(result.lost_best for result in results)
        searches = "search" if len(results) == 1 else "searches"
        console.print(
            f"early stopping stopped the trial that would have ended best in {lost} of {len(results)} {searches}"
        )


def _make_table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table
