"""Sweeps: their definition, search, execution on a backend, results and report."""

from fgst.sweep.definition import Parameter, Published, SweepDefinition

__all__ = ["Parameter", "Published", "SweepDefinition"]
