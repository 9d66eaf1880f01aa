"""Helpers for tests of clusters: simulated clouds and hosts, and scripts that run whole sweeps on them."""
