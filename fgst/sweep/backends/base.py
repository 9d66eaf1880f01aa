"""The interface of backends, which run the trials of a search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fgst.sweep.definition import Trial
from fgst.sweep.scheduler import UpdateListener
from fgst.sweep.search import Search
from fgst.sweep.status import TrialExit
from fgst.sweep.stopping import Budget
from fgst.sweep.trial import TrialContext

# Runs a trial to its end and passes the metrics of each epoch to the callable.
RunTrial = Callable[[Trial, TrialContext, Callable[[dict[str, float]], None]], TrialExit]


class Backend(Protocol):
    """Runs trials somewhere; every backend gives the same metrics for the same trial."""

    def run(self, search: Search, context: TrialContext, budget: Budget, on_update: UpdateListener) -> None:
        """Run trials until none is left or the budget stops the sweep.

        Args:
            search: hands out the trials.
            context: information about the sweep that the trials need.
            budget: limits of the sweep; records why the sweep stopped.
            on_update: called after every epoch and every end of a trial.

        Raises:
            InputError: if the backend cannot provide the resources of a trial.
        """
        ...
