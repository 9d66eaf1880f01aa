"""The pictures of a sweep's report (matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgst.figures import BLUE, GREEN, GREY, ORANGE, _new, _save
from fgst.sweep.spec import OBJECTIVES, SweepSpec
from fgst.sweep.statistics import Outcome, Row

METRIC = "val/top1"


def curve(spec: SweepSpec, rows: Sequence[Row], path: Path) -> None:
    """Accuracy against the one thing that is varied, mean and standard deviation, with the paper's figures."""
    labels = [row.label.partition("=")[2] for row in rows]
    numbers = [float(label) for label in labels] if all(map(_is_number, labels)) else None
    places = np.array(numbers) if numbers else np.arange(len(labels))
    figure, axes = _new(7.2, 4)
    style = "-" if numbers else ""
    for figures_of, colour, name in (
        ([row.val for row in rows], ORANGE, "validation"), ([row.test for row in rows], BLUE, "test"),
    ):  # fmt: skip
        there = [(x, *found) for x, found in zip(places, figures_of, strict=True) if found is not None]
        if there:
            x, mean, std = (np.array(column, dtype=float) for column in zip(*there, strict=True))
            error = std if std.any() else None
            axes.errorbar(x, mean, yerr=error, color=colour, marker="o", ls=style, capsize=3, label=name)
    known = [(x, row.published) for x, row in zip(places, rows, strict=True) if row.published is not None]
    if known:
        label = f"paper, {spec.source}"
        axes.plot(*zip(*known, strict=True), color=GREY, ls="--" if numbers else "", marker="s", ms=4, label=label)
    tilt = {"rotation": 25, "ha": "right"} if not numbers and max(map(len, labels)) > 6 else {}
    axes.set_xticks(places, labels, **tilt)
    axes.set_xlabel(spec.parameters[0].name)
    axes.set_ylabel("top-1 [%]")
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(fontsize=8)
    _save(figure, path)


def learning(histories: Mapping[str, Mapping[int, float]], best: str | None, what: str, path: Path) -> None:
    """One line per trial, the best one on top; a trial that was stopped ends early."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _new(7.2, 3.8)
    for run_id, points in sorted(histories.items(), key=lambda item: item[0] == best):
        epochs = sorted(points)
        chosen = run_id == best
        axes.plot(
            epochs, [points[e] for e in epochs], color=ORANGE if chosen else GREY, alpha=1 if chosen else 0.45,
            lw=2.2 if chosen else 1, marker="o", ms=4 if chosen else 2.5, label="the best trial" if chosen else None,
        )  # fmt: skip
    axes.set_xlabel("epoch")
    axes.set_ylabel(what)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if best in histories:
        axes.legend(fontsize=8)
    _save(figure, path)


def slices(spec: SweepSpec, outcomes: Sequence[Outcome], path: Path) -> None:
    """Validation top-1 against each thing that is varied; trials that were stopped early are hollow."""
    columns = min(4, len(spec.parameters))
    lines = -(-len(spec.parameters) // columns)
    figure, first = _new(2.4 * columns, 2.4 * lines)
    first.remove()
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for unused in axes[len(spec.parameters) :]:
        unused.remove()
    for parameter, one in zip(spec.parameters, axes, strict=False):
        there = [o for o in outcomes if parameter.name in o.point and METRIC in o.metrics]
        numeric = all(_is_number(str(o.point[parameter.name])) for o in there)
        texts = sorted({str(o.point[parameter.name]) for o in there})
        for ending, face in (("pruned", "none"), ("finished", BLUE)):
            chosen = [o for o in there if o.ending == ending]
            x = [
                float(o.point[parameter.name]) if numeric else texts.index(str(o.point[parameter.name])) for o in chosen
            ]
            one.scatter(x, [o.metrics[METRIC] for o in chosen], facecolors=face, edgecolors=BLUE, s=22, alpha=0.8)
        if not numeric:
            one.set_xticks(range(len(texts)), texts, rotation=30, ha="right", fontsize=7)
        if parameter.log:
            one.set_xscale("log")
        one.set_xlabel(parameter.name)
        one.grid(alpha=0.3)
    figure.supylabel("validation top-1 [%]", fontsize=9)
    _save(figure, path)


def parallel(spec: SweepSpec, outcomes: Sequence[Outcome], path: Path) -> None:
    """Each trial a line through its values, darker for better; what does not exist for a trial is passed over."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    shown = sorted((o for o in outcomes if METRIC in o.metrics), key=lambda o: o.metrics[METRIC])
    names = [parameter.name for parameter in spec.parameters]
    figure, axes = _new(max(6.5, 1.3 * len(names) + 2), 4)
    scale = Normalize(shown[0].metrics[METRIC], shown[-1].metrics[METRIC])
    colours = colormaps["cividis_r"]
    heights = {}
    for name in names:
        values = sorted({o.point[name] for o in shown if name in o.point}, key=_order)
        numbers = [float(v) for v in values] if values and all(_is_number(str(v)) for v in values) else None
        if numbers and numbers[-1] > numbers[0]:
            heights[name] = {
                v: (n - numbers[0]) / (numbers[-1] - numbers[0]) for v, n in zip(values, numbers, strict=True)
            }
        else:
            heights[name] = {v: i / max(1, len(values) - 1) for i, v in enumerate(values)}
    for outcome in shown:
        points = [(x, heights[n][outcome.point[n]]) for x, n in enumerate(names) if n in outcome.point]
        axes.plot(*zip(*points, strict=True), color=colours(scale(outcome.metrics[METRIC])), lw=1.4, alpha=0.8)
    for x, name in enumerate(names):
        axes.axvline(x, color=GREY, lw=0.8)
        ends = {0.0: None, 1.0: None} | {h: v for v, h in heights[name].items() if h in (0.0, 1.0)}
        for height, value in ends.items():
            if value is not None:
                text = f"{value:.3g}" if isinstance(value, float) else str(value)
                axes.text(
                    x,
                    height + (0.04 if height else -0.04),
                    text,
                    ha="center",
                    va="bottom" if height else "top",
                    fontsize=8,
                )
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks([])
    axes.set_ylim(-0.14, 1.14)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    figure.colorbar(ScalarMappable(scale, colours), ax=axes, label="validation top-1 [%]", fraction=0.04)
    _save(figure, path)


def importance(values: Mapping[str, float], path: Path) -> None:
    """Share of the variation of the objective that each parameter explains."""
    figure, axes = _new(6.5, 0.4 * len(values) + 1.1)
    names = list(values)[::-1]
    axes.barh(names, [values[name] for name in names], color=BLUE)
    axes.set_xlabel("importance (fANOVA, shares of 1)")
    axes.set_xlim(0, 1)
    axes.grid(alpha=0.3, axis="x")
    _save(figure, path)


def pareto(spec: SweepSpec, outcomes: Sequence[Outcome], front: Sequence[Outcome], path: Path) -> None:
    """Both objectives of all trials; those that none beats in both are joined."""
    figure, axes = _new(7.2, 4)
    (first, second) = (OBJECTIVES[name][1] for name in spec.objectives)

    def places(some: Sequence[Outcome]) -> tuple[list[float], list[float]]:
        return [o.metrics[second] for o in some], [o.metrics[first] for o in some]

    axes.scatter(*places(outcomes), color=GREY, s=22, alpha=0.6, label="trials")
    ordered = sorted(front, key=lambda o: o.metrics[second])
    axes.plot(*places(ordered), color=GREEN, marker="o", ms=6, lw=1.2, label="the front")
    axes.set_xlabel(second)
    axes.set_ylabel(first)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, path)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _order(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))
