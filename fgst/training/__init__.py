"""Training of a single trial: the training loop (:func:`fit`), its checkpoints, and its reaction to SIGTERM."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgst.training.trainer import EpochResult, fit

__all__ = ["EpochResult", "fit"]


def __getattr__(name: str) -> Any:  # lazy: torch takes seconds to import
    if name in __all__:
        return getattr(importlib.import_module("fgst.training.trainer"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
