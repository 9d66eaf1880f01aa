"""Operating fgst on servers and clusters: the team's tracking server and its backups, spot instances, autoscaling.

The commands are in :mod:`fgst.cli`: ``python -m fgst.server``, ``python -m fgst.server_backup``, and
``python -m fgst.cli.spot_watcher`` and ``python -m fgst.cli.autoscaling``, which ``cluster.yaml`` starts.
"""

from fgst.ops.autoscaling import parse_resources, read_node_groups
from fgst.ops.server import ServerOptions, run_server
from fgst.ops.server_backup import restore_backup, save_backup
from fgst.ops.spot_watcher import InstanceMetadata, InterruptionNotice, evacuate, wait_for_notice

__all__ = [
    "InstanceMetadata",
    "InterruptionNotice",
    "ServerOptions",
    "evacuate",
    "parse_resources",
    "read_node_groups",
    "restore_backup",
    "run_server",
    "save_backup",
    "wait_for_notice",
]
