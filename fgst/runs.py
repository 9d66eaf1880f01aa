"""``python -m fgst.runs``: see :mod:`fgst.cli.runs`."""

from fgst.cli.command import run_command
from fgst.cli.runs import main

if __name__ == "__main__":
    run_command(main)
