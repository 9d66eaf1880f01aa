"""Sweeps: what is asked (``spec``), what is next (``search``), where it runs (``engine``), what is read (``page``)."""

from fgst.cli.sweep import main
from fgst.sweep.definition import Parameter, Question

__all__ = ["Parameter", "Question", "main"]
