"""Helpers for tests: small data sets and networks, workspaces for whole sweeps, and simulated clouds."""
