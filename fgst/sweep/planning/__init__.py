"""Planning before a sweep: cost of a network, estimates for ``--dry-run``, and how many trials share a GPU.

The names below are imported on first use, because they import PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgst.sweep.planning.cost import ModelCost, latency_ms, model_cost
    from fgst.sweep.planning.gpu_sharing import choose_share, measure_throughput
    from fgst.sweep.planning.plan import Plan, make_plan, print_plan

_MODULES = {
    "ModelCost": "cost",
    "latency_ms": "cost",
    "model_cost": "cost",
    "choose_share": "gpu_sharing",
    "measure_throughput": "gpu_sharing",
    "Plan": "plan",
    "make_plan": "plan",
    "print_plan": "plan",
}
__all__ = [
    "ModelCost",
    "Plan",
    "choose_share",
    "latency_ms",
    "make_plan",
    "measure_throughput",
    "model_cost",
    "print_plan",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
