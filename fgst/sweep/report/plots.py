"""The pictures of a sweep's report (matplotlib), at 100 CSS pixels per inch and twice that resolution."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fgst.evaluation.plots import BLUE, GREEN, GREY, ORANGE, new_figure, save_figure
from fgst.sweep.definition import Parameter
from fgst.sweep.report.analysis import VAL_TOP1, objective_axes
from fgst.sweep.report.tables import row_heading, row_number
from fgst.sweep.results import MeanStd, Row, TrialResult
from fgst.sweep.spec import SweepSpec
from fgst.sweep.status import TrialStatus

CSS_PIXELS_PER_INCH = 100
WIDTH = 8.35  # inches
# Axis label of each objective, and the size of one unit on that axis.
OBJECTIVE_SCALES = {
    "val_top1": ("validation top-1 [%]", 1.0),
    "test_top1": ("test top-1 [%]", 1.0),
    "flops": ("GFLOPs per clip", 1.0),
    "params": ("million parameters", 1e6),
    "latency": ("latency per clip [ms]", 1.0),
}
STYLE = {
    "savefig.dpi": 2 * CSS_PIXELS_PER_INCH,
    "font.size": 11.5,
    "text.parse_math": False,  # names come from the user, and a dollar sign in them is no formula
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#a3abb3",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6eaed",
    "xtick.color": "#5c6670",
    "ytick.color": "#5c6670",
    "xtick.labelcolor": "#30363c",
    "ytick.labelcolor": "#30363c",
    "legend.frameon": False,
    "legend.fontsize": 11,
}


@rc_context(STYLE)
def accuracy_curve(spec: SweepSpec, rows: Sequence[Row], path: Path) -> None:
    """Plot mean and standard deviation of each row, and the published values: a curve over numbers, dots over names."""
    labels = [row_heading(spec, row) for row in rows]
    numbers = [row_number(spec, row) for row in rows]
    series = [(ORANGE, "validation", [row.val for row in rows]), (BLUE, "test", [row.test for row in rows])]
    published = [row.published for row in rows]
    if len(rows) > 1 and all(number is not None for number in numbers):
        order = sorted(range(len(rows)), key=lambda i: numbers[i] or 0)
        figure, axes = new_figure(WIDTH, 3.9)
        positions = np.array([numbers[i] for i in order], dtype=float)
        for color, name, values in series:
            _plot_errorbars(axes, positions, [values[i] for i in order], color, name, is_vertical=True)
        points = [(x, published[i]) for x, i in zip(positions, order, strict=True) if published[i] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), color=GREY, ls="--", marker="s", ms=3.5, label="paper")
        if spec.parameters[0].log:
            _use_log_scale(axes)
        elif len(positions) <= 16 and np.diff(positions).min() >= 0.025 * np.ptp(positions):
            axes.set_xticks(positions, [labels[i] for i in order])
        axes.set_xlabel(spec.parameters[0].name)
        axes.set_ylabel("top-1 [%]")
    else:
        figure, axes = new_figure(WIDTH, 0.46 * len(rows) + 1.1)
        for shift, (color, name, values) in zip((-0.13, 0.13), series, strict=True):
            _plot_errorbars(axes, np.arange(len(rows)) + shift, values, color, name, is_vertical=False)
        points = [(value, y) for y, value in enumerate(published) if value is not None]
        if points:
            axes.plot(*zip(*points, strict=True), color=GREY, ls="", marker="s", ms=5, mfc="none", label="paper")
        axes.set_yticks(range(len(rows)), [textwrap.shorten(label, 40, placeholder="…") for label in labels])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("top-1 [%]")
        if len(spec.parameters) == 1:
            axes.set_ylabel(spec.parameters[0].name)
    _add_legend_above(axes)
    save_figure(figure, path)


def _plot_errorbars(
    axes: Any, positions: np.ndarray, values: Sequence[MeanStd | None], color: str, name: str, *, is_vertical: bool
) -> None:
    points = [(position, *value) for position, value in zip(positions, values, strict=True) if value is not None]
    if not points:
        return
    position, mean, std = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    error = std if std.any() else None
    if is_vertical:
        axes.errorbar(position, mean, yerr=error, color=color, marker="o", ms=4.5, lw=1.6, capsize=3, label=name)
    else:
        axes.errorbar(mean, position, xerr=error, color=color, marker="o", ms=6, ls="", capsize=3, label=name)


@rc_context(STYLE)
def pareto_front(spec: SweepSpec, results: Sequence[TrialResult], front: Sequence[TrialResult], path: Path) -> None:
    """Plot both objectives of all trials and the staircase of the front, whose trials are numbered in their order."""
    names, metrics = objective_axes(spec)
    scales = [OBJECTIVE_SCALES[name] for name in names]

    def coordinates(trials: Sequence[TrialResult]) -> tuple[list[float], ...]:
        return tuple(
            [trial.metrics[metric] / unit for trial in trials]
            for metric, (_, unit) in zip(metrics, scales, strict=True)
        )

    figure, axes = new_figure(WIDTH, 4.2)
    dominated = [result for result in results if result not in front]
    axes.scatter(*coordinates(dominated), color=GREY, s=20, alpha=0.45, lw=0, label="trials")
    axes.plot(*coordinates(front), color=GREEN, lw=1.3, drawstyle="steps-post", alpha=0.7)
    axes.scatter(*coordinates(front), color=GREEN, s=38, zorder=3, label="Pareto front")
    # The numbers are placed towards the better corner, where there are no trials.
    is_up = "test_top1" in names or "val_top1" in names
    for number, (x, y) in enumerate(zip(*coordinates(front), strict=True), 1):
        axes.annotate(
            str(number), (x, y), (-4, 4 if is_up else -4), textcoords="offset points", ha="right",
            va="bottom" if is_up else "top", color=GREEN, fontweight="bold",
        )  # fmt: skip
    axes.margins(0.07)
    axes.set_xlabel(scales[0][0])
    axes.set_ylabel(scales[1][0])
    _add_legend_above(axes)
    save_figure(figure, path)


@rc_context(STYLE)
def learning_curves(
    histories: Mapping[str, Mapping[int, float]],
    pruned: Sequence[str],
    best: str | None,
    rungs: Sequence[int],
    axis_label: str,
    path: Path,
) -> None:
    """Plot one line per trial.

    Args:
        histories: values by epoch, by run id.
        pruned: run ids of the trials that early stopping ended; a cross marks their last epoch.
        best: run id of the trial to emphasize.
        rungs: epochs at which trials were compared.
        axis_label: name and unit of the values.
        path: path of the PNG file to write.
    """
    figure, axes = new_figure(WIDTH, 3.9)
    pruned_ids = frozenset(pruned)
    alpha = max(0.25, min(0.7, 12 / max(1, len(histories))))
    marker = "o" if max(len(history) for history in histories.values()) <= 12 else ""
    for epoch in rungs:
        axes.axvline(epoch, color="#a3abb3", lw=0.8, ls=":")
    for run_id in sorted(histories, key=lambda run_id: (run_id == best, run_id not in pruned_ids)):
        epochs = sorted(histories[run_id])
        values = [histories[run_id][epoch] for epoch in epochs]
        if run_id == best:
            axes.plot(epochs, values, color=BLUE, lw=2.4, marker=marker, ms=4.5)
        elif run_id in pruned_ids:
            axes.plot(epochs, values, color=ORANGE, lw=1, alpha=alpha)
            axes.plot(epochs[-1:], values[-1:], color=ORANGE, marker="x", ms=5, alpha=min(1, 2 * alpha))
        else:
            axes.plot(epochs, values, color=GREY, lw=1, alpha=alpha, marker=marker, ms=3)
    has_best, has_others = best in histories, bool(set(histories) - {best, *pruned})
    entries = [
        (has_best, BLUE, 2.4, "", "best trial"),
        (has_others, GREY, 1, "", "other trials" if has_best else "trials"),
        (bool(pruned), ORANGE, 1, "x", "stopped early"),
    ]
    handles = [
        Line2D([], [], color=color, lw=width, marker=marker, ms=5, label=label)
        for is_shown, color, width, marker, label in entries
        if is_shown
    ]
    axes.set_xlabel("epoch")
    axes.set_ylabel(axis_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _add_legend_above(axes, handles)
    save_figure(figure, path)


@rc_context(STYLE)
def slices(spec: SweepSpec, results: Sequence[TrialResult], best: str | None, path: Path) -> None:
    """Plot validation top-1 against each parameter; pruned trials are hollow, and the best trial is emphasized."""
    count = len(spec.parameters)
    columns = next((c for c in (3, 4, 2) if count % c == 0), 3) if count > 1 else 1
    lines = -(-count // columns)
    figure, first_axes = new_figure(WIDTH, 2.1 * lines + 0.2)
    first_axes.remove()
    groups = [(TrialStatus.PRUNED, GREY, "none"), (TrialStatus.FINISHED, BLUE, BLUE), ("best", ORANGE, ORANGE)]
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for unused in panels[count:]:
        unused.remove()
    for parameter, panel in zip(spec.parameters, panels, strict=False):
        with_value = [result for result in results if parameter.name in result.params]
        categories = None
        if not _range_of(parameter, with_value):
            categories = [str(value) for value in _values_of(parameter, with_value)]
        for group, edge, face in groups:
            members = [r for r in with_value if ("best" if r.run_id == best else r.status) == group]
            values = [result.params[parameter.name] for result in members]
            x = [categories.index(str(value)) for value in values] if categories else [float(v) for v in values]
            y = [result.metrics[VAL_TOP1] for result in members]
            size, alpha = (42, 1.0) if group == "best" else (16, 0.65)
            panel.scatter(x, y, facecolors=face, edgecolors=edge, s=size, alpha=alpha, lw=0.9, label=group)
        if categories:
            rotation = {"rotation": 30, "ha": "right"} if sum(map(len, categories)) > 20 else {}
            labels = [textwrap.shorten(category, 16, placeholder="…") for category in categories]
            panel.set_xticks(range(len(categories)), labels, **rotation)
            panel.set_xlim(-0.5, len(categories) - 0.5)
        elif parameter.log:
            _use_log_scale(panel)
        elif parameter.integer:
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.tick_params(labelsize=10)
        panel.set_xlabel(parameter.name)
    figure.supylabel("validation top-1 [%]", fontsize=11.5)
    save_figure(figure, path)


@rc_context(STYLE)
def parallel_coordinates(spec: SweepSpec, results: Sequence[TrialResult], path: Path) -> None:
    """Plot each trial as a line through its values, darker for higher accuracy.

    "none" below an axis marks trials in which the parameter does not exist.
    """
    shown = sorted(results, key=lambda result: result.metrics[VAL_TOP1])
    accuracies = [result.metrics[VAL_TOP1] for result in shown]
    # Scaled by finished trials: otherwise pruned ones, with their low accuracy, would use up most of the colours.
    finished = [r.metrics[VAL_TOP1] for r in shown if r.status == TrialStatus.FINISHED] or accuracies
    scale = Normalize(float(np.quantile(finished, 0.1)), accuracies[-1], clip=True)
    colors = colormaps["cividis_r"]
    none_height, random = -0.2, np.random.default_rng(0)
    figure, axes = new_figure(max(WIDTH, min(9.2, 0.85 * len(spec.parameters) + 1.2)), 4.2)
    height_functions = [_height_function(parameter, shown) for parameter in spec.parameters]
    for result in shown:
        heights = [
            height(result.params[parameter.name]) if parameter.name in result.params else none_height
            for parameter, height in zip(spec.parameters, height_functions, strict=True)
        ]
        shade = float(scale(result.metrics[VAL_TOP1]))
        jittered = np.array(heights) + random.uniform(-0.012, 0.012)  # so that equal trials do not hide each other
        axes.plot(range(len(heights)), jittered, color=colors(shade), lw=1 + 0.6 * shade, alpha=0.3 + 0.6 * shade)
    for x, (parameter, height) in enumerate(zip(spec.parameters, height_functions, strict=True)):
        axes.plot([x, x], [0, 1], color="#5c6670", lw=1)
        values: Sequence[Any] = _range_of(parameter, shown) or _values_of(parameter, shown)
        values = values if len(values) <= 9 else [values[0], values[-1]]
        ticks = [
            (height(v), textwrap.shorten(f"{v:g}" if _is_number(v) else str(v), 14, placeholder="…")) for v in values
        ]
        if any(parameter.name not in result.params for result in shown):
            ticks.append((none_height, "none"))
        for y, text in ticks:
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
            axes.text(x - 0.05, y, text, ha="right", va="center", fontsize=10.5, bbox=box, zorder=5)
    axes.set_xticks(range(len(spec.parameters)), [parameter.name for parameter in spec.parameters])
    axes.tick_params(length=0)
    axes.set_yticks([])
    axes.set_xlim(-0.5, len(spec.parameters) - 0.8)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    figure.colorbar(
        ScalarMappable(scale, colors), ax=axes, label="validation top-1 [%]", extend="min", fraction=0.03, pad=0.02
    )
    save_figure(figure, path)


@rc_context(STYLE)
def importance(shares: Mapping[str, float], path: Path) -> None:
    """Plot the importance of each parameter as a bar, in shares of 1."""
    figure, axes = new_figure(WIDTH, 0.34 * len(shares) + 0.8)
    axes.barh(range(len(shares)), list(shares.values()), color=BLUE, height=0.62)
    for y, share in enumerate(shares.values()):
        axes.text(share + 0.01, y, f"{100 * share:.0f} %", va="center")
    axes.set_yticks(range(len(shares)), list(shares))
    axes.set_ylim(len(shares) - 0.5, -0.5)
    axes.set_xlim(0, max(shares.values()) * 1.1 + 0.02)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
    axes.grid(False, axis="y")
    axes.set_xlabel("share of the importance")
    save_figure(figure, path)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _range_of(parameter: Parameter, results: Sequence[TrialResult]) -> tuple[float, float] | None:
    """Return both ends of a parameter's range; ``None`` if it takes one of several values."""
    if parameter.values or parameter.low is None or parameter.high is None:
        return None
    tried = [result.params[parameter.name] for result in results if parameter.name in result.params]
    return (parameter.low, parameter.high) if all(map(_is_number, tried)) else None


