"""The scheduler between a backend and a search: which trial starts, which one stops, and which are left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fgst.errors import StoreUnavailable, is_disk_full
from fgst.sweep.definition import Trial
from fgst.sweep.search import Search
from fgst.sweep.status import StopReason, TrialExit, TrialStatus
from fgst.sweep.stopping import Budget

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialUpdate:
    """An event of a trial, with its status: RUNNING after an epoch, any other status at its end."""

    trial: Trial
    status: TrialStatus
    metrics: dict[str, float]
    reason: str = ""


UpdateListener = Callable[[TrialUpdate], None]


class TrialScheduler:
    """Decides for a backend which trial starts next and which one stops.

    Args:
        search: hands out trials and decides on early stopping.
        budget: limits of the sweep.
        on_update: called after every epoch and every end of a trial.
        has_capacity_excluding: whether trials can run without the nodes with these ids, whose disks are full.
    """

    def __init__(
        self,
        search: Search,
        budget: Budget,
        on_update: UpdateListener,
        has_capacity_excluding: Callable[[set[str]], bool] = lambda nodes: False,
    ) -> None:
        self._search, self._budget, self._on_update = search, budget, on_update
        self._has_capacity_excluding = has_capacity_excluding
        self.trials: dict[str, Trial] = {}
        self.order: dict[str, int] = {}  # position in which trials were requested, by trial id
        self.full_nodes: set[str] = set()
        self._running: set[str] = set()
        self._requeued: list[Trial] = []  # to continue on another node
        self._last_metrics: dict[str, dict[str, float]] = {}
        self._stopped: dict[str, TrialStatus] = {}

    def next_trial(self) -> Trial | None:
        """The trial to start now, or ``None``."""
        trial = None
        if self._requeued and not self._budget.should_stop_running():
            trial = self._requeued.pop(0)
        elif self._budget.allows_start():
            with self._stop_if_unrecorded():
                trial = self._search.ask()
            if trial is not None:
                self._budget.on_start()
                self.trials[trial.trial_id] = trial
                self.order[trial.trial_id] = len(self.order)
        if trial is not None:
            self._running.add(trial.trial_id)
        return trial

    @property
    def is_finished(self) -> bool:
        """Whether :meth:`next_trial` will never return another trial."""
        if self._running or (self._requeued and not self._budget.should_stop_running()):
            return False  # a running trial may have to continue on another node
        return self._search.exhausted or not self._budget.allows_start()

    def on_result(self, trial_id: str, metrics: dict[str, float]) -> TrialStatus | None:
        """Record an epoch; returns the status with which the trial is to stop now, or ``None`` to continue."""
        self._last_metrics[trial_id] = metrics
        epoch = int(metrics["epoch"])
        with self._stop_if_unrecorded():
            self._on_update(TrialUpdate(self.trials[trial_id], TrialStatus.RUNNING, metrics))
            if self._search.on_result(trial_id, epoch, metrics):
                self._stopped[trial_id] = TrialStatus.PRUNED
        if self._budget.should_stop_running() and epoch < self.trials[trial_id].config.train.epochs:
            self._stopped.setdefault(trial_id, TrialStatus.INTERRUPTED)
        return self._stopped.get(trial_id)

    def on_trial_end(self, trial_id: str, exit: TrialExit, reason: str = "", node: str = "", host: str = "") -> None:
        """Record the end of a trial.

        Args:
            exit: as the trial reports it; a trial that was stopped by :meth:`on_result` ends with that status.
            reason: reason of a failure that the trial could not record.
            node, host: id and host name of the node that it ran on.
        """
        self._running.discard(trial_id)
        metrics = self._last_metrics.get(trial_id, {})
        status = self._stopped.get(trial_id)
        if status is None and exit is TrialExit.DISK_FULL:
            if not self._budget.should_stop_running() and self._has_capacity_excluding(self.full_nodes | {node}):
                if node not in self.full_nodes:
                    logger.warning("disk full%s: its trials continue on other nodes", f" on {host}" if host else "")
                self.full_nodes.add(node)
                self._requeued.append(self.trials[trial_id])
                return
            self._budget.on_disk_full(host)
        if status is None and exit is TrialExit.DELETED:
            logger.warning("%s: its run was deleted in MLflow while it was training", self.trials[trial_id].name)
            status = TrialStatus.FAILED
        if status is None:
            unfinished = exit in (TrialExit.DISK_FULL, TrialExit.PREEMPTED)
            status = TrialStatus.INTERRUPTED if unfinished else TrialStatus(exit.value)
        if status is TrialStatus.FINISHED:
            self._budget.on_finish(metrics)
        with self._stop_if_unrecorded():
            self._search.tell(trial_id, status, metrics, self.trials[trial_id])
        with self._stop_if_unrecorded():
            self._on_update(TrialUpdate(self.trials[trial_id], status, metrics, reason))

    @contextmanager
    def _stop_if_unrecorded(self) -> Iterator[None]:
        """Stop the sweep in a resumable state if a disk is full, or a database stays locked."""
        try:
            yield
        except StoreUnavailable as error:
            self._budget.stop(StopReason.UNAVAILABLE, str(error))
        except Exception as error:
            if not is_disk_full(error):
                raise
            self._budget.on_disk_full()
