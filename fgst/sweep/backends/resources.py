"""What a trial gets of the nodes, and how many trials fit on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fgst.errors import InputError


@dataclass(frozen=True)
class Resources:
    """What trials get. ``None`` is decided from the machine or cluster.

    Attributes:
        address: of a running Ray cluster ("auto" finds it); ``None`` starts one on this machine.
        cpus_per_trial: cores and threads of a trial.
        gpus_per_trial: GPUs of a trial; 0.25 lets four share one.
        max_concurrent: trials at a time, at most.
    """

    address: str | None = None
    cpus_per_trial: float | None = None
    gpus_per_trial: float | None = None
    max_concurrent: int | None = None


def resources_per_trial(nodes: Sequence[Mapping[str, float]], resources: Resources, trials: int) -> dict[str, float]:
    """What each trial gets of a cluster: ``{"CPU": cores, "GPU": GPUs or a fraction}``.

    Args:
        nodes: what each has of either kind.

    Raises:
        InputError: if no node can ever give that; Ray would wait for ever.
    """
    cpus, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    gpu = resources.gpus_per_trial if resources.gpus_per_trial is not None else (1.0 if gpus else 0.0)
    if gpu and not gpus:
        raise InputError(f"--gpus-per-trial is {gpu:g}, but Ray sees no GPU here; leave it out to train on the CPU")
    if gpu > gpus:
        raise InputError(f"--gpus-per-trial is {gpu:g}, but there are {gpus:g} GPUs")
    cpu = resources.cpus_per_trial
    if cpu is None:
        # On a GPU a core feeds a trial. On the CPU all cores are divided among the trials that run together.
        together = min(trials, resources.max_concurrent or trials, max(1, int(cpus)))
        cpu = 1.0 if gpu else _cores_each(nodes, together)
    if cpu > cpus:
        raise InputError(f"--cpus-per-trial is {cpu:g}, but there are {cpus:g} cores")
    each = {"CPU": cpu, "GPU": gpu}
    if not max_concurrent_trials(nodes, each):
        for kind, share in each.items():
            most = max((node.get(kind, 0.0) for node in nodes), default=0.0)
            if share > most:
                raise InputError(f"--{kind.lower()}s-per-trial is {share:g}, but no node has more than {most:g}")
        raise InputError(f"no node has {cpu:g} cores and {gpu:g} GPUs for a trial; lower one of the two shares")
    return each


def _cores_each(nodes: Sequence[Mapping[str, float]], together: int) -> float:
    """The most cores with which so many trials find room at a time: a trial lies on one node."""
    largest = int(max((node.get("CPU", 0.0) for node in nodes), default=1.0))
    for cores in range(largest, 1, -1):
        if max_concurrent_trials(nodes, {"CPU": cores}) >= together:
            return float(cores)
    return 1.0


def max_concurrent_trials(nodes: Sequence[Mapping[str, float]], each: Mapping[str, float]) -> int:
    """How many trials fit at a time. A fraction of a GPU is of one GPU."""

    def places(there: float, kind: str, share: float) -> int:
        whole = int(there) * int(1 / share + 1e-9) if kind == "GPU" and share < 1 else there / share
        return int(whole + 1e-9)

    return sum(min(places(node.get(kind, 0.0), kind, s) for kind, s in each.items() if s) for node in nodes)
