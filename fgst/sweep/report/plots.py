"""The pictures of a sweep's page (matplotlib): 100 CSS pixels an inch, drawn twice as dense for sharp screens."""

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

from fgst.evaluation.plots import BLUE, GREEN, GREY, ORANGE
from fgst.evaluation.plots import new_figure as _new
from fgst.evaluation.plots import save_figure as _save
from fgst.sweep.definition import Parameter, SweepSpec
from fgst.sweep.results import MeanStd, Row, TrialResult

METRIC = "val/top1"
PER_INCH = 100  # CSS pixels
WIDTH = 8.35  # inches
# What an objective is called beside a scale, and what one unit of that scale is.
SCALES = {
    "val_top1": ("validation top-1 [%]", 1.0),
    "test_top1": ("test top-1 [%]", 1.0),
    "flops": ("GFLOPs a clip", 1.0),
    "params": ("million parameters", 1e6),
    "latency": ("latency of a clip [ms]", 1.0),
}
LOOK = {
    "savefig.dpi": 2 * PER_INCH,
    "font.size": 11.5,
    "text.parse_math": False,  # names come from outside, and a dollar in them is a dollar
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


@rc_context(LOOK)
def curve(spec: SweepSpec, rows: Sequence[Row], path: Path) -> None:
    """Accuracy of each row, mean and standard deviation, and the paper's: a curve over numbers, dots beside names."""
    labels = [row.label.partition("=")[2] or row.label for row in rows]
    numbers = [number(label) for label in labels]
    series = [(ORANGE, "validation", [row.val for row in rows]), (BLUE, "test", [row.test for row in rows])]
    published = [row.published for row in rows]
    if len(rows) > 1 and all(n is not None for n in numbers):
        order = sorted(range(len(rows)), key=lambda i: numbers[i] or 0)
        figure, axes = _new(WIDTH, 3.9)
        places = np.array([numbers[i] for i in order], dtype=float)
        for colour, name, values in series:
            _errorbars(axes, places, [values[i] for i in order], colour, name, upright=True)
        known = [(x, published[i]) for x, i in zip(places, order, strict=True) if published[i] is not None]
        if known:
            axes.plot(*zip(*known, strict=True), color=GREY, ls="--", marker="s", ms=3.5, label="the paper")
        if spec.parameters[0].log:
            _by_ratios(axes)
        elif len(places) <= 16 and np.diff(places).min() >= 0.025 * np.ptp(places):
            axes.set_xticks(places, [labels[i] for i in order])
        axes.set_xlabel(spec.parameters[0].name)
        axes.set_ylabel("top-1 [%]")
    else:
        figure, axes = _new(WIDTH, 0.46 * len(rows) + 1.1)
        for shift, (colour, name, values) in zip((-0.13, 0.13), series, strict=True):
            _errorbars(axes, np.arange(len(rows)) + shift, values, colour, name, upright=False)
        known = [(y, p) for y, p in enumerate(published) if p is not None]
        if known:
            lines, figures = zip(*known, strict=True)
            axes.plot(figures, lines, color=GREY, ls="", marker="s", ms=5, mfc="none", label="the paper")
        axes.set_yticks(range(len(rows)), [textwrap.shorten(label, 40, placeholder="…") for label in labels])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("top-1 [%]")
        if len(spec.parameters) == 1:
            axes.set_ylabel(spec.parameters[0].name)
    _legend_above(axes)
    _save(figure, path)


def _errorbars(
    axes: Any, places: np.ndarray, values: Sequence[MeanStd | None], colour: str, name: str, *, upright: bool
) -> None:
    there = [(place, *value) for place, value in zip(places, values, strict=True) if value is not None]
    if not there:
        return
    place, mean, std = (np.array(column, dtype=float) for column in zip(*there, strict=True))
    error = std if std.any() else None
    if upright:
        axes.errorbar(place, mean, yerr=error, color=colour, marker="o", ms=4.5, lw=1.6, capsize=3, label=name)
    else:
        axes.errorbar(mean, place, xerr=error, color=colour, marker="o", ms=6, ls="", capsize=3, label=name)


@rc_context(LOOK)
def pareto(spec: SweepSpec, results: Sequence[TrialResult], front: Sequence[TrialResult], path: Path) -> None:
    """Both objectives of all trials, and the staircase of the front; its trials have the numbers of their order."""
    names, metrics = sides(spec)
    scales = [SCALES[name] for name in names]

    def places(some: Sequence[TrialResult]) -> tuple[list[float], ...]:
        return tuple([o.metrics[m] / unit for o in some] for m, (_, unit) in zip(metrics, scales, strict=True))

    figure, axes = _new(WIDTH, 4.2)
    axes.scatter(*places([o for o in results if o not in front]), color=GREY, s=20, alpha=0.45, lw=0, label="trials")
    axes.plot(*places(front), color=GREEN, lw=1.3, drawstyle="steps-post", alpha=0.7)
    axes.scatter(*places(front), color=GREEN, s=38, zorder=3, label="the front")
    # The front looks at the better corner, where there is no trial to write over.
    up = "test_top1" in names or "val_top1" in names
    for count, (x, y) in enumerate(zip(*places(front), strict=True), 1):
        axes.annotate(
            str(count), (x, y), (-4, 4 if up else -4), textcoords="offset points", ha="right",
            va="bottom" if up else "top", color=GREEN, fontweight="bold",
        )  # fmt: skip
    axes.margins(0.07)
    axes.set_xlabel(scales[0][0])
    axes.set_ylabel(scales[1][0])
    _legend_above(axes)
    _save(figure, path)


@rc_context(LOOK)
def learning(
    histories: Mapping[str, Mapping[int, float]],
    stopped: Sequence[str],
    best: str | None,
    rungs: Sequence[int],
    what: str,
    path: Path,
) -> None:
    """One line per trial.

    Args:
        histories: values by epoch, by run id.
        stopped: run ids of trials that early stopping ended; a cross marks where.
        best: run id of the trial to emphasise.
        rungs: epochs at which trials were compared.
        what: the values' name and unit.
    """
    figure, axes = _new(WIDTH, 3.9)
    ended = frozenset(stopped)
    faint = max(0.25, min(0.7, 12 / max(1, len(histories))))
    dots = "o" if max(len(points) for points in histories.values()) <= 12 else ""
    for epoch in rungs:
        axes.axvline(epoch, color="#a3abb3", lw=0.8, ls=":")
    for run_id in sorted(histories, key=lambda run_id: (run_id == best, run_id not in ended)):
        epochs = sorted(histories[run_id])
        values = [histories[run_id][epoch] for epoch in epochs]
        if run_id == best:
            axes.plot(epochs, values, color=BLUE, lw=2.4, marker=dots, ms=4.5)
        elif run_id in ended:
            axes.plot(epochs, values, color=ORANGE, lw=1, alpha=faint)
            axes.plot(epochs[-1:], values[-1:], color=ORANGE, marker="x", ms=5, alpha=min(1, 2 * faint))
        else:
            axes.plot(epochs, values, color=GREY, lw=1, alpha=faint, marker=dots, ms=3)
    kinds = [
        (best in histories, BLUE, 2.4, "", "the best trial"),
        (bool(set(histories) - {best, *stopped}), GREY, 1, "", "other trials" if best in histories else "trials"),
        (bool(stopped), ORANGE, 1, "x", "stopped early"),
    ]
    handles = [Line2D([], [], color=c, lw=w, marker=m, ms=5, label=label) for there, c, w, m, label in kinds if there]
    axes.set_xlabel("epoch")
    axes.set_ylabel(what)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_above(axes, handles)
    _save(figure, path)


@rc_context(LOOK)
def slices(spec: SweepSpec, results: Sequence[TrialResult], best: str | None, path: Path) -> None:
    """Validation top-1 against each parameter: hollow where stopped early, the best trial on top."""
    count = len(spec.parameters)
    columns = next((c for c in (3, 4, 2) if count % c == 0), 3) if count > 1 else 1
    lines = -(-count // columns)
    figure, first = _new(WIDTH, 2.1 * lines + 0.2)
    first.remove()
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for unused in panels[count:]:
        unused.remove()
    for parameter, panel in zip(spec.parameters, panels, strict=False):
        there = [o for o in results if parameter.name in o.params]
        texts = None if _range(parameter, there) else [str(value) for value in _values(parameter, there)]
        for status, colour, face in (("pruned", GREY, "none"), ("finished", BLUE, BLUE), ("best", ORANGE, ORANGE)):
            chosen = [o for o in there if ("best" if o.run_id == best else o.status) == status]
            values = [o.params[parameter.name] for o in chosen]
            x = [texts.index(str(value)) for value in values] if texts else [float(value) for value in values]
            size, solid = (42, 1.0) if status == "best" else (16, 0.65)
            y = [o.metrics[METRIC] for o in chosen]
            panel.scatter(x, y, facecolors=face, edgecolors=colour, s=size, alpha=solid, lw=0.9, label=status)
        if texts:
            long = sum(map(len, texts)) > 20
            tilt = {"rotation": 30, "ha": "right"} if long else {}
            panel.set_xticks(range(len(texts)), [textwrap.shorten(t, 16, placeholder="…") for t in texts], **tilt)
            panel.set_xlim(-0.5, len(texts) - 0.5)
        elif parameter.log:
            _by_ratios(panel)
        elif parameter.integer:
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.tick_params(labelsize=10)
        panel.set_xlabel(parameter.name)
    figure.supylabel("validation top-1 [%]", fontsize=11.5)
    _save(figure, path)


@rc_context(LOOK)
def parallel(spec: SweepSpec, results: Sequence[TrialResult], path: Path) -> None:
    """Each trial a line through its values, darker for better; "none" is where a parameter does not exist for it."""
    shown = sorted(results, key=lambda o: o.metrics[METRIC])
    figures = [o.metrics[METRIC] for o in shown]
    # What was stopped early would otherwise take most of the colours.
    whole = [o.metrics[METRIC] for o in shown if o.status == "finished"] or figures
    scale = Normalize(float(np.quantile(whole, 0.1)), figures[-1], clip=True)
    colours = colormaps["cividis_r"]
    none, random = -0.2, np.random.default_rng(0)
    figure, axes = _new(max(WIDTH, min(9.2, 0.85 * len(spec.parameters) + 1.2)), 4.2)
    columns = [_heights(parameter, shown) for parameter in spec.parameters]
    for result in shown:
        heights = [
            column(result.params[p.name]) if p.name in result.params else none
            for p, column in zip(spec.parameters, columns, strict=True)
        ]
        worth = float(scale(result.metrics[METRIC]))
        # Trials with the same value lie beside each other.
        places = np.array(heights) + random.uniform(-0.012, 0.012)
        axes.plot(range(len(heights)), places, color=colours(worth), lw=1 + 0.6 * worth, alpha=0.3 + 0.6 * worth)
    for x, (parameter, column) in enumerate(zip(spec.parameters, columns, strict=True)):
        axes.plot([x, x], [0, 1], color="#5c6670", lw=1)
        ends = _range(parameter, shown)
        marks: Sequence[Any] = ends or _values(parameter, shown)
        marks = marks if len(marks) <= 9 else [marks[0], marks[-1]]
        texts = [(column(v), textwrap.shorten(f"{v:g}" if _numeric(v) else str(v), 14, placeholder="…")) for v in marks]
        if any(parameter.name not in o.params for o in shown):
            texts.append((none, "none"))
        for height, text in texts:
            paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
            axes.text(x - 0.05, height, text, ha="right", va="center", fontsize=10.5, bbox=paper, zorder=5)
    axes.set_xticks(range(len(spec.parameters)), [p.name for p in spec.parameters])
    axes.tick_params(length=0)
    axes.set_yticks([])
    axes.set_xlim(-0.5, len(spec.parameters) - 0.8)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    figure.colorbar(
        ScalarMappable(scale, colours), ax=axes, label="validation top-1 [%]", extend="min", fraction=0.03, pad=0.02
    )
    _save(figure, path)


@rc_context(LOOK)
def importance(shares: Mapping[str, float], path: Path) -> None:
    """Optuna's importance of each parameter, as shares of 1."""
    figure, axes = _new(WIDTH, 0.34 * len(shares) + 0.8)
    axes.barh(range(len(shares)), list(shares.values()), color=BLUE, height=0.62)
    for y, share in enumerate(shares.values()):
        axes.text(share + 0.01, y, f"{100 * share:.0f} %", va="center")
    axes.set_yticks(range(len(shares)), list(shares))
    axes.set_ylim(len(shares) - 0.5, -0.5)
    axes.set_xlim(0, max(shares.values()) * 1.1 + 0.02)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
    axes.grid(False, axis="y")
    axes.set_xlabel("share of the importance")
    _save(figure, path)


def sides(spec: SweepSpec) -> tuple[list[str], list[str]]:
    """Names and metrics of both objectives, the accuracy second: it goes up, and what it costs to the right."""
    from fgst.sweep.definition import OBJECTIVES

    names = sorted(spec.objectives, key=lambda name: OBJECTIVES[name][0] == "maximize")
    return names, [OBJECTIVES[name][1] for name in names]


def number(text: str) -> float | None:
    """A finite number that a text is, if it is one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _numeric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _range(parameter: Parameter, results: Sequence[TrialResult]) -> tuple[float, float] | None:
    """Both ends of what a parameter may be; ``None`` where it is one of some values."""
    if parameter.values or parameter.low is None or parameter.high is None:
        return None
    tried = [o.params[parameter.name] for o in results if parameter.name in o.params]
    return (parameter.low, parameter.high) if all(map(_numeric, tried)) else None


def _values(parameter: Parameter, results: Sequence[TrialResult]) -> list[Any]:
    """What a parameter may be, and what else was tried."""
    return list(
        dict.fromkeys([*parameter.values, *(o.params[parameter.name] for o in results if parameter.name in o.params)])
    )


def _heights(parameter: Parameter, results: Sequence[TrialResult]) -> Callable[[Any], float]:
    """Where a value lies on the parameter's axis: from 0 to 1 along a range, evenly spaced among values."""
    ends = _range(parameter, results)
    if ends is None:
        values = [str(value) for value in _values(parameter, results)]
        return lambda value: values.index(str(value)) / (len(values) - 1) if len(values) > 1 else 0.5
    low, high = map(math.log, ends) if parameter.log else ends
    return lambda value: ((math.log(value) if parameter.log else value) - low) / (high - low) if high > low else 0.5


def _by_ratios(axes: Any) -> None:
    """A logarithmic scale whose numbers are written out, 0.01 and not a power of ten."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    subs = (1, 2, 5) if high < 60 * low else (1, 3) if high < 300 * low else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _legend_above(axes: Any, handles: Sequence[Any] | None = None) -> None:
    """A legend over the picture, where it hides nothing."""
    found = list(handles) if handles is not None else axes.get_legend_handles_labels()[0]
    if found:
        place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "borderaxespad": 0.2}
        axes.legend(handles=found, ncols=4, handlelength=1.8, columnspacing=1.6, **place)
