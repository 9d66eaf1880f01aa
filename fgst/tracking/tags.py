"""Names of the tags that fgst sets on MLflow runs and registered models."""

from __future__ import annotations

from typing import Final


class Tags:
    """Tag names; the values are strings.

    The names are part of the storage format: runs written by earlier versions carry them.
    """

    # Every run.
    KIND: Final = "fgst.kind"
    """What the run is: ``trial``, ``sweep`` or ``ensemble``."""
    PARENT: Final = "mlflow.parentRunId"
    """Run id of the sweep that a trial or an ensemble belongs to."""
    TRIAL_ID: Final = "fgst.key"
    """Identity of a trial (or of any run that is looked up again later), independent of the run id."""
    REASON: Final = "fgst.reason"
    """Why a run ended as FAILED or KILLED."""
    HOST: Final = "fgst.host"
    GIT_DIRTY: Final = "fgst.git_dirty"
    """``true`` if the code had uncommitted changes."""
    SPOOLED: Final = "fgst.spooled"
    """Number of records that were buffered on disk while the tracking server was unreachable."""

    # What a run was trained on.
    DATASET: Final = "fgst.dataset"
    DATASET_DIGEST: Final = "fgst.dataset_digest"
    BENCHMARK: Final = "fgst.benchmark"
    PROTOCOL: Final = "fgst.protocol"
    MODALITY: Final = "fgst.modality"
    SEED: Final = "fgst.seed"

    # Trials of a sweep.
    LABEL: Final = "fgst.label"
    """The trial's parameters as text, for display."""
    PARAMS: Final = "fgst.point"
    """The trial's parameters as a JSON list of (name, value)."""
    STATUS: Final = "fgst.ending"
    """How a trial ended, as a :class:`~fgst.sweep.status.TrialStatus`; MLflow has no status "pruned"."""
    STARTS: Final = "fgst.starts"
    """How often the trial's process was started at the same checkpoint."""
    MICRO_BATCHES: Final = "fgst.micro_batches"
    """Number of parts each batch was split into after running out of memory."""
    CHECKPOINT_NOT_COPIED: Final = "fgst.not_copied"
    """Why a checkpoint could not be copied to the sweep's storage."""
    WEIGHTS_REMOVED: Final = "fgst.weights_removed"
    """Set by ``python -m fgst.runs gc`` when it removes the weights of a trial that was not the best."""

    # Sweeps.
    SWEEP: Final = "fgst.sweep"
    """Name of the sweep's script."""
    STORAGE: Final = "fgst.storage"
    """Folder or URI for the sweep's checkpoints."""
    STUDY_STORAGE: Final = "fgst.study_storage"
    """URL of the Optuna storage, without its password."""
    DRIVER: Final = "fgst.driver"
    """The process that runs the sweep, see :mod:`fgst.sweep.driver_lock`."""
    STOP_REASON: Final = "fgst.stopped"
    """The limit that stopped the sweep while trials were left."""
    BEST_RUN: Final = "fgst.best_run"
    BEST_LABEL: Final = "fgst.best"
    REUSED_TRIAL: Final = "fgst.trained_before."
    """Prefix before a trial id: the run of an earlier sweep that is reused for this trial."""
    ENSEMBLE: Final = "fgst.ensemble"
    """Run id of the ensemble built from this sweep."""
    REFIT: Final = "fgst.refit"
    """Run id of the sweep that retrains this sweep's networks on all training clips."""
    WEIGHTS_FROM: Final = "fgst.weights_from"
    """Run id of the ensemble whose fusion weights are used."""

    # Ensembles and registered models.
    MEMBER: Final = "fgst.member."
    """Prefix before a modality: run id of that member network."""
    VAL_TOP1: Final = "fgst.val_top1"
    VALIDATION_SPLIT: Final = "fgst.validation_split"
