"""The report of a sweep: one HTML file with everything in it, to be read anywhere, without a network."""

from __future__ import annotations

import base64
import html
import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgst.sweep import pictures
from fgst.sweep.report import format_difference, format_figure, short
from fgst.sweep.spec import OBJECTIVES, SweepSpec
from fgst.sweep.statistics import ENDINGS, Outcome, Row, baseline_of, best_outcome, make_rows, rank_report

SHOWN = 30  # rows of a search
METRIC = "val/top1"
STYLE = """
:root { color-scheme: light dark; --text: #1c1f23; --soft: #5c6670; --line: #d9dee3; --back: #fcfcfb; --card: #fff;
  --mark: #fff3dc; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8ea; --soft: #a0a8b0; --line: #3a4148; --back: #17191c;
  --card: #1f2327; --mark: #3d3420; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.2rem 4rem; background: var(--back); color: var(--text);
  font: 16px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.soft, caption, figcaption { color: var(--soft); font-size: .9rem; }
.answer { font-size: 1.1rem; border-left: 4px solid var(--accent); padding: .2rem 0 .2rem .9rem; margin: 1.2rem 0; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .38rem .8rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td:first-child { white-space: normal; min-width: 7rem; }
tr:last-child td { border-bottom: 0; }
tr.best td { background: var(--mark); font-weight: 600; }
td.text { white-space: normal; overflow-wrap: anywhere; }
figure { margin: .8rem 0; background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: .6rem; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
code, pre { font: .86rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem;
  white-space: pre-wrap; }
summary { cursor: pointer; color: var(--accent); }
@media print { body { max-width: none; } figure, .wide { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Told:
    """What the page tells.

    Attributes:
        histories: by run id and metric, values by epoch.
        study: Optuna's, or ``None``.
        sweep_id: MLflow run id of the sweep.
        again: the command that goes on with it.
        notes: what the reader must know, e.g. why it stopped.
    """

    spec: SweepSpec
    outcomes: Sequence[Outcome]
    histories: Mapping[str, Mapping[str, Mapping[int, float]]]
    study: Any
    sweep_id: str
    again: str
    notes: Sequence[str] = ()


def write_page(told: Told, folder: Path) -> Path:
    """Write ``report.html`` and the pictures in it, under ``figures``, into a folder; returns the page."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    body = "\n".join(_sections(told, folder / "figures"))
    page = folder / "report.html"
    page.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(told.spec.title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )
    return page


def _sections(told: Told, folder: Path) -> Iterator[str]:
    spec, outcomes = told.spec, told.outcomes
    rows, best = make_rows(spec, outcomes), best_outcome(spec, outcomes)
    yield _heading(told)
    yield _answer(spec, rows, best)
    yield from (f'<p class="soft">Note: {_text(note)}.</p>' for note in told.notes)
    yield "<h2>Table</h2>" + _table(spec, outcomes, rows, best)
    finished = [o for o in outcomes if o.ending == "finished"]
    if len(spec.parameters) == 1 and finished and spec.search == "grid":
        yield _figure(folder / "curve.png", lambda path: pictures.curve(spec, rows, path), "Accuracy by what is varied")
    yield from _front(spec, finished, folder)
    curves = {o.run_id: h for o in outcomes if (h := told.histories.get(o.run_id, {}).get(METRIC))}
    what = "validation top-1 [%]"
    if not curves:
        curves = {o.run_id: h for o in outcomes if (h := told.histories.get(o.run_id, {}).get("train/loss"))}
        what = "training loss"
    if curves:
        best_run = best.run_id if best is not None and what != "training loss" else None
        yield "<h2>Learning curves</h2>" + _figure(
            folder / "learning.png", lambda path: pictures.learning(curves, best_run, what, path),
            "Learning curves: one line per trial; a line that ends early was stopped",
        )  # fmt: skip
    yield from _searched(told, folder)
    yield from _ranks(told)
    failed = [o for o in outcomes if o.ending == "failed"]
    if failed:
        cells = [[f"{o.label} s{o.seed}", o.reason] for o in failed]
        yield "<h2>Failed trials</h2>" + _grid(["trial", "reason"], cells, text=(0, 1))
    yield from _cost(told)
    yield _settings(spec)
    yield _repeat(told, best)


