"""Watch for spot interruptions on this EC2 instance, and move its trials to another node before it is terminated.

Examples:
  python -m fgst.cli.spot_watcher         cluster.yaml starts one on each worker

On an interruption notice, Ray drains the node, and each trial writes a checkpoint, exits and restarts elsewhere.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

from filelock import FileLock, Timeout

from fgst.cli.command import CommandParser, run_command
from fgst.errors import InputError
from fgst.ops.spot_watcher import METADATA_URL, InstanceMetadata, evacuate, wait_for_notice, watcher_lock


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser("python -m fgst.cli.spot_watcher", __doc__)
    parser.add_argument("--every", type=float, default=5.0, metavar="S", help="seconds between two checks (default: 5)")
    parser.add_argument(
        "--metadata",
        metavar="URL",
        default=os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or METADATA_URL,
        help=f"the metadata service (default: $AWS_EC2_METADATA_SERVICE_ENDPOINT, else {METADATA_URL})",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.every <= 0:
        raise InputError(f"--every {args.every:g}: must be above 0 seconds")
    metadata = InstanceMetadata(args.metadata)
    try:
        with FileLock(watcher_lock(), timeout=0):
            notice = wait_for_notice(metadata, args.every)
            print(f"{datetime.now(UTC):%F %T} {notice.action} in {notice.seconds:.0f} s", flush=True)
            instance_id = ""
            with suppress(OSError):
                instance_id = metadata.instance_id()
            print(f"sent SIGTERM to {evacuate(notice, instance_id)} trial processes", flush=True)
    except Timeout:  # `ray up` starts another watcher on a node that is already up
        print("another watcher is already running on this machine", flush=True)


if __name__ == "__main__":
    run_command(main)
