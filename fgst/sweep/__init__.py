"""Sweeps: their definition, search, execution on a backend, results and report."""

from fgst.sweep.definition import Parameter, SweepDefinition

__all__ = ["Parameter", "SweepDefinition"]
