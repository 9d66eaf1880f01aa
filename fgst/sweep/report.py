"""What a sweep leaves to read: the table, as text and CSV, and the curve."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fgst.sweep.spec import SweepSpec

MeanStd = tuple[float, float]


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial stands in MLflow: its run, status, last metrics, and the reason if it failed."""

    key: str
    run_id: str
    status: str
    metrics: Mapping[str, float]
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """One swept value: mean and standard deviation over its seeds; ``None`` where no trial has the figure.

    Accuracies in %, ``minutes`` of training per trial.
    """

    label: str
    finished: int
    trials: int
    val: MeanStd | None
    test: MeanStd | None
    minutes: MeanStd | None
    published: float | None

    def to_dict(self) -> dict[str, Any]:
        """The row as :func:`fgst.figures.sweep_curve` takes it."""
        return {"label": self.label, "val": self.val, "test": self.test}


def make_rows(spec: SweepSpec, outcomes: Mapping[str, TrialOutcome]) -> list[Row]:
    """A row per swept value, in order; ``outcomes`` by trial key, of the trials that were begun."""
    published = dict(spec.published)
    rows = []
    for label in spec.labels:
        trials = [trial for trial in spec.trials if trial.label == label]
        finished = [outcomes[t.key] for t in trials if t.key in outcomes and outcomes[t.key].status == "FINISHED"]
        rows.append(
            Row(
                label=label,
                finished=len(finished),
                trials=len(trials),
                val=_mean_std(finished, "val/top1"),
                test=_mean_std(finished, "test/top1"),
                minutes=_mean_std(finished, "minutes"),
                published=published.get(label),
            )
        )
    return rows


def best_outcome(spec: SweepSpec, outcomes: Mapping[str, TrialOutcome]) -> TrialOutcome | None:
    """The finished trial with the highest validation top-1; of equals the first.

    Where all clips train (protocol paper) there is nothing to choose by, and the test clips are not for choosing:
    then it is the first trial that finished.
    """
    finished = [outcomes[t.key] for t in spec.trials if t.key in outcomes and outcomes[t.key].status == "FINISHED"]
    return max(finished, key=lambda outcome: outcome.metrics.get("val/top1", 0.0), default=None)


def format_figure(figure: MeanStd | None) -> str:
    """``81.2``, or ``81.2 ± 0.4`` over several seeds, or ``-``."""
    if figure is None:
        return "-"
    mean, std = figure
    return f"{mean:.1f} ± {std:.1f}" if std == std and std > 0 else f"{mean:.1f}"


def to_csv(spec: SweepSpec, rows: Sequence[Row]) -> str:
    """The table as CSV, unrounded."""
    text = io.StringIO()
    writer = csv.writer(text)
    columns = ("val_top1", "test_top1", "minutes")
    names = [f"{column}_{kind}" for column in columns for kind in ("mean", "std")]
    writer.writerow([spec.axis, "finished", "trials", *names, "paper_top1"])
    for row in rows:
        figures = [value for figure in (row.val, row.test, row.minutes) for value in (figure or ("", ""))]
        writer.writerow([row.label.partition("=")[2], row.finished, row.trials, *figures, row.published or ""])
    return text.getvalue()


def print_table(spec: SweepSpec, rows: Sequence[Row], best: str | None) -> None:
    """The table on stdout; the row of the best trial (by validation) is marked."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=spec.title, title_justify="left", caption_justify="left")
    table.add_column(spec.axis, justify="right")
    seeds = max(row.trials for row in rows)
    headings = ["validation\ntop-1 %", "test\ntop-1 %", "minutes", "paper\ntop-1 %"]
    for heading in ([f"finished\n(of {seeds})"] if seeds > 1 else []) + headings:
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [row.label.partition("=")[2] + (" *" if row.label == best else "")]
        if seeds > 1:
            cells.append(str(row.finished))
        published = "-" if row.published is None else f"{row.published:.1f}"
        table.add_row(*cells, *map(format_figure, (row.val, row.test, row.minutes)), published)
    if spec.published:
        table.caption = f"paper: {spec.source}" + (" · * best by validation" if best else "")
    elif best:
        table.caption = "* best by validation"
    Console(highlight=False).print(table)


def _mean_std(outcomes: Sequence[TrialOutcome], metric: str) -> MeanStd | None:
    values = [outcome.metrics[metric] for outcome in outcomes if metric in outcome.metrics]
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
