"""Publish the maximum size of a Ray cluster, so that sweeps plan for the nodes that the autoscaler can add.

Examples:
  python -m fgst.cli.autoscaling ~/ray_bootstrap_config.yaml      on a head created by `ray up`, after `ray start`
  python -m fgst.cli.autoscaling 4 CPU=4 GPU=1                    up to four nodes with these resources (KubeRay)

Otherwise, a sweep on a new cluster can see only the head, which runs no trials.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from fgst.cli.command import CommandParser, run_command
from fgst.ops.autoscaling import parse_resources, read_node_groups
from fgst.sweep.backends._ray_private import NodeGroup, publish_node_groups


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser("python -m fgst.cli.autoscaling", __doc__)
    parser.add_argument(
        "nodes", metavar="FILE|N", help="the autoscaler's configuration, or the maximum number of worker nodes"
    )
    parser.add_argument("resources", nargs="*", metavar="KIND=N", help="with N: the resources of each worker node")
    parser.add_argument("--address", help="address of the cluster (default: the one that this machine belongs to)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.nodes.isdigit():
        groups = [NodeGroup(int(args.nodes), parse_resources(args.resources))]
    else:
        groups = read_node_groups(Path(args.nodes))
    publish_node_groups(groups, args.address)
    print(json.dumps([{"nodes": group.max_count, **group.resources} for group in groups]), flush=True)


if __name__ == "__main__":
    run_command(main)
