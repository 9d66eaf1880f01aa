"""``python -m fgst.server_backup``: see :mod:`fgst.cli.server_backup`."""

from fgst.cli.command import run_command
from fgst.cli.server_backup import main

if __name__ == "__main__":
    run_command(main)
