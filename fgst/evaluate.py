"""``python -m fgst.evaluate``: see :mod:`fgst.cli.evaluate`."""

from fgst.cli.command import run_command
from fgst.cli.evaluate import main

if __name__ == "__main__":
    run_command(main)
