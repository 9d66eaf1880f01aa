"""Trials in this process, one after another, without Ray."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

from fgst.sweep.scheduler import TrialScheduler, UpdateListener
from fgst.sweep.search import Search
from fgst.sweep.stopping import Budget
from fgst.sweep.trial import StopTrial, TrialContext, run_trial


@dataclass(frozen=True)
class LocalBackend:
    """Runs trials in this process.

    Attributes:
        threads: CPU threads of a trial; ``None`` keeps the context's setting.
    """

    threads: int | None = None

    def run(self, search: Search, context: TrialContext, budget: Budget, on_update: UpdateListener) -> None:
        """See :meth:`fgst.sweep.backends.base.Backend.run`."""
        if self.threads is not None:
            context = dataclasses.replace(context, threads=self.threads, devices=self.threads)
        scheduler = TrialScheduler(search, budget, on_update)
        while (trial := scheduler.next_trial()) is not None:

            def report(metrics: dict[str, float], trial_id: str = trial.trial_id) -> None:
                if status := scheduler.on_result(trial_id, metrics):
                    raise StopTrial(status)

            scheduler.on_trial_end(trial.trial_id, run_trial(trial, context, report), host=os.uname().nodename)
