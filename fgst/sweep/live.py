"""What a person sees while a sweep runs: one line of progress on a terminal, a line per finished trial anywhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fgst.sweep import engine
from fgst.sweep.spec import SweepSpec


class LiveView:
    """Listens to the engine and draws on stderr; a context manager."""

    def __init__(self, spec: SweepSpec, done: int) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._epochs: dict[str, int] = {}
        self._metrics: dict[str, dict[str, float]] = {}
        self._ended: set[str] = set()
        self._done, self._total = done, len(spec.trials)
        self._best: tuple[float, str] | None = None
        length = sum(trial.config.train.epochs for trial in spec.trials)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=self._console, transient=True,
            disable=not self._console.is_terminal,
        )  # fmt: skip
        finished_before = length // max(1, self._total) * done
        self._task = self._bar.add_task("starting Ray", total=length, completed=finished_before)
        self._before = finished_before

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def listen(self, progress: engine.Progress) -> None:
        trial, metrics = progress.trial, progress.metrics
        if progress.state == "running":
            self._epochs[trial.key] = int(metrics["epoch"])
            self._metrics[trial.key] = metrics
            if "val/top1" in metrics and metrics["epoch"] == trial.config.train.epochs:
                self._best = max(self._best or (-1.0, ""), (metrics["val/top1"], trial.label))
        elif trial.key not in self._ended:
            self._ended.add(trial.key)
            self._done += 1
            self._epochs[trial.key] = trial.config.train.epochs
            last = self._metrics.get(trial.key, {})
            figures = [f"{s} {last[f'{s}/top1']:.1f} %" for s in ("val", "test") if f"{s}/top1" in last]
            minutes = [f"{last['minutes']:.1f} min"] if "minutes" in last else []
            words = "  ".join(
                [trial.name, *figures, *minutes] if progress.state == "FINISHED" else [trial.name, "failed"]
            )
            self._bar.console.print(f"[{self._done}/{self._total}] {words}", markup=False)
        running = len(self._epochs) - len(self._ended)
        best = f", best {self._best[1]} val {self._best[0]:.1f} %" if self._best else ""
        self._bar.update(
            self._task,
            completed=self._before + sum(self._epochs.values()),
            description=f"{self._done}/{self._total} done, {running} running{best}",
        )
