"""The sections of the report: one function for each, which computes the variables of its part of the template."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgst.result_setting import COLUMNS
from fgst.sweep.correctness import ByRun
from fgst.sweep.noise import Difference
from fgst.sweep.report import plots, published_results
from fgst.sweep.report.analysis import (
    VAL_TOP1,
    early_stopping_verdict,
    objective_axes,
    parameter_importance,
    pareto_front,
)
from fgst.sweep.report.elements import Cell, Picture, Table, draw_picture, make_table
from fgst.sweep.report.tables import format_mean_std, row_heading
from fgst.sweep.results import (
    MeanStd,
    Row,
    TrialResult,
    rank_report,
)
from fgst.sweep.spec import SweepSpec
from fgst.sweep.status import TrialStatus

MAX_ROWS = 30  # of a search; a grid is always shown in full
MAX_FAILED_TRIALS = 12  # listed by name for each reason
STATUS_WORDS = {
    TrialStatus.FINISHED: "finished",
    TrialStatus.PRUNED: "stopped early",
    TrialStatus.FAILED: "failed",
    TrialStatus.INTERRUPTED: "interrupted",
    TrialStatus.RUNNING: "running",
}


@dataclass(frozen=True)
class ReportData:
    """Everything that the report of a sweep shows.

    Attributes:
        spec: the sweep's specification.
        results: all trials that were started.
        histories: values by epoch, by run id and metric (``val/top1``, ``train/loss``).
        study: the Optuna study of a search, or ``None``.
        sweep_id: MLflow run id of the sweep.
        resume_command: words of the command that resumes the sweep or prints its table.
        notes: remarks for the reader, e.g. why the sweep stopped; without a final period.
        correct: which clips the trials classified correctly, by run id.
    """

    spec: SweepSpec
    results: Sequence[TrialResult]
    histories: Mapping[str, Mapping[str, Mapping[int, float]]]
    study: Any
    sweep_id: str
    resume_command: Sequence[str]
    notes: Sequence[str] = ()
    correct: ByRun = field(default_factory=dict)


def summary(data: ReportData) -> dict[str, str]:
    """Data, protocol, network, training and number of trials, by heading."""
    spec, base = data.spec, data.spec.base
    config, model, train = base.data, base.model, base.train
    if config.protocol == "paper":
        protocol = "paper: all training clips are used for training; accuracy is reported on the test clips"
    else:
        protocol = f"{config.protocol}: {_held_out(spec)}, held out for selection"
    counts = Counter(result.status for result in data.results)
    started = ", ".join(f"{counts[status]} {words}" for status, words in STATUS_WORDS.items() if counts[status])
    method = "race" if spec.race else spec.search
    planned = f"{'up to ' * (spec.race or spec.search != 'grid')}{spec.total} by {method}"
    return {
        "data": " · ".join(str(part) for part in (spec.dataset_name, config.benchmark, config.modality) if part),
        "protocol": protocol,
        "network": f"{model.stage1_layers} + {model.stage2_layers} layers, {min(model.channels)} to "
        f"{max(model.channels)} channels, K = {model.focal_joints}, unless varied",
        "preset": spec.setting.preset,
        "training": f"{_count(train.epochs, 'epoch')} of {_count(train.repeat or 1, 'pass', 'passes')}, "
        f"batch size {train.batch_size}, {train.precision}, {_count(spec.seeds, spec.repetitions[:-1])}",
        "trials": f"{planned}: {started or 'none started'}",
    }


def answer(spec: SweepSpec, rows: Sequence[Row], best: TrialResult | None, baseline: str | None) -> dict[str, str]:
    """The outcome in one sentence, without the final period; ``best`` is the label it starts with, or empty."""
    if best is None:
        return {"best": "", "text": "No trial has finished, so there is no result yet"}
    if VAL_TOP1 not in best.metrics:
        text = (
            "The table reports test accuracy, and no configuration was selected: no clips were held out for "
            "selection, and test clips are never used for it"
        )
        return {"best": "", "text": text}
    row = next(row for row in rows if row.label == best.label)
    text = f"is the best by validation: {format_mean_std(row.val)} %"
    several = f"mean ± standard deviation over {row.finished} {spec.repetitions}"
    text += f" ({several})" if row.finished > 1 else " (one seed)"
    text += f", with {format_mean_std(row.test)} % on the test clips" if row.test is not None else ""
    if difference := row.val_difference:
        noise = "beyond noise" if difference.beyond_noise else "within noise"
        text += f"; it differs from the baseline {baseline} by {_points(difference)} points (95 % interval), "
        text += f"which is {noise}"
    elif best.label == baseline and any(row.val_difference for row in rows):
        compared = [row.val_difference for row in rows if row.val_difference]
        within = sum(not difference.beyond_noise for difference in compared)
        text += f"; it is the baseline, and {within} of the {len(compared)} other rows are within noise of it"
    elif len(rows) > 1:
        common = f"two {spec.repetitions} in common with the baseline"
        text += f"; without {common}, differences cannot be separated from noise"
    if len(spec.objectives) > 1:
        text += ". The Pareto front below weighs its accuracy against its cost"
    return {"best": best.label, "text": text}


def results(spec: SweepSpec, rows: Sequence[Row], best: TrialResult | None, baseline: str | None) -> dict[str, Any]:
    """The table of configurations and remarks on how to read it."""
    is_paper = spec.base.data.protocol == "paper"
    best_label = best.label if best is not None and VAL_TOP1 in best.metrics else None

    def difference_of(row: Row) -> Difference | None:
        return row.test_difference if is_paper else row.val_difference

    def heading_cell(row: Row) -> Cell:
        roles = {"best": best_label, "baseline": baseline}
        badges = [role for role, label in roles.items() if row.label == label] + ["dropped"] * bool(row.dropped)
        return Cell(row_heading(spec, row), badges_after=badges)

    def difference_cell(row: Row) -> Cell:
        difference = difference_of(row)
        if difference is None:
            return Cell("–")
        return Cell(_points(difference), badges_before=() if difference.beyond_noise else ("within noise",))

    def clips_cell(row: Row) -> Cell:
        difference = row.clip_difference
        if difference is None:
            return Cell("–")
        badges = () if difference.beyond_noise else ("within noise",)
        return Cell(f"± {difference.half_width:.1f}", badges_before=badges)

    has_differences = any(difference_of(row) for row in rows)
    has_clips = has_differences and any(row.clip_difference for row in rows) and not spec.varies_folds
    has_published = any(row.published is not None for row in rows)
    columns: list[tuple[str, Callable[[Row], Cell | str], bool]] = [
        (spec.axis if len(spec.parameters) == 1 else "configuration", heading_cell, True),
        ("finished", lambda row: f"{row.finished} of {row.trials}", True),
        ("stopped\nearly", lambda row: str(row.pruned or "–"), any(row.pruned for row in rows)),
        ("failed", lambda row: str(row.failed or "–"), any(row.failed for row in rows)),
        ("validation\ntop-1 %", lambda row: _mean_std(row.val), not is_paper),
        ("test\ntop-1 %", lambda row: _mean_std(row.test), True),
        ("difference to\nbaseline, 95 %", difference_cell, has_differences),
        ("also on\nother clips", clips_cell, has_clips),
        ("minutes", lambda row: _mean_std(row.minutes), True),
        ("paper\ntop-1 %", lambda row: "–" if row.published is None else f"{row.published:.1f}", has_published),
    ]
    columns = [column for column in columns if column[2]]
    shown = rows if spec.search == "grid" else rows[:MAX_ROWS]
    table = make_table(
        [heading for heading, _, _ in columns],
        [[make_cell(row) for _, make_cell, _ in columns] for row in shown],
        highlighted_row=next((index for index, row in enumerate(shown) if row.label == best_label), None),
    )
    remarks = []
    if hidden := rows[len(shown) :]:
        finished = sum(row.finished > 0 for row in hidden) or "none"
        remarks.append(
            f"The best {MAX_ROWS} of {len(rows)} configurations; {len(hidden)} more, {finished} of them finished, "
            "are in table.csv next to this page"
        )
    if not is_paper:
        remarks.append(f"Selection uses validation clips ({_held_out(spec)}); test accuracy is only reported")
    if spec.varies_folds:
        remarks.append("Validation means count the clips of all folds equally")
    if has_differences:
        split = "test" if is_paper else "validation"
        remarks.append(
            f"Differences in {split} accuracy are to {baseline}, over the {spec.repetitions} that both have; those "
            "within noise may be chance, given the number of rows (Holm)"
        )
    if has_published:
        remarks.append(f"Published values: {spec.source}")
    return {"table": table, "remarks": remarks}


def published(spec: SweepSpec) -> dict[str, Any] | None:
    """What the sweep's and the published results were obtained with, and the latter if they cannot be compared."""
    if not spec.published:
        return None
    headings = ["results", *COLUMNS]
    listed = None
    if not spec.has_comparable_published:
        headings_of_values = [spec.axis, f"{spec.source or 'published'},\ntop-1 %"]
        listed = make_table(headings_of_values, published_results.values(spec))
    return {
        "heading": published_results.heading(spec),
        "settings": make_table(headings, published_results.settings(spec), text_columns=range(len(headings) - 2)),
        "listed": listed,
    }


