"""The report of a sweep: one HTML file with everything in it, to be read anywhere, without a network."""

from __future__ import annotations

import json
import math
import statistics
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgst.sweep.definition import OBJECTIVES
from fgst.sweep.report import plots
from fgst.sweep.report.markup import Markup, document, escape, figure, grid
from fgst.sweep.report.plots import METRIC
from fgst.sweep.report.tables import format_figure, short
from fgst.sweep.results import (
    Difference,
    Row,
    TrialResult,
    TrialStatus,
    baseline_label,
    best_result,
    build_rows,
    rank_report,
)
from fgst.sweep.spec import SweepSpec

SHOWN = 30  # rows of a search


@dataclass(frozen=True)
class ReportData:
    """What the page tells.

    Attributes:
        histories: by run id and metric (``val/top1``, ``train/loss``), values by epoch.
        study: Optuna's, or ``None``.
        sweep_id: MLflow run id of the sweep.
        again: the command that goes on with it, or repeats its table.
        notes: what the reader must know, e.g. why it stopped.
    """

    spec: SweepSpec
    results: Sequence[TrialResult]
    histories: Mapping[str, Mapping[str, Mapping[int, float]]]
    study: Any
    sweep_id: str
    again: str
    notes: Sequence[str] = ()


def write_page(told: ReportData, folder: Path) -> Path:
    """Write ``report.html``, and the pictures that it holds once more under ``figures``; returns the page."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    page.write_text(document(told.spec.title, _sections(told, folder / "figures")), encoding="utf-8")
    return page


def _sections(told: ReportData, folder: Path) -> Iterator[str]:
    spec, results = told.spec, told.results
    rows, best, baseline = build_rows(spec, results), best_result(spec, results), baseline_label(spec, results)
    yield _heading(told)
    yield _answer(spec, rows, best, baseline)
    yield from (f'<p class="soft">Note: {escape(note)}.</p>' for note in told.notes)
    yield from _table(spec, rows, best, baseline)
    yield from _curve(spec, rows, folder)
    yield from _front(spec, results, folder)
    yield from _learning(told, best, folder)
    yield from _searched(told, best, folder)
    yield from _ranks(told)
    yield from _failures(results)
    yield from _cost(told)
    yield _settings(spec)
    yield _repeat(told, best)


def _heading(told: ReportData) -> str:
    spec, base, count = told.spec, told.spec.base, Counter(o.status for o in told.results)
    data, model, train = base.data, base.model, base.train
    words = {"pruned": "stopped early"}
    ended = ", ".join(f"{count[status]} {words.get(status, status)}" for status in TrialStatus if count[status])
    protocol = "paper: all training clips are trained on, and the test clips report"
    if data.protocol != "paper":
        protocol = f"{data.protocol}: {_share(data.validation)} of the training subjects are held out to choose by"
    planned = f"{spec.total} by {spec.search}" if spec.search == "grid" else f"up to {spec.total} by {spec.search}"
    facts = {
        "data": " · ".join(str(part) for part in (spec.dataset_name, data.benchmark, data.modality) if part),
        "protocol": protocol,
        "network": f"{model.stage1_layers} + {model.stage2_layers} layers, {min(model.channels)} to "
        f"{max(model.channels)} channels, K = {model.focal_joints}, unless varied",
        "training": f"{_several(train.epochs, 'epoch')} of {_several(train.repeat or 1, 'pass', 'passes')}, "
        f"batches of {train.batch_size}, {train.precision}, {_several(spec.seeds, 'seed')}",
        "trials": f"{planned}: {ended or 'none has begun'}",
    }
    items = "".join(f"<dt>{name}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items())
    return f"<h1>{escape(spec.title)}</h1>\n<dl>{items}</dl>"


def _answer(spec: SweepSpec, rows: Sequence[Row], best: TrialResult | None, baseline: str | None) -> str:
    if best is None:
        return '<p class="answer">No trial has finished, so there is no answer yet.</p>'
    if METRIC not in best.metrics:
        why = "nothing was held out to choose by, and the test clips are not for choosing"
        return f'<p class="answer">The table reports test accuracy and nothing was chosen: {why}.</p>'
    row = next(row for row in rows if row.label == best.label)
    text = f" is the best by validation: {format_figure(row.val)} %"
    text += f" (mean ± standard deviation of {row.finished} seeds)" if row.finished > 1 else " (one seed)"
    text += f", and {format_figure(row.test)} % on the test clips" if row.test is not None else ""
    if difference := row.val_difference:
        sure = "beyond noise" if difference.beyond_noise else "within noise"
        text += f"; {_points(difference)} points from the baseline {baseline} (95 % interval), which is {sure}"
    elif best.label == baseline and any(r.val_difference for r in rows):
        compared = [r.val_difference for r in rows if r.val_difference]
        noise = sum(not difference.beyond_noise for difference in compared)
        text += f"; it is the baseline, and {noise} of the {len(compared)} others differ from it within noise"
    elif len(rows) > 1:
        text += "; without two seeds in common with the baseline, what is noise cannot be told"
    if len(spec.objectives) > 1:
        text += ". What it costs is weighed in the Pareto front below"
    return f'<p class="answer"><strong>{escape(best.label)}</strong>{escape(text)}.</p>'


def _table(spec: SweepSpec, rows: Sequence[Row], best: TrialResult | None, baseline: str | None) -> Iterator[str]:
    paper = spec.base.data.protocol == "paper"
    mark = best.label if best is not None and METRIC in best.metrics else None
    split = "test" if paper else "validation"

    def label(row: Row) -> Markup:
        tags = [tag for tag, on in (("best", row.label == mark), ("baseline", row.label == baseline)) if on]
        return Markup(escape(short(spec, row.label)) + "".join(f'<span class="tag">{tag}</span>' for tag in tags))

    def difference(row: Row) -> Markup | str:
        found = row.test_difference if paper else row.val_difference
        if found is None:
            return "–"
        return Markup(("" if found.beyond_noise else '<span class="tag">within noise</span>') + _points(found))

    differences = any(row.test_difference if paper else row.val_difference for row in rows)
    columns: list[tuple[str, Callable[[Row], str], bool]] = [
        (spec.axis if len(spec.parameters) == 1 else "configuration", label, True),
        ("finished", lambda row: f"{row.finished} of {row.trials}", True),
        ("stopped\nearly", lambda row: str(row.pruned or "–"), any(row.pruned for row in rows)),
        ("failed", lambda row: str(row.failed or "–"), any(row.failed for row in rows)),
        ("validation\ntop-1 %", lambda row: format_figure(row.val).replace("-", "–"), not paper),
        ("test\ntop-1 %", lambda row: format_figure(row.test).replace("-", "–"), True),
        ("difference to\nbaseline, 95 %", difference, differences),
        ("minutes", lambda row: format_figure(row.minutes).replace("-", "–"), True),
        ("paper\ntop-1 %", lambda row: "–" if row.published is None else f"{row.published:.1f}",
         any(row.published is not None for row in rows)),
    ]  # fmt: skip
    used = [(heading, cell) for heading, cell, wanted in columns if wanted]
    shown = rows if spec.search == "grid" else rows[:SHOWN]
    cells = [[cell(row) for _, cell in used] for row in shown]
    yield "<h2>Table</h2>" + grid([heading for heading, _ in used], cells, [row.label == mark for row in shown])
    notes = []
    if len(shown) < len(rows):
        finished = sum(row.finished > 0 for row in rows[SHOWN:]) or "none"
        notes.append(
            f"The best {SHOWN} of {len(rows)} configurations; {len(rows) - SHOWN} more, {finished} of them finished, "
            "are in table.csv beside this page"
        )
    if not paper:
        notes.append("Chosen by validation on training subjects that were held out; the test clips only report")
    if differences:
        notes.append(
            f"Differences are to {baseline} in {split}, over the seeds that both have; those within noise may be chance"
        )
    if spec.source and any(row.published is not None for row in rows):
        notes.append(f"The paper's figures: {spec.source}")
    yield f'<p class="soft">{escape(". ".join(notes))}.</p>' if notes else ""


def _curve(spec: SweepSpec, rows: Sequence[Row], folder: Path) -> Iterator[str]:
    known = [row for row in rows if row.val or row.test]
    if len(spec.parameters) != 1 or not known:
        return
    name = spec.parameters[0].name
    caption = "Means, with bars of one standard deviation where there are several seeds"
    if spec.source and any(row.published is not None for row in known):
        caption += f"; the paper: {spec.source}"
    values = "; ".join(f"{short(spec, row.label)}: {format_figure(row.val or row.test)}" for row in known[:SHOWN])
    alt = f"Top-1 in % by {name}, {'validation' if any(row.val for row in known) else 'test'}: {values}"
    yield f"<h2>Accuracy by {escape(name)}</h2>" + figure(folder / "curve.png", alt, caption, plots.curve, spec, known)


def _front(spec: SweepSpec, results: Sequence[TrialResult], folder: Path) -> Iterator[str]:
    """The Pareto front of two objectives."""
    if len(spec.objectives) != 2:
        return
    names, metrics = plots.sides(spec)
    known = _with(results, ("finished",), *metrics)
    if not known:
        return
    front = pareto_front(spec, known)
    caption = "Green: trials that no other beats in both, numbered as in the table below"
    alt = f"{len(known)} trials by {names[0]} and {names[1]}, {len(front)} of them on the Pareto front"
    yield "<h2>Pareto front</h2>" + figure(folder / "pareto.png", alt, caption, plots.pareto, spec, known, front)
    scales = [plots.SCALES[name] for name in names]
    cells = []
    for count, o in enumerate(front, 1):
        figures = [f"{o.metrics[metric] / unit:.4g}" for metric, (_, unit) in zip(metrics, scales, strict=True)]
        cells.append([str(count), f"{o.label} s{o.seed}", *figures, Markup(f"<code>{escape(o.run_id)}</code>")])
    yield grid(["#", "trial", *(words for words, _ in scales), "run"], cells, text=(1,))


def pareto_front(spec: SweepSpec, results: Sequence[TrialResult]) -> list[TrialResult]:
    """Trials that no other beats: at least as good in both objectives, and better in one. The cheapest first."""
    _, metrics = plots.sides(spec)
    signs = {metric: 1 if way == "maximize" else -1 for way, metric in OBJECTIVES.values()}
    worth = {o.run_id: [signs[metric] * o.metrics[metric] for metric in metrics] for o in results}

    unbeaten, best = set(), -math.inf
    for first, second in sorted({tuple(both) for both in worth.values()}, reverse=True):
        if second > best:  # all that are as good in the first, or better, are less good in the second
            unbeaten.add((first, second))
            best = second
    front = [o for o in results if tuple(worth[o.run_id]) in unbeaten]
    return sorted(front, key=lambda o: (-worth[o.run_id][0], -worth[o.run_id][1]))


def _learning(told: ReportData, best: TrialResult | None, folder: Path) -> Iterator[str]:
    metric, what = METRIC, "validation top-1 [%]"
    if not any(told.histories.get(o.run_id, {}).get(metric) for o in told.results):
        metric, what = "train/loss", "training loss"
    curves = {o.run_id: dict(h) for o in told.results if (h := told.histories.get(o.run_id, {}).get(metric))}
    if not curves:
        return
    stopped = [o.run_id for o in told.results if o.status == "pruned" and o.run_id in curves]
    rungs, stop = [], told.spec.early_stop
    epoch = stop.grace_period if stop else told.spec.base.train.epochs
    while stop is not None and epoch < told.spec.base.train.epochs:
        rungs.append(epoch)
        epoch *= stop.reduction_factor
    chosen = best.run_id if best is not None and metric == METRIC else None
    alt = f"{what} by epoch of {_several(len(curves), 'trial')}, {len(stopped)} of them stopped early"
    caption = "One line per trial" + (f"; the best is {best.label} s{best.seed}" if best is not None and chosen else "")
    caption += "; dotted: where trials were compared" if rungs else ""
    yield "<h2>Learning curves</h2>" + figure(
        folder / "learning.png", alt, caption, plots.learning, curves, stopped, chosen, rungs, what
    )


def _searched(told: ReportData, best: TrialResult | None, folder: Path) -> Iterator[str]:
    """What a search, or a grid over several parameters, learned of each of them."""
    spec = told.spec
    known = [o for o in _with(told.results, ("finished", "pruned"), METRIC) if o.params]
    if len(spec.parameters) < 2 or len(known) < 2:
        return
    names = ", ".join(parameter.name for parameter in spec.parameters)
    alt = f"Parallel coordinates of {len(known)} trials over {names}"
    caption = "Each trial is a line through its values, darker where validation top-1 is higher"
    yield "<h2>All trials together</h2>" + figure(folder / "parallel.png", alt, caption, plots.parallel, spec, known)
    shares, words = importances(told.study)
    if shares and any(parameter.condition for parameter in spec.parameters):
        words += ". One that exists in some trials only also stands for what makes it exist"
    yield "<h2>What matters</h2>"
    if shares:
        alt = "Importance: " + ", ".join(f"{name} {_share(share)}" for name, share in shares.items())
        yield figure(folder / "importance.png", alt, words, plots.importance, shares)
    else:
        yield f"<p>Importance cannot be said: {escape(words)}.</p>"
    chosen = best.run_id if best is not None else None
    alt, caption = f"Validation top-1 against each of {names}", "A dot per trial; orange: the best"
    caption += "; hollow: stopped early, at its last epoch" if any(o.status == "pruned" for o in known) else ""
    yield figure(folder / "slices.png", alt, caption, plots.slices, spec, known, chosen)


def importances(study: Any) -> tuple[dict[str, float], str]:
    """Optuna's importance of parameters, in shares of 1, and how to read it; where it has none, nothing, and why."""
    import optuna

    if study is None:
        return {}, "there is no study of Optuna's"
    complete = [t for t in study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.COMPLETE]
    if len(complete) < 4:
        return {}, f"it takes four trials that ran to the end, and there are {len(complete)}"
    if len({tuple(trial.values) for trial in complete}) == 1:
        return {}, "all trials came out alike"
    top = min(0.5, max(0.1, 5 / len(complete)))  # of a few trials, a tenth would be one or none
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is experimental, and that few trials say little
            evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=top)
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except Exception as error:  # whatever an evaluator raises: the rest of the page is worth having
        return {}, (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    shares = {name: share for name, share in found.items() if math.isfinite(share)}
    if len(set(shares.values())) < 2:
        return {}, "no parameter stands out"
    goal = "on the Pareto front or near it" if len(study.directions) > 1 else "among the best"
    which = f"the first {_share(top)} of {len(complete)}; PED-ANOVA"
    return shares, f"How much each parameter decides whether a trial is {goal} ({which})"


def _ranks(told: ReportData) -> Iterator[str]:
    spec = told.spec
    rungs = rank_report(
        spec, [told.histories.get(o.run_id, {}).get(METRIC, {}) for o in told.results if o.status == "finished"]
    )
    if not rungs:
        return
    lost = ", ".join(str(rung.epoch) for rung in rungs if not rung.kept_best)
    share = f"1 in {spec.early_stop.reduction_factor if spec.early_stop else 3}"
    if spec.early_stop and lost:
        words = (
            f"Early stopping was a risk. After epoch {lost}, the trial that ended best was not among the best {share} "
            "of those that ran to the end: one as good may have been stopped."
        )
    elif spec.early_stop:
        words = "The trial that ended best was among those to go on at every comparison"
        weakest = min((rung.tau for rung in rungs if rung.tau is not None), default=0.0)
        if weakest < 0.5:
            words += ", but an early order that says so little about the end may well have stopped one as good."
        else:
            words += " and the early order was much like the end's: early stopping looks safe."
    elif lost:
        words = f"Early stopping would not have been safe: after epoch {lost}, it would have ended the best trial."
    else:
        words = f"Early stopping would have been safe: letting {share} go on, it would have kept the best trial."
    if spec.early_stop:
        words += " How the stopped trials would have ended is not known, so they are not in this."
    title = "Was early stopping safe?" if spec.early_stop else "Would early stopping have been safe?"
    cells = [
        [f"{r.epoch} of {spec.base.train.epochs}", "–" if r.tau is None else _signed(f"{r.tau:+.2f}"), str(r.trials),
         "kept" if r.kept_best else "lost"]
        for r in rungs
    ]  # fmt: skip
    yield f"<h2>{title}</h2><p>{words}</p>"
    yield grid(["after epoch", "Kendall's tau\nwith the end", "trials", "the best trial"], cells, text=())
    yield '<p class="soft">Kendall\'s tau: 1 is the order of the end, 0 has nothing to do with it.</p>'


def _failures(results: Sequence[TrialResult]) -> Iterator[str]:
    failed: dict[str, list[str]] = defaultdict(list)
    for result in results:
        if result.status == "failed":
            failed[result.reason or "–"].append(f"{result.label} s{result.seed}")
    if failed:
        named = {
            why: trials if len(trials) <= 12 else [*trials[:10], f"{len(trials) - 10} more"]
            for why, trials in failed.items()
        }
        cells = [[", ".join(trials), reason] for reason, trials in named.items()]
        yield "<h2>Failures</h2>" + grid(["trials", "reason"], cells, text=(0, 1))


def _cost(told: ReportData) -> Iterator[str]:
    def of(metric: str) -> list[float]:
        return [o.metrics[metric] for o in _with(told.results, tuple(TrialStatus), metric)]

    cells = []
    if seconds := of("device_seconds"):
        cells.append(["device hours (of a GPU, or of a core)", f"{sum(seconds) / 3600:,.2f}"])
    if prices := of("cost"):
        cells.append(["cost", f"{sum(prices):,.2f}"])
    if peaks := of("peak_memory_gib"):
        cells.append(["memory of the largest trial", f"{max(peaks):.2f} GiB"])
    if speeds := of("clips_per_second"):
        cells.append(["clips a second in a trial, median", f"{statistics.median(speeds):,.0f}"])
    epochs = told.spec.base.train.epochs
    trained = {
        o.run_id: max(
            (epoch for history in told.histories.get(o.run_id, {}).values() for epoch in history), default=None
        )
        for o in told.results
        if o.status == "pruned"
    }
    saved = [epochs - last for last in trained.values() if last is not None]
    planned = epochs * sum(o.status in ("finished", "pruned") for o in told.results)
    if saved:
        cells.append(
            ["epochs that early stopping saved", f"{sum(saved):,} of {planned:,} ({_share(sum(saved) / planned)})"]
        )
    if cells:
        yield "<h2>Cost</h2>" + grid(["", ""], cells)


def _settings(spec: SweepSpec) -> str:
    varied = [[p.name, p.describe() + (f", where {p.condition[0]} is {' or '.join(map(str, p.condition[1]))}" if p.condition else "")]
              for p in spec.parameters]  # fmt: skip
    base = [[name, json.dumps(value)] for name, value in spec.base.flat().items()]
    return (
        "<h2>Settings</h2>" + grid(["varied", "over"], varied, text=(0, 1))
        + "<details><summary>The base of all trials</summary>" + grid(["setting", "value"], base, text=(0, 1))
        + "</details>"
    )  # fmt: skip


def _repeat(told: ReportData, best: TrialResult | None) -> str:
    text = f"<p>Go on with this sweep, or print its table again:</p><pre>{escape(told.again)}</pre>"
    if best is not None:
        what = "Score the best trial again" if METRIC in best.metrics else "Score a trial again"
        words = told.again.split()
        where = words[words.index("--tracking-uri") :][:2] if "--tracking-uri" in words else []
        command = " ".join(["python -m fgst.evaluate --run-id", best.run_id, *where])
        text += f"<p>{what}:</p><pre>{escape(command)}</pre>"
    spec = told.spec
    facts = {"sweep": told.sweep_id, "data set": f"{spec.dataset_name}, digest {spec.dataset_digest}"}
    items = "".join(f"<dt>{name}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items())
    return f"<h2>How to repeat it</h2>{text}<dl>{items}</dl>"


def _with(results: Sequence[TrialResult], endings: Sequence[str], *metrics: str) -> list[TrialResult]:
    """Trials that ended so and have these metrics, as numbers that can be drawn."""
    ended = [o for o in results if o.status in endings]
    return [o for o in ended if all(math.isfinite(o.metrics.get(metric, math.nan)) for metric in metrics)]


def _points(difference: Difference) -> str:
    return _signed(f"{difference.mean:+.1f} ± {difference.half_width:.1f}")


def _signed(text: str) -> str:
    """With a real minus, as wide as the plus."""
    return text.replace("-", "−")


def _share(share: float) -> str:
    return f"{100 * share:.0f} %"


def _several(count: int, one: str, more: str = "") -> str:
    return f"{count} {one if count == 1 else more or one + 's'}"
