"""Sweeps: what is asked (``spec``), what is next (``search``), where it runs (``engine``), what is read (``page``)."""

from fgst.sweep.command import main
from fgst.sweep.spec import Parameter, Question

__all__ = ["Parameter", "Question", "main"]