def accuracy_curve(spec: SweepSpec, rows: Sequence[Row], pictures: Path) -> dict[str, Any] | None:
    """Accuracy by the value of the parameter, for sweeps of a single parameter."""
    measured = [row for row in rows if row.val or row.test]
    if len(spec.parameters) != 1 or not measured:
        return None
    name = spec.parameters[0].name
    caption = f"Means; the bars show one standard deviation where there are several {spec.repetitions}"
    if any(row.published is not None for row in measured):
        caption += f"; paper: {spec.source}"
    split = "validation" if any(row.val for row in measured) else "test"
    values = "; ".join(
        f"{row_heading(spec, row)}: {format_mean_std(row.val or row.test)}" for row in measured[:MAX_ROWS]
    )
    alt = f"Top-1 in % by {name}, {split}: {values}"
    return {
        "parameter": name,
        "picture": draw_picture(pictures / "curve.png", alt, caption, plots.accuracy_curve, spec, measured),
    }


def pareto(spec: SweepSpec, results: Sequence[TrialResult], pictures: Path) -> dict[str, Any] | None:
    """The Pareto front, for searches with two objectives."""
    if len(spec.objectives) != 2:
        return None
    names, metrics = objective_axes(spec)
    finished = _with_metrics([r for r in results if r.status == TrialStatus.FINISHED], *metrics)
    if not finished:
        return None
    front = pareto_front(spec, finished)
    caption = "Green: trials that no other trial beats in both objectives, numbered as in the table below"
    alt = f"{len(finished)} trials by {names[0]} and {names[1]}, {len(front)} of them on the Pareto front"
    picture = draw_picture(pictures / "pareto.png", alt, caption, plots.pareto_front, spec, finished, front)
    scales = [plots.OBJECTIVE_SCALES[name] for name in names]
    rows: list[list[Cell | str]] = []
    for number, result in enumerate(front, 1):
        values = [f"{result.metrics[metric] / unit:.4g}" for metric, (_, unit) in zip(metrics, scales, strict=True)]
        rows.append([str(number), _trial_name(result), *values, Cell(result.run_id, is_code=True)])
    table = make_table(["#", "trial", *(label for label, _ in scales), "run"], rows, text_columns=(1,))
    return {"picture": picture, "table": table}


