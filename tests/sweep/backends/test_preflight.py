"""Checks before a sweep on a cluster. The nodes are real Ray nodes, all on this machine."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fgst.errors import InputError
from fgst.sweep.backends._ray_private import NodeGroup, autoscaler_node_groups, publish_node_groups
from fgst.sweep.backends.preflight import (
    RequiredFile,
    alive_nodes,
    cluster_capacity,
    file_digest,
    find_unreachable,
    is_autoscaling,
    require_reachable,
)
from fgst.sweep.backends.ray_session import ray_session
from tests.support import small


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Address of a cluster of two nodes; this process is connected to the first."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        with ray_session(cluster.address):
            yield str(cluster.address)
    finally:
        cluster.shutdown()


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(small.write_small(tmp_path / "data").path)


def rejection(storage: str, dataset: str, tracking_uri: str) -> str:
    """The message with which these settings are rejected."""
    with pytest.raises(InputError) as error:
        require_reachable(storage, dataset, tracking_uri)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.usefixtures("address")
def test_local_settings_are_accepted_on_one_machine(data: str, tmp_path: Path) -> None:
    require_reachable(str(tmp_path / "storage"), data, f"sqlite:///{tmp_path}/mlflow.db")
    require_reachable("s3://bucket/sweeps", "s3://bucket/data", f"sqlite:///{tmp_path}/mlflow.db")
    assert list((tmp_path / "storage").iterdir()) == []


@pytest.mark.usefixtures("address")
def test_unreachable_tracking_server_is_rejected(data: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    message = rejection(str(tmp_path / "storage"), data, f"http://127.0.0.1:{port}")
    assert "cannot reach the tracking server" in message
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        require_reachable(str(tmp_path / "storage"), data, f"http://127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.usefixtures("address")
def test_sqlite_store_is_rejected_with_other_machines(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    message = rejection(str(tmp_path / "storage"), data, f"sqlite:///{tmp_path}/mlflow.db")
    assert "is a file on this machine" in message
    assert "--tracking-uri" in message


def test_missing_and_different_files_are_unreachable(tmp_path: Path) -> None:
    """The check that runs on each node; all nodes of the cluster above see the same files."""
    file = tmp_path / "dataset.json"
    file.write_text("{}")
    required = [RequiredFile("--dataset x", str(file), file_digest(file))]
    assert find_unreachable(required, "") == ""
    file.write_text("{ }")  # another data set under the same name
    assert find_unreachable(required, "") == "--dataset x"
    file.unlink()
    assert find_unreachable(required, "") == "--dataset x"


def test_autoscaling_cluster_counts_nodes_that_can_be_added(
    address: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sizes() -> list[tuple[float, float]]:
        return [(node["CPU"], node.get("GPU", 0.0)) for node in cluster_capacity()]

    import ray

    assert sizes() == [(1, 0), (1, 0)]
    assert not is_autoscaling()
    assert len(alive_nodes(excluding={ray.get_runtime_context().get_node_id()})) == 1
    groups = [NodeGroup(4, {"CPU": 8, "GPU": 1})]
    publish_node_groups(groups, address)
    try:
        assert autoscaler_node_groups() == groups
        assert is_autoscaling()
        assert sizes() == [(8, 1)] * 4 + [(1, 0)]  # and the head
        # As on a new cluster, where only the head is up.
        head: list[Any] = [n for n in ray.nodes() if n["NodeID"] == ray.get_runtime_context().get_node_id()]
        monkeypatch.setattr(ray, "nodes", lambda: head)
        folder, uri = str(tmp_path / "storage"), f"sqlite:///{tmp_path}/mlflow.db"
        assert "a node that joins later" in rejection(folder, data, uri)
        assert "127.0.0.1" in rejection(folder, data, "http://127.0.0.1:5000")
        message = rejection(str(Path("ray_results").absolute()), data, "http://10.0.0.1:5000")
        assert "the cluster starts nodes on demand" in message
        require_reachable(folder, data, "http://10.0.0.1:5000")
    finally:
        publish_node_groups([], address)
    assert not is_autoscaling()
