"""When a sweep stops although there is more to train: time, number, an accuracy that is enough, a full disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass
class Budget:
    """What a sweep may use up; ``None`` is no limit.

    Attributes:
        max_hours: wall time from now; trials that run then are stopped after their epoch.
        max_trials: trainings to begin from now on; those that run are trained to their end.
        until_top1: validation top-1 in % of a finished trial that is enough; what runs then is stopped.
    """

    max_hours: float | None = None
    max_trials: int | None = None
    until_top1: float | None = None
    clock: Callable[[], float] = time.monotonic
    stopped: str = ""  # why nothing is begun any more, in words; "" while there is something left
    at_once: bool = False  # what runs is to be stopped too
    _begun: int = 0
    _since: float = field(default=0.0)

    def __post_init__(self) -> None:
        self._since = self.clock()

    def may_begin(self) -> bool:
        """Whether another trial may begin."""
        self._look()
        if not self.stopped and self.max_trials is not None and self._begun >= self.max_trials:
            self._stop(f"--max-trials {self.max_trials}", at_once=False)
        return not self.stopped

    def began(self) -> None:
        self._begun += 1

    def must_stop(self) -> bool:
        """Whether a trial that runs is to stop."""
        self._look()
        return self.at_once

    def finished(self, metrics: Mapping[str, float]) -> None:
        """A trial has ended well, with these metrics."""
        reached = metrics.get("val/top1", 0.0)
        if self.until_top1 is not None and reached >= self.until_top1:
            self._stop(f"--until-top1 {self.until_top1:g} (a trial reached {reached:.1f} %)")

    def disk_full(self, where: str = "") -> None:
        self._stop(f"a full disk{where}: make room")

    def _look(self) -> None:
        if self.max_hours is not None and self.clock() - self._since >= 3600 * self.max_hours:
            self._stop(f"--max-hours {self.max_hours:g}")

    def _stop(self, reason: str, *, at_once: bool = True) -> None:
        self.stopped = self.stopped or reason
        self.at_once = self.at_once or at_once
