"""The HTML report of a sweep: one self-contained file that opens anywhere, without a network connection."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fgst.sweep.report import sections
from fgst.sweep.report.conclusions import conclusions
from fgst.sweep.report.sections import ReportData
from fgst.sweep.results import baseline_label, best_result, build_rows, race_of, winner_estimate

_TEMPLATES = Environment(
    loader=PackageLoader("fgst.sweep.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(data: ReportData, folder: Path) -> Path:
    """Write ``report.html`` into ``folder``, and copies of its pictures into ``folder/figures``.

    Returns:
        The path of the HTML file.
    """
    pictures = folder / "figures"
    pictures.mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    page.write_text(_TEMPLATES.get_template("report.html.j2").render(_content(data, pictures)), encoding="utf-8")
    return page


def _content(data: ReportData, pictures: Path) -> dict[str, Any]:
    """Compute the variables of the template; a section that does not apply is ``None``."""
    spec, results = data.spec, data.results
    rows, best = build_rows(spec, results, data.correct), best_result(spec, results)
    baseline, estimate = baseline_label(spec, results), winner_estimate(spec, results, data.correct)
    return {
        "title": spec.title,
        "summary": sections.summary(data),
        "answer": sections.answer(spec, rows, best, baseline),
        "notes": data.notes,
        "results": sections.results(spec, rows, best, baseline),
        "conclusions": conclusions(spec, rows, baseline, estimate, race_of(spec, results)),
        "published": sections.published(spec),
        "accuracy_curve": sections.accuracy_curve(spec, rows, pictures),
        "pareto": sections.pareto(spec, results, pictures),
        "learning_curves": sections.learning_curves(data, best, pictures),
        "parameters": sections.parameters(data, best, pictures),
        "early_stopping": sections.early_stopping(data),
        "failures": sections.failures(results),
        "cost": sections.cost(data),
        "settings": sections.settings(spec),
        "resume_command": shlex.join(data.resume_command),
        "evaluation": sections.evaluation(data, best),
        "origin": {"sweep": data.sweep_id, "data set": f"{spec.dataset_name}, digest {spec.dataset_digest}"},
    }
