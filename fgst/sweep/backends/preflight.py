"""Checks of a cluster before a sweep starts: its capacity, and whether its nodes can reach storage, data and server.

Some settings work on one machine and fail on a cluster: a local folder, a database in a file, a server on 127.0.0.1.
:func:`require_reachable` rejects them before any training. Nodes that join later are checked by the trials that run
there.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fgst.data.cache import DESCRIPTION, is_remote
from fgst.errors import InputError
from fgst.network import require_server
from fgst.sweep.backends._ray_private import autoscaler_node_groups

NODE_TIMEOUT = 60.0  # seconds to wait for a node's answer; slower nodes are assumed to reach everything
USE_SERVER = "start a tracking server that all nodes can reach (mlflow/README.md) and pass it with --tracking-uri"
USE_SHARED_STORAGE = "use a folder that all nodes share, or a URI such as s3://bucket/"


@dataclass(frozen=True)
class RequiredFile:
    """A file that every node must be able to read.

    Attributes:
        option: the option that it comes from, with its value, e.g. "--dataset datasets/ntu-60".
        path: the absolute path.
        digest: what :func:`file_digest` returns for the file on this machine.
    """

    option: str
    path: str
    digest: str


def cluster_capacity() -> list[dict[str, float]]:
    """Return the resources of each node of the connected cluster at its maximum size.

    Returns:
        ``{"CPU": cores, "GPU": GPUs, …}`` for each node. On an autoscaling cluster these are the nodes of its maximum
        size, unless more nodes are alive now.
    """
    alive = alive_nodes()
    possible = [
        {kind: float(amount) for kind, amount in group.resources.items()}
        for group in autoscaler_node_groups()
        for _ in range(group.max_count)
    ]
    possible += [node for node in alive if "node:__internal_head__" in node]  # a cluster always has its head
    return max(alive, possible, key=lambda nodes: sum(node.get("CPU", 0.0) for node in nodes))


def alive_nodes(excluding: Collection[str] = ()) -> list[dict[str, float]]:
    """Return the resources of each node that is alive, except those with the given node ids."""
    # lazy: ray takes seconds to import
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"] and node["NodeID"] not in excluding]


def is_autoscaling() -> bool:
    """Return whether the connected cluster starts nodes on demand."""
    return bool(autoscaler_node_groups())


def require_reachable(storage: str, dataset: str, tracking_uri: str) -> None:
    """Check that all nodes of the connected cluster can reach the storage, the data set and the tracking store.

    Args:
        storage: folder or URI for checkpoints.
        dataset: folder or URI of the data set.
        tracking_uri: URI of the tracking store.

    Raises:
        InputError: if a node cannot; the message names the node, the option and the remedy.
    """
    # lazy: ray takes seconds to import
    import ray

    this_host = socket.gethostname()
    this_node = ray.get_runtime_context().get_node_id()
    others = {
        node["NodeID"]: str(node["NodeManagerHostname"])
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != this_node
    }
    if not others and not is_autoscaling():
        return
    other_hosts = sorted({host for host in others.values() if host != this_host})
    if tracking_uri.startswith("sqlite:") and (other_hosts or not others):
        remote = f"node {other_hosts[0]}" if other_hosts else "a node that joins later"
        raise InputError(
            f"the tracking store {tracking_uri} is a file on this machine; {remote} cannot write to it: {USE_SERVER}"
        )
    if not others:
        _require_no_local_settings(storage, tracking_uri)
        return
    server = tracking_uri if urlsplit(tracking_uri).scheme in ("http", "https") else ""
    files = [] if is_remote(dataset) else [_dataset_file(dataset)]
    if is_remote(storage):
        _check_nodes(others, files, server)
        return
    marker = _write_marker(storage)
    try:
        _check_nodes(others, [RequiredFile(f"--storage {storage}", str(marker), file_digest(marker)), *files], server)
    finally:
        marker.unlink(missing_ok=True)


def find_unreachable(files: Sequence[RequiredFile], server: str) -> str:
    """Return the first of the files and the server that this machine cannot reach; runs on each node.

    Args:
        files: files that must exist here with the same content.
        server: URL of the tracking server; "" if there is none.

    Returns:
        The ``option`` of a file, or ``server``; "" if everything can be reached.
    """
    for file in files:
        if file_digest(Path(file.path)) != file.digest:
            return file.option
    if server:
        try:
            require_server(server, "the tracking server")
        except InputError:
            return server
    return ""


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex; "" if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _require_no_local_settings(storage: str, tracking_uri: str) -> None:
    """Reject settings that cannot work on any other node, while there is no other node to ask."""
    if storage == str(Path("ray_results").absolute()):
        raise InputError(
            f"--storage {storage} is a folder on this machine, but the cluster starts nodes on demand: "
            f"{USE_SHARED_STORAGE}"
        )
    host = urlsplit(tracking_uri).hostname or ""
    if host == "localhost" or _is_loopback(host):
        raise InputError(f"other nodes cannot reach the tracking server {tracking_uri}: {USE_SERVER}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _dataset_file(dataset: str) -> RequiredFile:
    description = Path(dataset).absolute() / DESCRIPTION
    return RequiredFile(f"--dataset {dataset}", str(description), file_digest(description))


def _write_marker(storage: str) -> Path:
    """Write a small file into the storage folder, which the other nodes must then be able to read."""
    marker = Path(storage) / f".seen-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_bytes(marker.name.encode())
    except OSError as error:
        raise InputError(f"--storage {storage}: cannot be written ({error.strerror})") from None
    return marker


def _check_nodes(hosts: Mapping[str, str], files: Sequence[RequiredFile], server: str) -> None:
    """Run :func:`find_unreachable` on each node.

    Args:
        hosts: host names by node id.

    Raises:
        InputError: if a node cannot reach something.
    """
    for node_id, unreachable in _ask_nodes(hosts, files, server).items():
        if unreachable and unreachable == server:
            raise InputError(f"node {hosts[node_id]} cannot reach the tracking server {server}: {USE_SERVER}")
        if unreachable:
            raise InputError(f"{unreachable} does not exist on node {hosts[node_id]}: {USE_SHARED_STORAGE}")


def _ask_nodes(hosts: Mapping[str, str], files: Sequence[RequiredFile], server: str) -> dict[str, str]:
    """Return what each node cannot reach, by node id; nodes that do not answer in time are missing."""
    # lazy: ray takes seconds to import
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(find_unreachable)
    nodes = {
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(
            list(files), server
        ): node_id
        for node_id in hosts
    }
    done, _ = ray.wait(list(nodes), num_returns=len(nodes), timeout=NODE_TIMEOUT)
    answers = {}
    for reference in done:
        try:
            answers[nodes[reference]] = str(ray.get(reference))
        except ray.exceptions.RayError as error:
            if "No module named" in str(error):
                raise InputError(
                    f"fgst is not installed on node {hosts[nodes[reference]]}: {_last_line(error)}"
                ) from None
    return answers


def _last_line(error: Any) -> str:
    return str(error).strip().splitlines()[-1]