def _values_of(parameter: Parameter, results: Sequence[TrialResult]) -> list[Any]:
    """List a parameter's values, followed by other values that trials used."""
    tried = (result.params[parameter.name] for result in results if parameter.name in result.params)
    return list(dict.fromkeys([*parameter.values, *tried]))


def _height_function(parameter: Parameter, results: Sequence[TrialResult]) -> Callable[[Any], float]:
    """Map a parameter's values to heights from 0 to 1: along its range, or evenly spaced over distinct values."""
    ends = _range_of(parameter, results)
    if ends is None:
        values = [str(value) for value in _values_of(parameter, results)]
        return lambda value: values.index(str(value)) / (len(values) - 1) if len(values) > 1 else 0.5
    low, high = map(math.log, ends) if parameter.log else ends
    return lambda value: ((math.log(value) if parameter.log else value) - low) / (high - low) if high > low else 0.5


def _use_log_scale(axes: Any) -> None:
    """Use a logarithmic x axis with plain numbers (0.01) instead of powers of ten."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    subs = (1, 2, 5) if high < 60 * low else (1, 3) if high < 300 * low else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _add_legend_above(axes: Any, handles: Sequence[Any] | None = None) -> None:
    """Put the legend above the axes, where it hides no data."""
    entries = list(handles) if handles is not None else axes.get_legend_handles_labels()[0]
    if entries:
        position = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "borderaxespad": 0.2}
        axes.legend(handles=entries, ncols=4, handlelength=1.8, columnspacing=1.6, **position)
