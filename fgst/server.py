"""``python -m fgst.server``: see :mod:`fgst.cli.server`."""

from fgst.cli.command import run_command
from fgst.cli.server import main

if __name__ == "__main__":
    run_command(main)
