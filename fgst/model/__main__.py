"""``python -m fgst.model``: see :mod:`fgst.cli.model`."""

from fgst.cli.command import run_command
from fgst.cli.model import main

if __name__ == "__main__":
    run_command(main)
