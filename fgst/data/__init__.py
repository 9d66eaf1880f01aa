"""Skeleton data: Arrow data sets, their preparation from raw recordings, and batches for training.

A :class:`Skeleton` names joints, bones and body parts; those of common sensors are in :data:`SKELETONS`.
:func:`write_source` normalizes the :class:`RawClip` objects of a :class:`ClipSource` and writes them to disk,
:func:`write_dataset` writes :class:`Clip` objects as they are, each with :class:`Benchmark` splits.
:class:`ArrowDataset` reads them memory-mapped, from a directory or an object store, and :class:`ClipLoader` turns them
into augmented batches. :mod:`fgst.data.formats` has a reader for each raw format.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgst.data.clip_source import ClipEntry, ClipSource
    from fgst.data.conversion import write_source
    from fgst.data.dataset import ArrowDataset, Clip
    from fgst.data.loader import ClipLoader
    from fgst.data.normalization import Normalization, RawClip
    from fgst.data.skeleton import Skeleton
    from fgst.data.skeletons import SKELETONS
    from fgst.data.splits import Benchmark
    from fgst.data.writer import write_dataset

__all__ = [
    "SKELETONS",
    "ArrowDataset",
    "Benchmark",
    "Clip",
    "ClipEntry",
    "ClipLoader",
    "ClipSource",
    "Normalization",
    "RawClip",
    "Skeleton",
    "write_dataset",
    "write_source",
]

# Imported on first use: the loader imports torch, which takes seconds.
_MODULES = {
    "SKELETONS": "skeletons",
    "ArrowDataset": "dataset",
    "Benchmark": "splits",
    "Clip": "dataset",
    "ClipEntry": "clip_source",
    "ClipLoader": "loader",
    "ClipSource": "clip_source",
    "Normalization": "normalization",
    "RawClip": "normalization",
    "Skeleton": "skeleton",
    "write_dataset": "writer",
    "write_source": "conversion",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
