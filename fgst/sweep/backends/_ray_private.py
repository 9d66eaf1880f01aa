"""The private parts of Ray that fgst depends on, one documented function each.

Ray has no public API for these operations, and a new release may move or rename what they call. Nothing else in fgst
imports ``ray._private``, ``ray._raylet`` or ``ray.core.generated``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fgst.errors import InputError

logger = logging.getLogger(__name__)

# Represents an unlimited number of nodes (a maximum of -1), so that the capacity of a cluster is finite.
UNLIMITED_NODES = 1000


@dataclass(frozen=True)
class NodeGroup:
    """A group of identical nodes that a cluster's autoscaler can start.

    Attributes:
        max_count: the maximum number of nodes in the group.
        resources: the resources of one node, e.g. ``{"CPU": 4, "GPU": 1}``.
    """

    max_count: int
    resources: Mapping[str, int]


def autoscaler_node_groups() -> list[NodeGroup]:
    """Return the node groups of the connected cluster's autoscaler.

    Returns:
        One entry for each group that can contain nodes; an empty list if the cluster does not autoscale, or if this
        version of Ray does not provide the information.
    """
    # lazy: ray takes seconds to import
    from ray._private import state

    try:
        config = state.state.get_cluster_config()
        return [
            NodeGroup(
                max_count=group.max_count if group.max_count >= 0 else UNLIMITED_NODES,
                resources=dict(group.resources),
            )
            for group in (config.node_group_configs if config is not None else ())
            if group.max_count
        ]
    except Exception:  # a private function may change in any way: treat the cluster as one of fixed size
        logger.debug("cannot read the autoscaler's node groups", exc_info=True)
        return []


def publish_node_groups(groups: Sequence[NodeGroup], address: str | None = None) -> None:
    """Store in a cluster which node groups its autoscaler can start, where :func:`autoscaler_node_groups` reads them.

    Args:
        groups: the groups; replaces those published before.
        address: address of the cluster; ``None`` is the cluster that this machine belongs to.
    """
    # lazy: ray takes seconds to import
    from ray import _raylet
    from ray.core.generated import autoscaler_pb2

    config = autoscaler_pb2.ClusterConfig(
        node_group_configs=[
            autoscaler_pb2.NodeGroupConfig(
                name=f"group-{number}", max_count=group.max_count, resources=dict(group.resources)
            )
            for number, group in enumerate(groups)
        ]
    )
    _gcs_client(address).internal_kv_put(
        _raylet.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode(),  # type: ignore[attr-defined]  # compiled, without stubs
        config.SerializeToString(),
        True,  # overwrite
        _raylet.GCS_AUTOSCALER_STATE_NAMESPACE.encode(),  # type: ignore[attr-defined]
    )


def has_dead_daemon() -> bool:
    """Return whether a daemon that this process started for a local cluster has died, without which no trial runs."""
    # lazy: ray takes seconds to import
    from ray._private import ray_constants, worker

    node = worker._global_node
    needed = (ray_constants.PROCESS_TYPE_GCS_SERVER, ray_constants.PROCESS_TYPE_RAYLET)
    return node is not None and any(kind in needed for kind, _ in node.dead_processes())


def drain_node(instance_id: str, seconds: float, address: str | None = None) -> None:
    """Ask Ray to place no more work on a node that is about to be preempted.

    Unlike ``ray drain-node``, this does not join the cluster to look up the node, which would end this process with the
    node if Ray removes it at once.

    Args:
        instance_id: the node's id at its cloud provider, with which Ray was started there.
        seconds: the time until the node is terminated.
        address: address of the cluster; ``None`` is the cluster that this machine belongs to.

    Raises:
        InputError: if the cluster has no such node, or rejects the request.
    """
    # lazy: ray takes seconds to import
    from ray.core.generated import autoscaler_pb2, gcs_pb2

    client = _gcs_client(address)
    node_ids = [
        node_id.hex()
        for node_id, info in client.get_all_node_info().items()
        if info.instance_id == instance_id and info.state == gcs_pb2.GcsNodeInfo.GcsNodeState.ALIVE
    ]
    if not node_ids:
        raise InputError(f"the Ray cluster has no node on instance {instance_id}")
    for node_id in node_ids:
        accepted, reason = client.drain_node(
            node_id,
            autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
            "the cloud provider reclaims this spot instance",
            int(1000 * (time.time() + seconds)),  # the deadline, in milliseconds since the epoch
        )
        if not accepted:
            raise InputError(reason)


def _gcs_client(address: str | None) -> Any:
    """Return a client of a cluster's Global Control Service that does not join the cluster."""
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled, without stubs

    return GcsClient(address=canonicalize_bootstrap_address_or_die(address))
