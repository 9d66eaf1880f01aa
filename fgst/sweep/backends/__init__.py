"""Backends: where the trials of a sweep run, in this process or on Ray, and which resources they get."""

from fgst.sweep.backends.resources import Resources, available_cores, max_concurrent_trials, resources_per_trial

__all__ = ["Resources", "available_cores", "max_concurrent_trials", "resources_per_trial"]