def learning_curves(data: ReportData, best: TrialResult | None, pictures: Path) -> Picture | None:
    """Validation accuracy of all trials by epoch, or the training loss where nothing was validated."""
    train = data.spec.base.train
    metric, axis_label = VAL_TOP1, "validation top-1 [%]"
    if not any(data.histories.get(result.run_id, {}).get(metric) for result in data.results):
        metric, axis_label = "train/loss", "training loss"
    curves = {
        result.run_id: dict(history)
        for result in data.results
        if (history := data.histories.get(result.run_id, {}).get(metric))
    }
    if not curves:
        return None
    pruned = [r.run_id for r in data.results if r.status == TrialStatus.PRUNED and r.run_id in curves]
    rungs, early_stop = [], data.spec.early_stop
    if early_stop is not None:
        epoch = early_stop.grace_period
        while epoch < train.epochs:
            rungs.append(epoch)
            epoch *= early_stop.reduction_factor
    emphasized = best if metric == VAL_TOP1 else None
    alt = f"{axis_label} by epoch of {_count(len(curves), 'trial')}, {len(pruned)} of them stopped early"
    caption = "One line per trial"
    caption += f"; the best is {_trial_name(emphasized)}" if emphasized is not None else ""
    caption += "; dotted: epochs at which trials were compared" if rungs else ""
    best_id = emphasized.run_id if emphasized is not None else None
    return draw_picture(
        pictures / "learning.png", alt, caption, plots.learning_curves, curves, pruned, best_id, rungs, axis_label
    )


