"""Helpers of the tests: small data sets and networks, workspaces for whole sweeps, and stand-ins for clouds."""
