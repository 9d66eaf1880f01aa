"""The maximum size of an autoscaling cluster, read from the autoscaler's configuration.

Ray's autoscaler does not publish how large a cluster can become: other processes see only the running nodes, and on a
new cluster the only one is the head, which runs no trials. Publishing the node groups
(:func:`fgst.sweep.backends._ray_private.publish_node_groups`) allows a sweep to plan for the cluster's full size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fgst.errors import InputError
from fgst.sweep.backends._ray_private import NodeGroup


def parse_resources(texts: Sequence[str]) -> dict[str, int]:
    """Parse the resources of a node: ``["CPU=4", "GPU=1"]`` → ``{"CPU": 4, "GPU": 1}``.

    Raises:
        InputError: if there are none, or one is malformed.
    """
    try:
        resources = {kind: int(amount) for kind, amount in (text.split("=") for text in texts)}
    except ValueError:
        raise InputError(f"{' '.join(texts)}: expected KIND=N, e.g. CPU=4 GPU=1") from None
    if not resources:
        raise InputError("give the resources of a node, e.g. CPU=4 GPU=1")
    return resources


def read_node_groups(path: Path) -> list[NodeGroup]:
    """Read the worker types of a configuration of Ray's autoscaler, such as ``~/ray_bootstrap_config.yaml``.

    Raises:
        InputError: if the file cannot be read, or is not such a configuration.
    """
    try:
        config: dict[str, Any] = yaml.safe_load(path.expanduser().read_text())
        return [
            NodeGroup(min(int(node_type["max_workers"]), int(config["max_workers"])), dict(node_type["resources"]))
            for name, node_type in config["available_node_types"].items()
            if name != config["head_node_type"]
        ]
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not an autoscaler configuration ({error!r})") from None
