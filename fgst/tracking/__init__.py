"""Experiment tracking with MLflow: stores, runs, the model registry, and garbage collection.

Only this package imports MLflow. A sweep is a parent run and each of its trials a child run, which is looked up by its
trial id, so an interrupted trial continues in the run that it started. While a tracking server is unreachable, records
are buffered on disk and uploaded later (see :mod:`fgst.tracking.spool`).
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# MLflow reads these when it is imported, and every module of this package is imported after this one.
# Usage reporting to MLflow's authors blocks where there is no network.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# The last line that a command prints is the next command to run, so MLflow must not print URLs after it.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# Training must not block for the minutes during which MLflow retries a request: RetryingClient and Spool retry instead.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

if TYPE_CHECKING:
    from fgst.tracking.run import TrackedRun
    from fgst.tracking.store import TrackingStore
    from fgst.tracking.tags import Tags

__all__ = ["Tags", "TrackedRun", "TrackingStore"]

# Loaded on first use: importing MLflow takes seconds.
_MODULES = {"Tags": "tags", "TrackedRun": "run", "TrackingStore": "store"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
