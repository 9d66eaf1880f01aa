"""Where trials run on a cluster: virtual nodes on this machine, with cores and GPUs that they only claim to have.

The engine, Ray and the search are real; trials sleep instead of training, since no GPU is there to train on.
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
from fgst.sweep.backends.ray import Progress, Resources, run_on_ray
from fgst.sweep.definition import Parameter, SweepDefinition, TrialFactory, build_spec
from fgst.sweep.search import Search
from fgst.sweep.stopping import Budget
from fgst.sweep.trial import TrialContext
from tests.support import small

QUESTION = SweepDefinition(
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
    """A head that runs nothing, and a node that claims two cores and a GPU."""
    from ray.cluster_utils import Cluster

    from fgst.sweep.backends.ray_session import quieten

    quieten()
    monkeypatch.chdir(Path(__file__).parents[2])  # where the workers look for modules
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    before = set(psutil.Process().children(recursive=True))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=2, num_gpus=1)
        yield cluster
    finally:
        cluster.shutdown()
        left = set(psutil.Process().children(recursive=True)) - before
        _, alive = psutil.wait_procs(left, timeout=20)
        assert not alive


class Sweep:
    """A grid of six trials that sleep, in a thread of its own or in this one."""

    def __init__(self, dataset: ArrowDataset, folder: Path, seconds: float, epochs: int = 3) -> None:
        config = small.small_config(dataset, train__epochs=epochs)
        self.spec = build_spec(QUESTION, config, dataset)
        self.search = Search(self.spec, TrialFactory(QUESTION, self.spec.base, dataset), None, "virtual")
        self.log = folder / "log.jsonl"
        self.context = TrialContext("nowhere", "0", "0" * 32, str(folder / "storage"))
        self.trial = SimulatedTrial(seconds, log_to_mlflow=False, log_file=str(self.log))
        self.told: list[Progress] = []

    def run(self, resources: Resources, then: Any = None, budget: Budget | None = None) -> list[dict[str, Any]]:
        """What the trials wrote down; ``then`` hears of each epoch and each end, in this thread."""

        def listen(progress: Progress) -> None:
            self.told.append(progress)
            if then is not None:
                then(progress)

        run_on_ray(self.search, self.context, resources, budget or Budget(), listen, self.spec.total, self.trial)
        return self.lines()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    @property
    def endings(self) -> Counter[str]:
        return Counter(progress.state for progress in self.told if progress.state != "running")


def most_at_once(lines: list[dict[str, Any]], where: str) -> dict[str, int]:
    """The most trials that ran at the same time, by node or by device."""
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()
    for line in sorted(lines, key=lambda line: line["at"]):
        if line["what"] != "epoch":
            running[line[where]] += 1 if line["what"] == "begin" else -1
            most[line[where]] = max(most[line[where]], running[line[where]])
    return dict(most)


def test_half_a_gpu_each_is_two_trials_a_node(cluster: Any, dataset: ArrowDataset, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=2, num_gpus=1)
    sweep = Sweep(dataset, tmp_path, seconds=1.0)
    lines = sweep.run(Resources(cluster.address, gpus_per_trial=0.5, max_concurrent=6))
    assert sweep.endings == {"finished": 6}
    assert sorted(most_at_once(lines, "node").values()) == [2, 2]
    begun = [line["at"] for line in lines if line["what"] == "begin"]
    ended = [line["at"] for line in lines if line["what"] == "end"]
    assert sum(begin < min(ended) for begin in begun) == 4  # and only then the fifth
    assert {line["gpus"] for line in lines} == {"0"}  # each node's own first
    assert {line["openmp"] for line in lines} == {"passive"}
    assert not any(line["torch"] for line in lines)  # what a simulated trial says of itself
    # What cannot be, on the same cluster: a line, and no waiting for ever.
    again = Sweep(dataset, tmp_path / "again", seconds=0.1)
    for resources, words in (
        (Resources(cluster.address, gpus_per_trial=3.0), "--gpus-per-trial is 3, but there are 2 GPUs"),
        (Resources(cluster.address, cpus_per_trial=5.0), "--cpus-per-trial is 5, but there are 4 cores"),
        (Resources(cluster.address, gpus_per_trial=2.0), "--gpus-per-trial is 2, but no node has more than 1"),
        (Resources(cluster.address, cpus_per_trial=3.0), "--cpus-per-trial is 3, but no node has more than 2"),
    ):
        with pytest.raises(InputError, match=words):
            again.run(resources)
    assert again.told == []


@pytest.mark.slow
def test_a_node_that_joins_gets_trials(cluster: Any, dataset: ArrowDataset, tmp_path: Path) -> None:
    sweep = Sweep(dataset, tmp_path, seconds=2.0)
    joined: list[Any] = []

    def join(progress: Progress) -> None:
        if not joined:
            joined.append(cluster.add_node(num_cpus=2, num_gpus=1))

    lines = sweep.run(Resources(cluster.address, gpus_per_trial=1.0), join)
    assert sweep.endings == {"finished": 6}
    assert len({line["node"] for line in lines}) == 2
    first = min(lines, key=lambda line: line["at"])["node"]
    assert sum(line["what"] == "begin" and line["node"] != first for line in lines) >= 2
    assert set(most_at_once(lines, "node").values()) == {1}


def test_a_node_that_is_lost_gives_its_trials_to_the_others(
    cluster: Any, dataset: ArrowDataset, tmp_path: Path
) -> None:
    doomed = cluster.add_node(num_cpus=2, num_gpus=1)
    sweep = Sweep(dataset, tmp_path, seconds=2.0)
    lost: list[str] = []

    def lose(progress: Progress) -> None:
        """The second node, as soon as a trial of it has told an epoch."""
        on_it = {line["key"] for line in sweep.lines() if line["node"] == doomed.node_id and line["what"] == "epoch"}
        if not lost and progress.trial.trial_id in on_it and progress.state == "running":
            lost.append(progress.trial.trial_id)
            cluster.remove_node(doomed, allow_graceful=False)

    lines = sweep.run(Resources(cluster.address, gpus_per_trial=1.0), lose)
    assert lost
    assert sweep.endings == {"finished": 6}
    begun = Counter(line["key"] for line in lines if line["what"] == "begin")
    assert begun[lost[0]] == 2  # and no other was disturbed
    assert sum(begun.values()) == 7
    where = [line["node"] for line in lines if line["key"] == lost[0] and line["what"] == "end"]
    assert where == [next(line["node"] for line in lines if line["node"] != doomed.node_id)]


def test_a_node_whose_disk_is_full_gives_its_trials_to_the_others(
    cluster: Any, dataset: ArrowDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (full,) = cluster.worker_nodes
    sweep = Sweep(dataset, tmp_path, seconds=0.3)
    sweep.trial = replace(sweep.trial, full_nodes=full.node_id)
    joined: list[Any] = []

    def join(progress: Progress) -> None:
        if not joined:
            joined.append(cluster.add_node(num_cpus=2, num_gpus=1))

    lines = sweep.run(Resources(cluster.address, gpus_per_trial=0.5), join)
    assert sweep.endings == {"finished": 6}
    begun = Counter(line["key"] for line in lines if line["what"] == "begin")
    moved = {line["key"] for line in lines if line["what"] == "begin" and line["node"] == full.node_id}
    assert moved
    assert {trial_id: begun[trial_id] for trial_id in moved} == dict.fromkeys(moved, 2)  # it is tried there once
    assert {line["node"] for line in lines if line["what"] == "end"} == {joined[0].node_id}
    assert capfd.readouterr().err.count("what ran there goes on elsewhere") == 1


@pytest.mark.slow
@pytest.mark.parametrize("storage_too", [False, True])
def test_a_full_disk_that_leaves_no_other_place_ends_the_sweep(
    cluster: Any, dataset: ArrowDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage_too: bool
) -> None:
    nodes = list(cluster.worker_nodes)
    if storage_too:
        nodes.append(cluster.add_node(num_cpus=2, num_gpus=1))
        monkeypatch.setattr("fgst.sweep.storage.has_room", lambda location: False)
    sweep = Sweep(dataset, tmp_path, seconds=0.3)
    sweep.trial = replace(sweep.trial, full_nodes=" ".join(node.node_id for node in nodes))
    budget = Budget()
    sweep.run(Resources(cluster.address, gpus_per_trial=1.0), budget=budget)
    assert budget.stopped.startswith("a full disk on ")
    assert sweep.endings["interrupted"] >= 1
    assert set(sweep.endings) <= {"interrupted", "finished"}
