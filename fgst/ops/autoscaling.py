"""Tell a Ray cluster how far it may grow, so that a sweep on a cluster without workers knows what there will be.

  python -m fgst.ops.autoscaling ~/ray_bootstrap_config.yaml       # on a head that `ray up` has made, after `ray start`
  python -m fgst.ops.autoscaling 4 CPU=4 GPU=1                     # up to four nodes of that kind (KubeRay)

Ray's autoscaler keeps this to itself: whoever looks at the cluster sees the nodes that are there, and on a fresh one
there is only the head, which takes no trials.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from fgst.cli.command import CommandParser, run_command
from fgst.errors import InputError


def main(argv: list[str] | None = None) -> None:
    parser = CommandParser("python -m fgst.ops.autoscaling", __doc__)
    parser.add_argument("what", help="the autoscaler's configuration, or a number of nodes")
    parser.add_argument("resources", nargs="*", metavar="KIND=N", help="of each of these nodes")
    parser.add_argument("--address", help="of the cluster (default: the one to which this machine belongs)")
    args = parser.parse_args(argv)
    groups = [(int(args.what), resources(args.resources))] if args.what.isdigit() else node_groups(Path(args.what))
    report(groups, args.address)
    print(json.dumps([{"nodes": count, **kinds} for count, kinds in groups]), flush=True)


def resources(texts: list[str]) -> dict[str, int]:
    """``["CPU=4", "GPU=1"]`` → ``{"CPU": 4, "GPU": 1}``."""
    try:
        found = {name: int(count) for name, count in (text.split("=") for text in texts)}
    except ValueError:
        raise InputError(f"{' '.join(texts)}: write KIND=N, e.g. CPU=4 GPU=1") from None
    if not found:
        raise InputError("say what a node has, e.g. CPU=4 GPU=1")
    return found


def node_groups(path: Path) -> list[tuple[int, dict[str, int]]]:
    """Of each type of worker in a configuration of Ray's autoscaler, how many there may be, and what one has."""
    try:
        config: dict[str, Any] = yaml.safe_load(path.expanduser().read_text())
        return [
            (min(int(kind["max_workers"]), int(config["max_workers"])), dict(kind["resources"]))
            for name, kind in config["available_node_types"].items()
            if name != config["head_node_type"]
        ]
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: is no configuration of an autoscaler ({error!r})") from None


def report(groups: list[tuple[int, dict[str, int]]], address: str | None = None) -> None:
    """Write into the cluster's own memory what groups of nodes it may have; Ray reads it there."""
    from ray import _raylet
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray.core.generated import autoscaler_pb2

    config = autoscaler_pb2.ClusterConfig(
        node_group_configs=[
            autoscaler_pb2.NodeGroupConfig(name=f"group-{number}", max_count=count, resources=kinds)
            for number, (count, kinds) in enumerate(groups)
        ]
    )
    client = _raylet.GcsClient(address=canonicalize_bootstrap_address_or_die(address))  # type: ignore[attr-defined]
    client.internal_kv_put(
        _raylet.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode(),  # type: ignore[attr-defined]
        config.SerializeToString(),
        True,
        _raylet.GCS_AUTOSCALER_STATE_NAMESPACE.encode(),  # type: ignore[attr-defined]
    )


if __name__ == "__main__":
    run_command(main)