def parameters(data: ReportData, best: TrialResult | None, pictures: Path) -> dict[str, Any] | None:
    """How accuracy depends on each parameter, for sweeps of several parameters."""
    spec = data.spec
    compared = [result for result in data.results if result.status in (TrialStatus.FINISHED, TrialStatus.PRUNED)]
    compared = [result for result in _with_metrics(compared, VAL_TOP1) if result.params]
    if len(spec.parameters) < 2 or len(compared) < 2:
        return None
    names = ", ".join(parameter.name for parameter in spec.parameters)
    alt = f"Parallel coordinates of {len(compared)} trials over {names}"
    caption = "Each trial is a line through its parameter values; darker lines have a higher validation top-1"
    parallel = draw_picture(pictures / "parallel.png", alt, caption, plots.parallel_coordinates, spec, compared)
    shares, explanation = parameter_importance(data.study)
    importance = None
    if shares:
        if any(parameter.condition for parameter in spec.parameters):
            explanation += (
                ". The share of a parameter that exists in some trials only includes the effect of the parameter that "
                "enables it"
            )
        alt = "Importance: " + ", ".join(f"{name} {_percent(share)}" for name, share in shares.items())
        importance = draw_picture(pictures / "importance.png", alt, explanation, plots.importance, shares)
    alt, caption = f"Validation top-1 against each of {names}", "One dot per trial; orange: the best"
    if any(result.status == TrialStatus.PRUNED for result in compared):
        caption += "; hollow: stopped early, with the value of its last epoch"
    best_id = best.run_id if best is not None else None
    return {
        "parallel": parallel,
        "importance": importance,
        "reason_for_no_importance": explanation,
        "slices": draw_picture(pictures / "slices.png", alt, caption, plots.slices, spec, compared, best_id),
    }


def early_stopping(data: ReportData) -> dict[str, Any] | None:
    """Whether early stopping was safe, or would have been, judged by the trials that ran to the last epoch."""
    spec = data.spec
    if spec.varies_folds:  # trials of different folds cannot be ranked
        return None
    finished = [result.run_id for result in data.results if result.status == TrialStatus.FINISHED]
    rungs = rank_report(spec, [data.histories.get(run_id, {}).get(VAL_TOP1, {}) for run_id in finished])
    if not rungs:
        return None
    rows = [
        [
            f"{rung.epoch} of {spec.base.train.epochs}",
            "–" if rung.tau is None else _real_minus(f"{rung.tau:+.2f}"),
            str(rung.trials),
            "continues" if rung.kept_best else "stopped",
        ]
        for rung in rungs
    ]
    headings = ["after epoch", "Kendall's tau\nwith last epoch", "trials", "best trial"]
    return {
        "question": "Was early stopping safe?" if spec.early_stop else "Would early stopping have been safe?",
        "verdict": early_stopping_verdict(rungs, spec.early_stop),
        "table": make_table(headings, rows, text_columns=()),
    }


