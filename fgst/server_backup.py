"""``python -m fgst.server_backup``: see :mod:`fgst.ops.server_backup`."""

from fgst.cli.command import run_command
from fgst.ops.server_backup import main

if __name__ == "__main__":
    run_command(main)
