"""What the nodes of a cluster have, and whether they see what a sweep needs of them: storage, data, tracking server.

What is wrong on a cluster and right on one machine (a folder of this machine, a database in a file, a server on
127.0.0.1) is refused before anything is trained. A node that joins later is asked by the trials that it is given.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import socket
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fgst.data.cache import DESCRIPTION, is_remote
from fgst.errors import InputError
from fgst.network import require_server

PATIENCE = 60.0  # seconds that a node may take to answer; one that takes longer is believed
SERVER = "start a tracking server that all nodes reach (mlflow/README.md) and name it by --tracking-uri"
FOLDER = "name a folder that all nodes share, or a URI such as s3://bucket/"


def cluster_capacity() -> list[dict[str, float]]:
    """What each node of the cluster has (``{"CPU": cores, "GPU": GPUs, …}``), were it grown as far as it may."""
    now = alive_nodes(besides=())
    possible = [dict(resources) for resources, count in _groups() for _ in range(count)]
    possible += [node for node in now if "node:__internal_head__" in node]  # of which there is always one
    return max(now, possible, key=lambda nodes: sum(node.get("CPU", 0.0) for node in nodes))


def alive_nodes(besides: Collection[str]) -> list[dict[str, float]]:
    """What each node has that is up now, but for those with these ids."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"] and node["NodeID"] not in besides]


def is_autoscaling() -> bool:
    """Whether the cluster starts nodes by itself when there is work for them."""
    return bool(_groups())


def require_reachable(storage: str, dataset: str, tracking_uri: str) -> None:
    """Ask all nodes of the cluster that this process is connected to.

    Args:
        storage, dataset: a folder or a URI each.
        tracking_uri: of the tracking store.

    Raises:
        InputError: naming the node and what it does not see.
    """
    import ray

    here = socket.gethostname()
    own = ray.get_runtime_context().get_node_id()
    others = {n["NodeID"]: str(n["NodeManagerHostname"]) for n in ray.nodes() if n["Alive"] and n["NodeID"] != own}
    if not others and not is_autoscaling():
        return
    elsewhere = sorted({name for name in others.values() if name != here})
    who = f"node {elsewhere[0]}" if elsewhere else "a node that joins later"
    if tracking_uri.startswith("sqlite:") and (elsewhere or not others):
        raise InputError(
            f"the tracking store {tracking_uri} is a file of this machine, and {who} writes there: {SERVER}"
        )
    if not others:
        _require_elsewhere(storage, tracking_uri)
        return
    files: dict[str, tuple[str, str]] = {}
    marker = None
    if not is_remote(storage):
        marker = Path(storage) / f".seen-{os.getpid()}-{os.urandom(4).hex()}"
        try:
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.write_bytes(marker.name.encode())
        except OSError as error:
            raise InputError(f"--storage {storage}: cannot be written ({error.strerror})") from None
        files[f"--storage {storage}"] = str(marker), _digest(marker)
    if not is_remote(dataset):
        description = Path(dataset).absolute() / DESCRIPTION
        files[f"--dataset {dataset}"] = str(description), _digest(description)
    server = tracking_uri if urlsplit(tracking_uri).scheme in ("http", "https") else ""
    try:
        for node, what in _ask(others, files, server).items():
            if what and what == server:
                raise InputError(f"node {others[node]} does not reach the tracking server {server}: {SERVER}")
            if what:
                raise InputError(f"{what}: is not there on node {others[node]}; {FOLDER}")
    finally:
        if marker is not None:
            marker.unlink(missing_ok=True)


def _require_elsewhere(storage: str, tracking_uri: str) -> None:
    """There is nobody to ask yet: refuse what cannot be right on a node that is not there yet."""
    if storage == str(Path("ray_results").absolute()):
        raise InputError(f"--storage {storage}: is a folder of this machine, and the cluster grows; {FOLDER}")
    host = urlsplit(tracking_uri).hostname or ""
    if host == "localhost" or _is_loopback(host):
        raise InputError(f"no node but this one reaches the tracking server {tracking_uri}: {SERVER}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _ask(nodes: Mapping[str, str], files: Mapping[str, tuple[str, str]], server: str) -> dict[str, str]:
    """What each node does not see, by its id; "" if it sees everything."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(_missing)
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            dict(files), server
        ): node
        for node in nodes
    }
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE)
    answers = {}
    for reference in done:
        try:
            answers[asked[reference]] = str(ray.get(reference))
        except ray.exceptions.RayError as error:
            if "No module named" in str(error):
                raise InputError(f"node {nodes[asked[reference]]} has no fgst: {_last_line(error)}") from None
    return answers


def _missing(files: Mapping[str, tuple[str, str]], server: str) -> str:
    """Run on a node: the first thing that it does not see."""
    for what, (path, digest) in files.items():
        if _digest(Path(path)) != digest:
            return what
    if server:
        try:
            require_server(server, "")
        except InputError:
            return server
    return ""


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _last_line(error: Any) -> str:
    return str(error).strip().splitlines()[-1]


def _groups() -> list[tuple[dict[str, float], int]]:
    """The kinds of node that the cluster starts by itself, and how many of each; empty for one that does not grow."""
    from ray._private import state  # Ray's own libraries ask this way; there is no public one

    try:
        config = state.state.get_cluster_config()
        groups = config.node_group_configs if config is not None else ()
        # -1 is as many as one likes; nobody's sweep needs more than this.
        return [
            ({k: float(v) for k, v in g.resources.items()}, g.max_count if g.max_count >= 0 else 1000)
            for g in groups
            if g.max_count
        ]
    except Exception:  # a Ray that has it elsewhere: then a cluster is what it is now
        return []
