"""Progress display of a sweep: a live table on terminals, and one line per finished trial in any case."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fgst.sweep.definition import Trial
from fgst.sweep.scheduler import TrialUpdate
from fgst.sweep.spec import SweepSpec
from fgst.sweep.status import TrialStatus

MAX_SHOWN = 8  # running trials in the live table


class ProgressView:
    """Context manager that shows the progress of a sweep on stderr.

    Args:
        spec: the sweep.
        done: number of trials that finished or were pruned in earlier invocations.
    """

    def __init__(self, spec: SweepSpec, done: int) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._spec = spec
        self._running: dict[str, tuple[Trial, dict[str, float]]] = {}
        self._done = done
        self._best: tuple[float, str] | None = None  # validation top-1 in % and label
        self._epochs: dict[str, int] = {}  # trained in this invocation, by trial id
        self._earlier_epochs = done * spec.base.train.epochs
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=self._console,
        )  # fmt: skip
        self._task = self._bar.add_task(
            "starting", total=spec.total * spec.base.train.epochs, completed=self._earlier_epochs
        )
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(console=self._console, transient=True, refresh_per_second=2, get_renderable=self._render)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def listen(self, progress: TrialUpdate) -> None:
        """Update the display after an epoch or at the end of a trial."""
        trial, status, metrics = progress.trial, TrialStatus(progress.status), progress.metrics
        if status == TrialStatus.RUNNING:
            self._running[trial.trial_id] = (trial, metrics)
            self._epochs[trial.trial_id] = int(metrics["epoch"])
        else:
            self._running.pop(trial.trial_id, None)
            if status != TrialStatus.INTERRUPTED:
                self._done += 1
                self._epochs[trial.trial_id] = self._spec.base.train.epochs
            # Trials of different folds have different validation clips.
            if status == TrialStatus.FINISHED and "val/top1" in metrics and not self._spec.varies_folds:
                self._best = max(self._best or (-1.0, ""), (metrics["val/top1"], trial.label))
            self._print_line(trial, status, metrics)
        completed = self._earlier_epochs + sum(self._epochs.values())
        self._bar.update(self._task, completed=completed, description=self._summary())

    def _summary(self) -> str:
        best = f", best {self._best[1]} val {self._best[0]:.1f} %" if self._best else ""
        return f"{self._done}/{self._spec.total} done, {len(self._running)} running{best}"

    def _print_line(self, trial: Trial, status: TrialStatus, metrics: dict[str, float]) -> None:
        """Print one line for a trial that ended."""
        words = [trial.name]
        if status == TrialStatus.PRUNED:
            words.append(f"stopped early after epoch {metrics.get('epoch', 0):g}")
        elif status != TrialStatus.FINISHED:
            words.append(status)
        words += [
            f"{split} {metrics[f'{split}/top1']:.1f} %" for split in ("val", "test") if f"{split}/top1" in metrics
        ]
        if "minutes" in metrics:
            words.append(f"{metrics['minutes']:.1f} min")
        self._console.print(f"[{self._done}/{self._spec.total}] {'  '.join(words)}", markup=False, soft_wrap=True)

    def _render(self) -> Group:
        """Return a table of the running trials above the progress bar of the sweep."""
        table = Table(box=None, pad_edge=False, show_header=bool(self._running))
        for heading in ("running", "epoch", "loss", "val %", "clips/s"):
            table.add_column(heading, justify="left" if heading == "running" else "right")
        for trial, metrics in list(self._running.values())[:MAX_SHOWN]:
            epoch = f"{metrics['epoch']:g}/{trial.config.train.epochs}"
            val = f"{metrics['val/top1']:.1f}" if "val/top1" in metrics else "-"
            clips_per_second = f"{metrics.get('clips_per_second', 0):,.0f}"
            table.add_row(trial.name, epoch, f"{metrics['train/loss']:.3f}", val, clips_per_second)
        if len(self._running) > MAX_SHOWN:
            table.add_row(f"and {len(self._running) - MAX_SHOWN} more", "", "", "", "")
        return Group(table, self._bar)
