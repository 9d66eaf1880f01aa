"""``python -m fgst.train``: see :mod:`fgst.cli.train`."""

from fgst.cli.command import run_command
from fgst.cli.train import main

if __name__ == "__main__":
    run_command(main)
