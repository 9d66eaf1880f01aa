"""Placement of trials on a cluster of virtual nodes, which have more cores and GPUs than this machine.

The backend, Ray and the search are real; trials sleep instead of training.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.simulated import SimulatedTrial
from fgst.data.dataset import ArrowDataset
from fgst.errors import InputError
from fgst.sweep.backends.ray import RayBackend
from fgst.sweep.backends.resources import Resources
from fgst.sweep.definition import Parameter, SweepDefinition, TrialFactory
from fgst.sweep.scheduler import TrialUpdate
from fgst.sweep.search import Search
from fgst.sweep.spec import build_spec
from fgst.sweep.stopping import Budget
from fgst.sweep.trial import TrialContext
from tests.support import small

pytestmark = pytest.mark.long

DEFINITION = SweepDefinition(
    name="rate",
    title="How fast?",
    parameters=lambda skeleton, base: [Parameter("lr", tuple(0.01 * n for n in range(1, 7)))],
    settings=lambda params, base: {"train.lr": params["lr"]},
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that runs no trials, and a node with two virtual cores and a virtual GPU."""
    from ray.cluster_utils import Cluster

    from fgst.sweep.backends.ray_session import quieten

    quieten()
    monkeypatch.chdir(Path(__file__).parents[2])  # the workers import modules from the working directory
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    before = set(psutil.Process().children(recursive=True))
    # Tests add nodes while a sweep runs, in a thread, where Ray cannot register a signal handler.
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}, shutdown_at_exit=False
    )
    try:
        cluster.add_node(num_cpus=2, num_gpus=1)
        yield cluster
    finally:
        cluster.shutdown()
        remaining = set(psutil.Process().children(recursive=True)) - before
        _, alive = psutil.wait_procs(remaining, timeout=20)
        assert not alive


class Sweep:
    """A grid of six trials that sleep."""

    def __init__(self, dataset: ArrowDataset, folder: Path, seconds: float, epochs: int = 3) -> None:
        config = small.small_config(dataset, train__epochs=epochs)
        self.spec = build_spec(DEFINITION, config, dataset)
        self.search = Search(self.spec, TrialFactory(DEFINITION, self.spec.base, dataset), None, "virtual")
        self.log = folder / "log.jsonl"
        self.context = TrialContext("nowhere", "0", "0" * 32, str(folder / "storage"))
        self.trial = SimulatedTrial(seconds, log_to_mlflow=False, log_file=str(self.log))
        self.updates: list[TrialUpdate] = []

    def run(self, resources: Resources, on_progress: Any = None, budget: Budget | None = None) -> list[dict[str, Any]]:
        """Run the sweep and return the lines that the trials logged.

        Args:
            on_progress: called in this thread after each epoch and at the end of each trial.
        """

        def on_update(update: TrialUpdate) -> None:
            self.updates.append(update)
            if on_progress is not None:
                on_progress(update)

        RayBackend(resources, self.trial).run(self.search, self.context, budget or Budget(), on_update)
        return self.lines()

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines that the trials have logged so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    @property
    def final_states(self) -> Counter[str]:
        """The number of trials by final state."""
        return Counter(update.status for update in self.updates if update.status != "running")


def max_concurrency(lines: list[dict[str, Any]], key: str) -> dict[str, int]:
    """Return the largest number of trials that ran at the same time, by the value of ``key``, e.g. for each node."""
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()
    for line in sorted(lines, key=lambda line: line["time"]):
        if line["event"] != "epoch":
            running[line[key]] += 1 if line["event"] == "begin" else -1
            most[line[key]] = max(most[line[key]], running[line[key]])
    return dict(most)


def test_fractional_gpus_share_each_node(cluster: Any, dataset: ArrowDataset, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=2, num_gpus=1)
    sweep = Sweep(dataset, tmp_path, seconds=1.0)
    lines = sweep.run(Resources(cluster.address, gpus_per_trial=0.5, max_concurrent=6))
    assert sweep.final_states == {"finished": 6}
    assert sorted(max_concurrency(lines, "node").values()) == [2, 2]
    starts = [line["time"] for line in lines if line["event"] == "begin"]
    ends = [line["time"] for line in lines if line["event"] == "end"]
    assert sum(start < min(ends) for start in starts) == 4  # the fifth waits for a free GPU
    assert {line["gpus"] for line in lines} == {"0"}  # each node's first GPU
    assert {line["openmp"] for line in lines} == {"passive"}
    assert not any(line["torch"] for line in lines)  # simulated trials do not import PyTorch
    # Requests that the cluster can never satisfy are rejected.
    invalid = Sweep(dataset, tmp_path / "invalid", seconds=0.1)
    for resources, message in (
        (Resources(cluster.address, gpus_per_trial=3.0), "--gpus-per-trial is 3, but there are 2 GPUs"),
        (Resources(cluster.address, cpus_per_trial=5.0), "--cpus-per-trial is 5, but there are 4 cores"),
        (Resources(cluster.address, gpus_per_trial=2.0), "--gpus-per-trial is 2, but no node has more than 1"),
        (Resources(cluster.address, cpus_per_trial=3.0), "--cpus-per-trial is 3, but no node has more than 2"),
    ):
        with pytest.raises(InputError, match=message):
            invalid.run(resources)
    assert invalid.updates == []


