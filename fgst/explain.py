"""``python -m fgst.explain``: see :mod:`fgst.cli.explain`."""

from fgst.cli.command import run_command
from fgst.cli.explain import main

if __name__ == "__main__":
    run_command(main)