def _heading(told: Told) -> str:
    spec, count = told.spec, Counter(o.ending for o in told.outcomes)
    ended = ", ".join(f"{count[ending]} {ending}" for ending in ENDINGS if count[ending]) or "none begun"
    train = spec.base.train
    facts = (
        f"{spec.dataset_name}, {spec.base.data.benchmark}, {spec.base.data.modality}, protocol "
        f"{spec.base.data.protocol}; {train.epochs} epochs, {train.repeat} passes in each, channels "
        f"{', '.join(map(str, spec.base.model.channels))}. {spec.total} trials by {spec.search}: {ended}."
    )
    return f'<h1>{_text(spec.title)}</h1>\n<p class="soft">{_text(facts)}</p>'


def _answer(spec: SweepSpec, rows: Sequence[Row], best: Outcome | None) -> str:
    if best is None:
        return '<p class="answer">No trial has finished, so there is no answer.</p>'
    if METRIC not in best.metrics:
        return '<p class="answer">Nothing was held out to choose by: the table reports, and recommends nothing.</p>'
    row = next(row for row in rows if row.label == best.label)
    text = f"{best.label} is the best by validation: {format_figure(row.val)} %"
    text += f" over {row.finished} seeds" if row.finished > 1 else ", one seed"
    if row.val_difference is not None:
        sure = "beyond noise" if row.val_difference.beyond_noise else "within noise"
        text += f"; to the baseline {format_difference(row.val_difference)} points (95 %), {sure}"
    elif row.finished == 1 and len(rows) > 1:
        text += ", which cannot tell it from noise"
    return f'<p class="answer">{_text(text)}.</p>'


def _table(spec: SweepSpec, outcomes: Sequence[Outcome], rows: Sequence[Row], best: Outcome | None) -> str:
    paper = spec.base.data.protocol == "paper"
    columns: list[tuple[str, Callable[[Row], str], bool]] = [
        (spec.axis if len(spec.parameters) == 1 else "trial", lambda row: short(spec, row.label), True),
        ("finished", lambda row: f"{row.finished} of {row.trials}", any(row.trials > 1 for row in rows)),
        ("stopped", lambda row: str(row.pruned or "–"), any(row.pruned for row in rows)),
        ("failed", lambda row: str(row.failed or "–"), any(row.failed for row in rows)),
        ("validation top-1 %", lambda row: _dash(format_figure(row.val)), not paper),
        ("difference, 95 %", lambda row: _difference(row, "val"), any(row.val_difference for row in rows)),
        ("test top-1 %", lambda row: _dash(format_figure(row.test)), True),
        ("difference, 95 %", lambda row: _difference(row, "test"), paper and any(row.test_difference for row in rows)),
        ("minutes", lambda row: _dash(format_figure(row.minutes)), True),
        (
            "paper top-1 %",
            lambda row: "–" if row.published is None else f"{row.published:.1f}",
            any(row.published is not None for row in rows),
        ),
    ]
    used = [(heading, cell) for heading, cell, wanted in columns if wanted]
    if spec.search != "grid":
        rows = [row for row in rows if row.finished]
    shown = rows if spec.search == "grid" else rows[:SHOWN]
    mark = best.label if best is not None and METRIC in best.metrics else None
    text = _grid([h for h, _ in used], [[c(row) for _, c in used] for row in shown], [r.label == mark for r in shown])
    notes = [f"{len(rows) - len(shown)} more trials are in table.csv"] if len(shown) < len(rows) else []
    if any(row.val_difference or row.test_difference for row in rows):
        notes.append(f"differences are to {baseline_of(spec, outcomes)}, over the seeds that both have")
    if spec.source and any(row.published is not None for row in rows):
        notes.append(f"the paper's figures: {spec.source}")
    if not paper:
        notes.append("chosen by validation on training subjects that were held out; the test clips were scored once")
    return text + f'<p class="soft">{_text("; ".join(notes))}.</p>' * bool(notes)


