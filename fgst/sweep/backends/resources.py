"""CPU cores and GPUs: how many a machine offers, how many each trial gets, and how many trials run at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fgst.errors import InputError


@dataclass(frozen=True)
class Resources:
    """Resources requested for the trials of a sweep; ``None`` means derived from the machine or cluster.

    Attributes:
        address: address of a running Ray cluster ("auto" finds it); ``None`` starts one on this machine.
        cpus_per_trial: CPU cores, and threads, of a trial.
        gpus_per_trial: GPUs of a trial; 0.25 lets four trials share one GPU.
        max_concurrent: the maximum number of trials that run at a time.
    """

    address: str | None = None
    cpus_per_trial: float | None = None
    gpus_per_trial: float | None = None
    max_concurrent: int | None = None


def available_cores() -> int:
    """Return the number of CPU cores that this process may use.

    This respects the process's CPU affinity (``taskset``, a container's cpuset) on platforms that report it; elsewhere,
    e.g. on macOS, it is the number of cores of the machine.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resources_per_trial(nodes: Sequence[Mapping[str, float]], resources: Resources, trials: int) -> dict[str, float]:
    """Decide which resources each trial requests from Ray.

    Args:
        nodes: the ``{"CPU": cores, "GPU": GPUs}`` of each node of the cluster.
        resources: what the user requested.
        trials: the number of trials in the sweep.

    Returns:
        ``{"CPU": cores, "GPU": GPUs}`` of one trial. The number of GPUs may be a fraction, or zero.

    Raises:
        InputError: if no node has the requested resources. Ray would wait for them forever.
    """
    total_cpus, total_gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    gpus = resources.gpus_per_trial if resources.gpus_per_trial is not None else (1.0 if total_gpus else 0.0)
    if gpus and not total_gpus:
        raise InputError(f"--gpus-per-trial is {gpus:g}, but Ray finds no GPU; omit it to train on the CPU")
    if gpus > total_gpus:
        raise InputError(f"--gpus-per-trial is {gpus:g}, but there are {total_gpus:g} GPUs")
    cpus = resources.cpus_per_trial
    if cpus is None:
        # One core is enough to feed a trial on a GPU. On the CPU, concurrent trials divide all cores among them.
        concurrent = min(trials, resources.max_concurrent or trials, max(1, int(total_cpus)))
        cpus = 1.0 if gpus else _cores_per_trial(nodes, concurrent)
    if cpus > total_cpus:
        raise InputError(f"--cpus-per-trial is {cpus:g}, but there are {total_cpus:g} cores")
    per_trial = {"CPU": cpus, "GPU": gpus}
    if not max_concurrent_trials(nodes, per_trial):
        for kind, amount in per_trial.items():
            most = max((node.get(kind, 0.0) for node in nodes), default=0.0)
            if amount > most:
                raise InputError(f"--{kind.lower()}s-per-trial is {amount:g}, but no node has more than {most:g}")
        raise InputError(
            f"no node has both {cpus:g} cores and {gpus:g} GPUs; lower --cpus-per-trial or --gpus-per-trial"
        )
    return per_trial


def _cores_per_trial(nodes: Sequence[Mapping[str, float]], concurrent: int) -> float:
    """Return the largest number of cores per trial with which ``concurrent`` trials fit, each on a single node."""
    largest = int(max((node.get("CPU", 0.0) for node in nodes), default=1.0))
    for cores in range(largest, 1, -1):
        if max_concurrent_trials(nodes, {"CPU": cores}) >= concurrent:
            return float(cores)
    return 1.0


def max_concurrent_trials(nodes: Sequence[Mapping[str, float]], per_trial: Mapping[str, float]) -> int:
    """Return how many trials fit on the nodes at a time.

    A trial runs on a single node, and a fraction of a GPU is a fraction of a single GPU.
    """

    def capacity(available: float, kind: str, amount: float) -> int:
        whole = int(available) * int(1 / amount + 1e-9) if kind == "GPU" and amount < 1 else available / amount
        return int(whole + 1e-9)

    return sum(
        min(capacity(node.get(kind, 0.0), kind, amount) for kind, amount in per_trial.items() if amount)
        for node in nodes
    )
