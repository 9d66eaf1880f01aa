"""Evaluation of trained networks: scores and metrics, inference on raw clips, ensembles, statistics and figures."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgst.evaluation.ensemble import fuse
    from fgst.evaluation.inference import Predictor
    from fgst.evaluation.metrics import Scores

__all__ = ["Predictor", "Scores", "fuse"]

# Loaded on first use: inference imports torch, which takes seconds.
_MODULES = {"Predictor": "inference", "Scores": "metrics", "fuse": "ensemble"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
