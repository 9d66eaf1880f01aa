"""Limits on a sweep: time, number of trials, a sufficient accuracy, a full disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fgst.sweep.status import StopReason


@dataclass
class Budget:
    """The limits of a sweep; ``None`` means no limit.

    Attributes:
        max_hours: wall time from now on; running trials are stopped after their current epoch.
        max_trials: trials to start from now on; running trials are trained to their last epoch.
        until_top1: validation top-1 in % of a finished trial that is sufficient; running trials are stopped.
        stop_reason: why no further trial is started; ``None`` while the sweep continues.
        details: the reason in words, e.g. ``--max-hours 2``.
        stop_running: whether running trials must stop too.
    """

    max_hours: float | None = None
    max_trials: int | None = None
    until_top1: float | None = None
    clock: Callable[[], float] = time.monotonic
    stop_reason: StopReason | None = None
    details: str = ""
    stop_running: bool = False
    _num_started: int = 0
    _started_at: float = field(default=0.0)

    def __post_init__(self) -> None:
        self._started_at = self.clock()

    def allows_start(self) -> bool:
        """Whether another trial may start."""
        self._check_time()
        if self.stop_reason is None and self.max_trials is not None and self._num_started >= self.max_trials:
            self.stop(StopReason.MAX_TRIALS, f"--max-trials {self.max_trials}", stop_running=False)
        return self.stop_reason is None

    def on_start(self) -> None:
        """Count a trial that was started."""
        self._num_started += 1

    def should_stop_running(self) -> bool:
        """Whether running trials must stop."""
        self._check_time()
        return self.stop_running

    def on_finish(self, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a trial that finished."""
        reached = metrics.get("val/top1", 0.0)
        if self.until_top1 is not None and reached >= self.until_top1:
            self.stop(StopReason.UNTIL_TOP1, f"--until-top1 {self.until_top1:g} (a trial reached {reached:.1f} %)")

    def on_disk_full(self, host: str = "") -> None:
        """Stop because a disk is full, on the named host or that of the driver."""
        self.stop(StopReason.DISK_FULL, f"disk full{f' on {host}' if host else ''}: free some space")

    def stop(self, reason: StopReason, details: str, *, stop_running: bool = True) -> None:
        """Stop the sweep; only the first reason is recorded."""
        if self.stop_reason is None:
            self.stop_reason, self.details = reason, details
        self.stop_running = self.stop_running or stop_running

    def _check_time(self) -> None:
        if self.max_hours is not None and self.clock() - self._started_at >= 3600 * self.max_hours:
            self.stop(StopReason.MAX_HOURS, f"--max-hours {self.max_hours:g}")
