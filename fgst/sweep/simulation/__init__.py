"""Simulation of searches on recorded learning curves, for ``--simulate``: what a search would find, and at what cost.

The names below are imported on first use, because the simulator imports Optuna, Ray and PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgst.sweep.simulation.curves import LearningCurve, make_curve, read_curves
    from fgst.sweep.simulation.report import print_simulation
    from fgst.sweep.simulation.simulator import (
        RecordedCurves,
        SimulationLimits,
        SimulationResult,
        simulate_repeatedly,
        simulate_search,
    )

_MODULES = {
    "LearningCurve": "curves",
    "make_curve": "curves",
    "read_curves": "curves",
    "print_simulation": "report",
    "RecordedCurves": "simulator",
    "SimulationLimits": "simulator",
    "SimulationResult": "simulator",
    "simulate_repeatedly": "simulator",
    "simulate_search": "simulator",
}
__all__ = [
    "LearningCurve",
    "RecordedCurves",
    "SimulationLimits",
    "SimulationResult",
    "make_curve",
    "print_simulation",
    "read_curves",
    "simulate_repeatedly",
    "simulate_search",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
