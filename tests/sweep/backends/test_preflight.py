"""What a cluster's nodes must see is asked before anything is trained. Nodes here are Ray's own, on one machine."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fgst.errors import InputError
from fgst.sweep.backends import preflight
from fgst.sweep.backends.preflight import cluster_capacity, require_reachable
from tests.support import small


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes, and this process connected to the first."""
    import ray
    from ray.cluster_utils import Cluster

    from fgst.sweep.backends.ray_session import ray_session

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        made.add_node(num_cpus=1)
        with ray_session(made.address):
            yield ray
    finally:
        made.shutdown()


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(small.write_small(tmp_path / "data").path)


def refused(*arguments: str) -> str:
    with pytest.raises(InputError) as error:
        require_reachable(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_nodes_of_one_machine_see_all_of_it(cluster: Any, data: str, tmp_path: Path) -> None:
    require_reachable(str(tmp_path / "storage"), data, f"sqlite:///{tmp_path}/mlflow.db")
    require_reachable("s3://bucket/sweeps", "s3://bucket/data", f"sqlite:///{tmp_path}/mlflow.db")
    assert list((tmp_path / "storage").iterdir()) == []


def test_a_server_that_nobody_answers_at_is_refused(cluster: Any, data: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = refused(str(tmp_path / "storage"), data, f"http://127.0.0.1:{port}")
    assert "does not reach the tracking server" in told
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        require_reachable(str(tmp_path / "storage"), data, f"http://127.0.0.1:{server.getsockname()[1]}")


def test_a_file_as_tracking_store_is_refused_with_other_machines(
    cluster: Any, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    told = refused(str(tmp_path / "storage"), data, f"sqlite:///{tmp_path}/mlflow.db")
    assert "is a file of this machine" in told
    assert "--tracking-uri" in told


def test_what_a_node_does_not_see(tmp_path: Path) -> None:
    """The question that is put to it; nodes that see other files are a cluster of real machines' affair."""
    there = tmp_path / "dataset.json"
    there.write_text("{}")
    known = {"--dataset x": (str(there), preflight._digest(there))}
    assert preflight._missing(known, "") == ""
    there.write_text("{ }")  # another data set by the same name
    assert preflight._missing(known, "") == "--dataset x"
    there.unlink()
    assert preflight._missing(known, "") == "--dataset x"


def test_a_cluster_that_grows_has_what_it_may_grow_to(
    cluster: Any, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [(node["CPU"], node.get("GPU", 0)) for node in cluster_capacity()] == [(1, 0), (1, 0)]
    assert not preflight.is_autoscaling()
    # As an autoscaler's configuration says.
    monkeypatch.setattr(preflight, "_groups", lambda: [({"CPU": 8.0, "GPU": 1.0}, 4)])
    assert preflight.is_autoscaling()
    assert [(node["CPU"], node.get("GPU", 0)) for node in cluster_capacity()] == [(8, 1)] * 4 + [(1, 0)]  # and the head
    cluster_of_one: list[Any] = [node for node in cluster.nodes() if node["NodeID"] == _own(cluster)]
    monkeypatch.setattr(cluster, "nodes", lambda: cluster_of_one)
    folder, uri = str(tmp_path / "storage"), f"sqlite:///{tmp_path}/mlflow.db"
    assert "a node that joins later" in refused(folder, data, uri)
    assert "127.0.0.1" in refused(folder, data, "http://127.0.0.1:5000")
    assert "the cluster grows" in refused(str(Path("ray_results").absolute()), data, "http://10.0.0.1:5000")
    require_reachable(folder, data, "http://10.0.0.1:5000")


def _own(ray: Any) -> str:
    return str(ray.get_runtime_context().get_node_id())
