"""What a person sees while a sweep runs: a calm table on a terminal, a line per finished trial anywhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fgst.sweep.definition import Trial
from fgst.sweep.scheduler import TrialUpdate
from fgst.sweep.spec import SweepSpec

SHOWN = 8  # running trials


class LiveView:
    """Listens to the engine and draws on stderr; a context manager."""

    def __init__(self, spec: SweepSpec, done: int) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._spec = spec
        self._running: dict[str, tuple[Trial, dict[str, float]]] = {}
        self._ended: dict[str, int] = {}
        self._done, self._total = done, spec.total
        self._best: tuple[float, str] | None = None
        self._epochs: dict[str, int] = {}
        length = spec.total * spec.base.train.epochs
        self._before = done * spec.base.train.epochs
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=self._console,
        )  # fmt: skip
        self._task = self._bar.add_task("starting", total=length, completed=self._before)
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(console=self._console, transient=True, refresh_per_second=2, get_renderable=self._table)
        self._told = time.monotonic()

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
        trial, metrics = progress.trial, progress.metrics
        epochs = self._spec.base.train.epochs
        if progress.status == "running":
            self._running[trial.trial_id] = (trial, metrics)
            self._epochs[trial.trial_id] = int(metrics["epoch"])
        else:
            self._running.pop(trial.trial_id, None)
            self._ended[progress.status] = self._ended.get(progress.status, 0) + 1
            if progress.status != "interrupted":
                self._done += 1
                self._epochs[trial.trial_id] = epochs
            if progress.status == "finished" and "val/top1" in metrics:
                self._best = max(self._best or (-1.0, ""), (metrics["val/top1"], trial.label))
            self._say(trial, progress.status, metrics)
        self._bar.update(
            self._task, completed=self._before + sum(self._epochs.values()), description=self._summary()
        )  # fmt: skip

    def _summary(self) -> str:
        best = f", best {self._best[1]} val {self._best[0]:.1f} %" if self._best else ""
        return f"{self._done}/{self._total} done, {len(self._running)} running{best}"

    def _say(self, trial: Trial, state: str, metrics: dict[str, float]) -> None:
        """One line for a trial that ended."""
        figures = [f"{s} {metrics[f'{s}/top1']:.1f} %" for s in ("val", "test") if f"{s}/top1" in metrics]
        minutes = [f"{metrics['minutes']:.1f} min"] if "minutes" in metrics else []
        status = {
            "finished": [],
            "pruned": [f"stopped early after epoch {metrics.get('epoch', 0):g}"],
            "failed": ["failed"],
            "interrupted": ["interrupted"],
        }[state]
        words = "  ".join([trial.name, *status, *figures, *minutes])
        self._console.print(f"[{self._done}/{self._total}] {words}", markup=False, soft_wrap=True)

    def _table(self) -> Group:
        """The running trials, and how far the whole is."""
        table = Table(box=None, pad_edge=False, show_header=bool(self._running))
        for heading in ("running", "epoch", "loss", "val %", "clips/s"):
            table.add_column(heading, justify="left" if heading == "running" else "right")
        for trial, metrics in list(self._running.values())[:SHOWN]:
            val = f"{metrics['val/top1']:.1f}" if "val/top1" in metrics else "-"
            epoch = f"{metrics['epoch']:g}/{trial.config.train.epochs}"
            table.add_row(
                trial.name, epoch, f"{metrics['train/loss']:.3f}", val, f"{metrics.get('clips_per_second', 0):,.0f}"
            )
        if len(self._running) > SHOWN:
            table.add_row(f"and {len(self._running) - SHOWN} more", "", "", "", "")
        return Group(table, self._bar)
