"""The states of a trial and the reasons for which a sweep stops."""

from __future__ import annotations

from enum import StrEnum


class TrialStatus(StrEnum):
    """State of a trial of a sweep; the values are part of the storage format (tag ``Tags.STATUS``)."""

    RUNNING = "running"
    FINISHED = "finished"
    """Trained to its last epoch."""
    PRUNED = "pruned"
    """Stopped early because it was behind the other trials."""
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """Stopped before its last epoch; resuming the sweep resumes the trial."""


class StopReason(StrEnum):
    """Why a sweep starts no further trials although some are left."""

    MAX_HOURS = "max_hours"
    MAX_TRIALS = "max_trials"
    UNTIL_TOP1 = "until_top1"
    DISK_FULL = "disk_full"
    INTERRUPTED = "interrupted"
    """Ctrl-C, SIGTERM, a closed terminal, or the death of the backend's processes."""
    DELETED = "deleted"
    """The sweep's experiment was deleted in MLflow."""
    UNAVAILABLE = "unavailable"
    """A database stayed locked or unreachable."""
    REPLACED = "replaced"
    """Another process has taken over the sweep."""


class TrialExit(StrEnum):
    """How the process of a trial ended, as reported to the scheduler."""

    FINISHED = "finished"
    FAILED = "failed"
    PRUNED = "pruned"
    INTERRUPTED = "interrupted"
    DISK_FULL = "disk_full"
    """No space left on the node; the trial can continue on another node, or after space has been freed."""
    PREEMPTED = "preempted"
    """The process received SIGTERM and saved a checkpoint; the trial continues elsewhere."""
    DELETED = "deleted"
    """The trial's run, or the experiment, was deleted in MLflow, so that nothing can be recorded."""


class SweepStatus(StrEnum):
    """How an invocation of a sweep ended."""

    COMPLETED = "completed"
    """No trials are left."""
    STOPPED = "stopped"
    """A limit was reached while trials were left."""
    INTERRUPTED = "interrupted"
    """Trials are left, and the sweep is expected to be resumed."""
    FAILED = "failed"
    """No trial finished."""
