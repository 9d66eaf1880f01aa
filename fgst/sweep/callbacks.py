"""Callbacks of a sweep: progress display, report in MLflow, and table on the terminal."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from fgst.sweep.progress import ProgressView
from fgst.sweep.report.conclusions import conclusions
from fgst.sweep.report.tables import named_tables, print_table, to_markdown
from fgst.sweep.results import SweepResult, TrialResult, baseline_label, build_rows, race_of, winner_estimate
from fgst.sweep.runner import SweepCallback, SweepRunner
from fgst.sweep.scheduler import TrialUpdate
from fgst.sweep.status import TrialStatus
from fgst.table_files import write_tables
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags

CURVES = ("val/top1", "train/loss")  # metrics that the report draws
COUNTED = (TrialStatus.FINISHED, TrialStatus.PRUNED, TrialStatus.FAILED)


class ProgressDisplay(SweepCallback):
    """Shows running trials and progress on stderr."""

    def __init__(self) -> None:
        self._view: ProgressView | None = None

    def on_training_start(self, runner: SweepRunner, num_finished: int) -> None:
        """See :class:`SweepCallback`."""
        self._view = ProgressView(runner.spec, num_finished)
        self._view.__enter__()

    def on_update(self, update: TrialUpdate) -> None:
        """See :class:`SweepCallback`."""
        assert self._view is not None
        self._view.listen(update)

    def on_training_end(self) -> None:
        """See :class:`SweepCallback`."""
        if self._view is not None:
            self._view.__exit__(None, None, None)


class MlflowReport(SweepCallback):
    """Logs table, report and summary metrics to the sweep's run.

    Args:
        resume_command: the words of the command that resumes the sweep, for the report.
    """

    def __init__(self, resume_command: Sequence[str]) -> None:
        self._resume_command = list(resume_command)
        self._curves: dict[str, dict[str, dict[int, float]]] = {}  # by trial id, metric and epoch

    def on_update(self, update: TrialUpdate) -> None:
        """Collect the curves that the report draws."""
        if update.status is not TrialStatus.RUNNING:
            return
        curves, epoch = self._curves.setdefault(update.trial.trial_id, {}), int(update.metrics["epoch"])
        for metric in CURVES:
            if metric in update.metrics:
                curves.setdefault(metric, {})[epoch] = update.metrics[metric]

    def curves_of(self, result: TrialResult, store: TrackingStore) -> dict[str, dict[int, float]]:
        """A trial's curves by metric and epoch.

        They are read from the store only if an earlier invocation trained a part of the trial: reading all of them
        takes two requests per trial, minutes for a thousand trials on a server.
        """
        collected = self._curves.get(result.trial_id, {})
        curves = {}
        for metric in CURVES:
            values = collected.get(metric, {})
            last = max(values, default=0)
            complete = len(values) == last and values.get(last) == result.metrics.get(metric)
            curves[metric] = values if complete else store.metric_history(result.run_id, metric)
        return curves

    def on_end(self, runner: SweepRunner, result: SweepResult) -> None:
        """Log the table, the report and the summary metrics."""
        # lazy: matplotlib takes a second to import, and it is needed at the end only
        from fgst.sweep.report import ReportData, write_report

        assert runner.search is not None
        spec, trials = result.spec, list(result.trials)
        rows = build_rows(spec, trials, result.correct)
        notes = [f"stopped by {result.details}"] if result.details else []
        if split := [trial.label for trial in trials if trial.used_micro_batches]:
            notes.append(f"out of memory, therefore trained with each batch in two parts: {', '.join(split)}")
        histories = {trial.run_id: self.curves_of(trial, runner.store) for trial in trials}
        data = ReportData(
            spec, trials, histories, runner.search.study, runner.sweep_id, self._resume_command, notes,
            result.correct,
        )  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="fgst-report-") as name:
            folder = Path(name)
            tables = named_tables(spec, rows, result.best_label, baseline_label(spec, trials))
            write_tables(tables, folder / "table.tex", folder / "table.csv")
            write_report(data, folder)
            runner.tracked_run.log_artifacts(folder)
        runner.tracked_run.set_tags({"mlflow.note.content": to_markdown(spec, rows, result.best_label)})
        self._log_summary(runner, result)

    def _log_summary(self, runner: SweepRunner, result: SweepResult) -> None:
        """Log the best trial's metrics to the sweep's run: MLflow shows the same columns for sweeps and trials.

        With folds, they are the means of the best configuration.
        """
        best = result.best
        if best is None:
            return
        summary = {name: best.metrics[name] for name in ("val/top1", "test/top1") if name in best.metrics}
        if result.spec.varies_folds:  # the best trial has the clips of one fold only
            row = next(row for row in build_rows(result.spec, result.trials) if row.label == best.label)
            summary |= {name: value[0] for name, value in (("val/top1", row.val), ("test/top1", row.test)) if value}
        for name in ("device_seconds", "cost"):
            if any(name in trial.metrics for trial in result.trials):
                summary[name] = sum(trial.metrics.get(name, 0.0) for trial in result.trials)
        for status in COUNTED:
            summary[f"trials_{status}"] = sum(trial.status is status for trial in result.trials)
        runner.tracked_run.log_metrics(summary, step=0)
        runner.tracked_run.set_tags({Tags.BEST_RUN: best.run_id, Tags.BEST_LABEL: best.label})


class TablePrinter(SweepCallback):
    """Prints the table of results on stdout."""

    def on_end(self, runner: SweepRunner, result: SweepResult) -> None:
        """See :class:`SweepCallback`."""
        spec, trials = result.spec, list(result.trials)
        rows, baseline = build_rows(spec, trials, result.correct), baseline_label(spec, trials)
        print_table(spec, rows, result.best_label, baseline)
        estimate = winner_estimate(spec, trials, result.correct)
        for sentence in conclusions(spec, rows, baseline, estimate, race_of(spec, trials)):
            print(sentence)