def failures(results: Sequence[TrialResult]) -> Table | None:
    """Failed trials by reason."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for result in results:
        if result.status == TrialStatus.FAILED:
            by_reason[result.reason or "–"].append(_trial_name(result))
    if not by_reason:
        return None
    rows = []
    for reason, names in by_reason.items():
        if len(names) > MAX_FAILED_TRIALS:
            names = [*names[: MAX_FAILED_TRIALS - 2], f"{len(names) - MAX_FAILED_TRIALS + 2} more"]
        rows.append([", ".join(names), reason])
    return make_table(["trials", "reason"], rows, text_columns=(0, 1))


def cost(data: ReportData) -> Table | None:
    """Device hours, money, memory, throughput, and the epochs that early stopping saved."""

    def values(metric: str) -> list[float]:
        return [result.metrics[metric] for result in _with_metrics(data.results, metric)]

    rows = []
    if seconds := values("device_seconds"):
        rows.append(["device hours (of a GPU, or of a core)", f"{sum(seconds) / 3600:,.2f}"])
    if prices := values("cost"):
        rows.append(["cost", f"{sum(prices):,.2f}"])
    if peaks := values("peak_memory_gib"):
        rows.append(["peak memory of the largest trial", f"{max(peaks):.2f} GiB"])
    if speeds := values("clips_per_second"):
        rows.append(["clips per second of a trial, median", f"{statistics.median(speeds):,.0f}"])
    epochs, saved = data.spec.base.train.epochs, []
    for result in data.results:
        recorded = [epoch for history in data.histories.get(result.run_id, {}).values() for epoch in history]
        if result.status == TrialStatus.PRUNED and recorded:
            saved.append(epochs - max(recorded))
    if saved:
        planned = epochs * sum(result.status in (TrialStatus.FINISHED, TrialStatus.PRUNED) for result in data.results)
        share = _percent(sum(saved) / planned)
        rows.append(["epochs saved by early stopping", f"{sum(saved):,} of {planned:,} ({share})"])
    return make_table((), rows) if rows else None


def settings(spec: SweepSpec) -> dict[str, Table]:
    """The varied parameters, and all settings of the base configuration."""
    varied = []
    for parameter in spec.parameters:
        values = parameter.describe()
        if parameter.condition is not None:
            other, required = parameter.condition
            values += f", where {other} is {' or '.join(map(str, required))}"
        varied.append([parameter.name, values])
    base = [[name, json.dumps(value)] for name, value in spec.base.flat().items()]
    return {
        "varied": make_table(["parameter", "values"], varied, text_columns=(0, 1)),
        "base": make_table(["setting", "value"], base, text_columns=(0, 1)),
    }


def evaluation(data: ReportData, best: TrialResult | None) -> dict[str, str] | None:
    """The command that evaluates the best trial."""
    if best is None:
        return None
    words = list(data.resume_command)
    store = words[words.index("--tracking-uri") :][:2] if "--tracking-uri" in words else []
    return {
        "purpose": "Evaluate the best trial" if VAL_TOP1 in best.metrics else "Evaluate a trial",
        "command": shlex.join(["python", "-m", "fgst.evaluate", "--run-id", best.run_id, *store]),
    }


def _with_metrics(results: Sequence[TrialResult], *metrics: str) -> list[TrialResult]:
    """Filter trials for finite values of all these metrics."""
    return [
        result for result in results if all(math.isfinite(result.metrics.get(metric, math.nan)) for metric in metrics)
    ]


def _held_out(spec: SweepSpec) -> str:
    """What is held out for validation, in words; sweeps of earlier versions hold out subjects and did not record it."""
    return spec.held_out or f"{_percent(spec.base.data.validation)} of the training subjects"


def _trial_name(result: TrialResult) -> str:
    return f"{result.label} s{result.seed}"


def _mean_std(value: MeanStd | None) -> str:
    return "–" if value is None else format_mean_std(value)


def _points(difference: Difference) -> str:
    return _real_minus(f"{difference.mean:+.1f} ± {difference.half_width:.1f}")


def _real_minus(text: str) -> str:
    """Replace hyphens by minus signs, which are as wide as plus signs."""
    return text.replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _count(number: int, singular: str, plural: str = "") -> str:
    return f"{number} {singular if number == 1 else plural or singular + 's'}"