def _difference(row: Row, split: str) -> str:
    difference = row.val_difference if split == "val" else row.test_difference
    if difference is None:
        return "–"
    return f"{difference.mean:+.1f} ± {difference.half_width:.1f}" + ("" if difference.beyond_noise else " (noise)")


def _front(spec: SweepSpec, finished: Sequence[Outcome], folder: Path) -> Iterator[str]:
    """The Pareto front of two objectives."""
    metrics = [OBJECTIVES[name] for name in spec.objectives]
    known = [o for o in finished if all(metric in o.metrics for _, metric in metrics)]
    if len(metrics) != 2 or not known:
        return
    front = [one for one in known if not any(_beats(other, one, metrics) for other in known)]
    yield "<h2>Pareto front</h2><p>Trials that no other beats in both objectives.</p>" + _figure(
        folder / "pareto.png", lambda path: pictures.pareto(spec, known, front, path), "Both objectives of all trials"
    )
    front.sort(key=lambda o: o.metrics[metrics[1][1]])
    cells = [[o.label, *(f"{o.metrics[metric]:.4g}" for _, metric in metrics), o.run_id] for o in front]
    yield _grid(["trial", *(metric for _, metric in metrics), "run"], cells)


def _beats(one: Outcome, other: Outcome, metrics: Sequence[tuple[str, str]]) -> bool:
    pairs = [(o.metrics[m] * (1 if way == "maximize" else -1)) for way, m in metrics for o in (one, other)]
    gains = [pairs[0] - pairs[1], pairs[2] - pairs[3]]
    return min(gains) >= 0 and max(gains) > 0


def _searched(told: Told, folder: Path) -> Iterator[str]:
    """What a search over several parameters learned of each."""
    spec = told.spec
    known = [o for o in told.outcomes if METRIC in o.metrics and o.point and o.ending in ("finished", "pruned")]
    if len(spec.parameters) < 2 or len(known) < 2:
        return
    yield "<h2>What matters</h2>"
    values, trouble = _importances(told.study)
    if values:
        yield _figure(folder / "importance.png", lambda path: pictures.importance(values, path), "Importance")
        left_out = "parameters that exist in some trials only are left out"
        yield f'<p class="soft">Of trials that ran to the end; {left_out}.</p>'
    else:
        yield f'<p class="soft">Importance cannot be said: {_text(trouble)}.</p>'
    yield _figure(
        folder / "slices.png", lambda path: pictures.slices(spec, known, path),
        "Validation top-1 against each parameter; hollow: stopped early, at its last epoch",
    )  # fmt: skip
    yield _figure(
        folder / "parallel.png",
        lambda path: pictures.parallel(spec, known, path),
        "Each trial a line through its values",
    )


def _importances(study: Any) -> tuple[dict[str, float], str]:
    import optuna

    if study is None:
        return {}, "there is no study"
    if len(study.directions) > 1:
        return {}, "there are two objectives"
    complete = [t for t in study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.COMPLETE]
    if len(complete) < 4:
        return {}, f"of all trials {len(complete)} ran to the end, and that is too few"
    try:
        return dict(optuna.importance.get_param_importances(study)), ""
    except (ValueError, RuntimeError) as error:
        return {}, str(error).splitlines()[0]


def _ranks(told: Told) -> Iterator[str]:
    spec = told.spec
    histories = [told.histories.get(o.run_id, {}).get(METRIC, {}) for o in told.outcomes if o.ending == "finished"]
    rungs = rank_report(spec, histories)
    if not rungs or (spec.early_stop is None and spec.search == "grid"):
        return
    yield "<h2>Was early stopping safe?</h2>"
    kept = all(rung.kept_best for rung in rungs)
    words = "Of the trials that ran to the end, the best one " + (
        "was ahead enough at every rung" if kept else "would have been stopped at a rung, had all of them been compared"
    )
    yield f"<p>{words}. Those that were stopped are not in this: how they would have ended is not known.</p>"
    cells = [[str(r.epoch), "–" if r.tau is None else f"{r.tau:+.2f}", str(r.trials), _yes(r.kept_best)] for r in rungs]
    yield _grid(["after epoch", "Kendall's tau with the end", "trials", "best among those to go on"], cells)


