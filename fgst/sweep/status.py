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
    """Ctrl-C, SIGTERM or a closed terminal."""
    SERVER_UNAVAILABLE = "server_unavailable"
    """The tracking server did not answer for longer than the patience of the driver."""
