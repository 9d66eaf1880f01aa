"""The FG-STFormer network, its attention maps, and the description that is saved with its weights."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgst.model.card import ModelCard
    from fgst.model.fgstformer import AttentionMaps, FGSTFormer

__all__ = ["AttentionMaps", "FGSTFormer", "ModelCard"]

_MODULES = {
    "AttentionMaps": "fgst.model.fgstformer",
    "FGSTFormer": "fgst.model.fgstformer",
    "ModelCard": "fgst.model.card",
}


def __getattr__(name: str) -> Any:  # lazy: torch takes seconds to import
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