def _cost(told: Told) -> Iterator[str]:
    spec, outcomes = told.spec, told.outcomes
    known = [o for o in outcomes if "device_seconds" in o.metrics]
    if not known:
        return
    hours = sum(o.metrics["device_seconds"] for o in known) / 3600
    cells = [["device hours (of a GPU, or of a core)", f"{hours:.2f}"]]
    if any("cost" in o.metrics for o in known):
        cells.append(["cost", f"{sum(o.metrics.get('cost', 0.0) for o in known):.2f}"])
    peaks = [o.metrics["peak_memory_gib"] for o in known if "peak_memory_gib" in o.metrics]
    speeds = [o.metrics["clips_per_second"] for o in known if "clips_per_second" in o.metrics]
    cells += [["largest memory of a trial", f"{max(peaks):.2f} GiB"]] if peaks else []
    cells += [["clips a second in a trial, median", f"{statistics.median(speeds):,.0f}"]] if speeds else []
    pruned = [o for o in outcomes if o.ending == "pruned"]
    if pruned:
        epochs = spec.base.train.epochs
        ended = [o for o in outcomes if o.ending in ("finished", "pruned")]
        saved = sum(epochs - max(told.histories.get(o.run_id, {}).get("train/loss", {epochs: 0})) for o in pruned)
        cells.append(
            [
                "epochs that early stopping saved",
                f"{saved} of {epochs * len(ended)} ({saved / epochs / len(ended):.0%})",
            ]
        )
    yield "<h2>Cost</h2>" + _grid(["", ""], cells)


def _settings(spec: SweepSpec) -> str:
    names = {parameter.name: parameter.in_words() for parameter in spec.parameters}
    cells = [[f"varied: {name}", values] for name, values in names.items()]
    cells += [[name, json.dumps(value)] for name, value in spec.base.flat().items()]
    return (
        "<h2>Settings</h2><details><summary>What is varied, and the base of all trials</summary>"
        + _grid(["setting", "value"], cells, text=(0, 1))
        + "</details>"
    )


def _repeat(told: Told, best: Outcome | None) -> str:
    lines = [f"{told.again}    # goes on with it, or prints the table again"]
    if best is not None:
        lines.append(f"python -m fgst.evaluate --run-id {best.run_id}")
    facts = f"sweep {told.sweep_id}; data set {told.spec.dataset_name}, digest {told.spec.dataset_digest}"
    commands = "\n".join(map(_text, lines))
    return f'<h2>How to repeat it</h2><pre>{commands}</pre><p class="soft">{_text(facts)}</p>'


def _figure(path: Path, draw: Callable[[Path], None], alt: str) -> str:
    draw(path)
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{_text(alt)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{_text(alt)}</figcaption></figure>"


def _grid(
    headings: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] = (), text: Sequence[int] = (0,)
) -> str:
    """A table; columns in ``text`` are words, the others numbers."""
    words = [' class="text"' if column in text and column else "" for column in range(len(headings))]
    head = "".join(f"<th{w}>{_text(h)}</th>" for h, w in zip(headings, words, strict=True))
    lines = []
    for number, row in enumerate(rows):
        cells = "".join(f"<td{w}>{_text(cell)}</td>" for cell, w in zip(row, words, strict=True))
        lines.append(f"<tr{' class=best' if number < len(marked) and marked[number] else ''}>{cells}</tr>")
    top = f"<thead><tr>{head}</tr></thead>" if any(headings) else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(lines)}</tbody></table></div>'


def _dash(text: str) -> str:
    return "–" if text == "-" else text


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _text(text: str) -> str:
    return html.escape(str(text))
