"""Sweeps: what is asked (``spec``), where trials run (``engine``), what is read afterwards (``report``)."""

from fgst.sweep.command import main
from fgst.sweep.spec import Question

__all__ = ["Question", "main"]
