"""The cores of a machine, and the resources of a trial on the nodes of a cluster."""

from __future__ import annotations

import os

import pytest

from fgst.errors import InputError
from fgst.sweep.backends.resources import Resources, available_cores, max_concurrent_trials, resources_per_trial


def test_available_cores_respect_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5}, raising=False)
    assert available_cores() == 3


@pytest.mark.parametrize(("count", "expected"), [(6, 6), (None, 1)])
def test_available_cores_without_affinity(count: int | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert available_cores() == expected


@pytest.mark.parametrize(
    ("node", "options", "expected", "trials"),
    [
        ({"CPU": 2.0}, Resources(), {"CPU": 1.0, "GPU": 0.0}, 8),
        ({"CPU": 16.0}, Resources(), {"CPU": 5.0, "GPU": 0.0}, 3),
        ({"CPU": 16.0}, Resources(max_concurrent=2), {"CPU": 8.0, "GPU": 0.0}, 8),
        ({"CPU": 16.0}, Resources(cpus_per_trial=2), {"CPU": 2.0, "GPU": 0.0}, 8),
        ({"CPU": 16.0, "GPU": 2.0}, Resources(), {"CPU": 1.0, "GPU": 1.0}, 8),
        ({"CPU": 16.0, "GPU": 2.0}, Resources(gpus_per_trial=0.25), {"CPU": 1.0, "GPU": 0.25}, 8),
        ({"CPU": 16.0, "GPU": 2.0}, Resources(gpus_per_trial=0), {"CPU": 2.0, "GPU": 0.0}, 8),
    ],
)
def test_resources_per_trial_on_one_node(
    node: dict[str, float], options: Resources, expected: dict[str, float], trials: int
) -> None:
    assert resources_per_trial([node], options, trials) == expected


def test_resources_of_a_trial_are_those_of_a_single_node() -> None:
    nodes: list[dict[str, float]] = [{}, {"CPU": 4.0}, {"CPU": 4.0}, {"CPU": 4.0, "GPU": 2.0}]
    on_cpu = Resources(gpus_per_trial=0)
    counts = (1, 2, 3, 4, 6, 12, 50)
    assert [resources_per_trial(nodes, on_cpu, trials)["CPU"] for trials in counts] == [4, 4, 4, 2, 2, 1, 1]
    assert max_concurrent_trials(nodes, {"CPU": 3.0, "GPU": 0.0}) == 3
    assert max_concurrent_trials(nodes, {"CPU": 1.0, "GPU": 0.6}) == 2  # of one GPU each
    for options, message in (
        (Resources(gpus_per_trial=0, cpus_per_trial=5), "--cpus-per-trial is 5, but no node has more than 4"),
        (Resources(gpus_per_trial=1, cpus_per_trial=8), "--cpus-per-trial is 8, but no node has more than 4"),
    ):
        with pytest.raises(InputError, match=message):
            resources_per_trial(nodes, options, 1)
    with pytest.raises(InputError, match="no node has both 4 cores and 1 GPUs"):
        resources_per_trial([{"CPU": 4.0}, {"GPU": 1.0}], Resources(cpus_per_trial=4), 1)


@pytest.mark.parametrize(
    ("node", "options", "message"),
    [
        ({"CPU": 2.0}, Resources(gpus_per_trial=0.5), "Ray finds no GPU"),
        ({"CPU": 2.0, "GPU": 1.0}, Resources(gpus_per_trial=2), "there are 1 GPUs"),
        ({"CPU": 2.0}, Resources(cpus_per_trial=4), "there are 2 cores"),
    ],
)
def test_resources_that_no_node_has_are_rejected(node: dict[str, float], options: Resources, message: str) -> None:
    """Ray would wait for them forever."""
    with pytest.raises(InputError, match=message):
        resources_per_trial([node], options, 1)