@pytest.mark.slow
def test_new_node_gets_trials(cluster: Any, dataset: ArrowDataset, tmp_path: Path) -> None:
    sweep = Sweep(dataset, tmp_path, seconds=2.0)
    added: list[Any] = []

    def add_node(update: TrialUpdate) -> None:
        if not added:
            added.append(cluster.add_node(num_cpus=2, num_gpus=1))

    lines = sweep.run(Resources(cluster.address, gpus_per_trial=1.0), add_node)
    assert sweep.final_states == {"finished": 6}
    assert len({line["node"] for line in lines}) == 2
    first = min(lines, key=lambda line: line["time"])["node"]
    assert sum(line["event"] == "begin" and line["node"] != first for line in lines) >= 2
    assert set(max_concurrency(lines, "node").values()) == {1}


@pytest.mark.slow
def test_trials_of_lost_node_restart_on_other_node(cluster: Any, dataset: ArrowDataset, tmp_path: Path) -> None:
    lost_node = cluster.add_node(num_cpus=2, num_gpus=1)
    sweep = Sweep(dataset, tmp_path, seconds=2.0)
    lost_trials: list[str] = []

    def remove_node(update: TrialUpdate) -> None:
        """Remove the second node as soon as one of its trials has reported an epoch."""
        on_lost_node = [line for line in sweep.lines() if line["node"] == lost_node.node_id]
        reported = {line["trial_id"] for line in on_lost_node if line["event"] == "epoch"}
        if not lost_trials and update.trial.trial_id in reported and update.status == "running":
            lost_trials.append(update.trial.trial_id)
            cluster.remove_node(lost_node, allow_graceful=False)

    lines = sweep.run(Resources(cluster.address, gpus_per_trial=1.0), remove_node)
    assert lost_trials
    assert sweep.final_states == {"finished": 6}
    starts = Counter(line["trial_id"] for line in lines if line["event"] == "begin")
    assert starts[lost_trials[0]] == 2  # other trials are not affected
    assert sum(starts.values()) == 7
    final_nodes = [line["node"] for line in lines if line["trial_id"] == lost_trials[0] and line["event"] == "end"]
    assert final_nodes == [next(line["node"] for line in lines if line["node"] != lost_node.node_id)]


@pytest.mark.slow
def test_trials_move_from_node_with_full_disk(
    cluster: Any, dataset: ArrowDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (full,) = cluster.worker_nodes
    sweep = Sweep(dataset, tmp_path, seconds=0.3)
    sweep.trial = replace(sweep.trial, full_nodes=full.node_id)
    added: list[Any] = []

    def add_node(update: TrialUpdate) -> None:
        if not added:
            added.append(cluster.add_node(num_cpus=2, num_gpus=1))

    lines = sweep.run(Resources(cluster.address, gpus_per_trial=0.5), add_node)
    assert sweep.final_states == {"finished": 6}
    starts = Counter(line["trial_id"] for line in lines if line["event"] == "begin")
    moved = {line["trial_id"] for line in lines if line["event"] == "begin" and line["node"] == full.node_id}
    assert moved
    assert {trial_id: starts[trial_id] for trial_id in moved} == dict.fromkeys(moved, 2)  # once on the full node
    assert {line["node"] for line in lines if line["event"] == "end"} == {added[0].node_id}
    assert capfd.readouterr().err.count("its trials continue on other nodes") == 1


@pytest.mark.slow
@pytest.mark.parametrize("storage_full", [False, True])
def test_sweep_stops_if_all_disks_are_full(
    cluster: Any, dataset: ArrowDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage_full: bool
) -> None:
    nodes = list(cluster.worker_nodes)
    if storage_full:
        nodes.append(cluster.add_node(num_cpus=2, num_gpus=1))
        monkeypatch.setattr("fgst.sweep.storage.has_room", lambda location: False)
    sweep = Sweep(dataset, tmp_path, seconds=0.3)
    sweep.trial = replace(sweep.trial, full_nodes=" ".join(node.node_id for node in nodes))
    budget = Budget()
    sweep.run(Resources(cluster.address, gpus_per_trial=1.0), budget=budget)
    assert budget.details.startswith("disk full on ")
    assert sweep.final_states["interrupted"] >= 1
    assert set(sweep.final_states) <= {"interrupted", "finished"}
