"""``python -m fgst.server``: see :mod:`fgst.ops.server`."""

from fgst.cli.command import run_command
from fgst.ops.server import main

if __name__ == "__main__":
    run_command(main)
