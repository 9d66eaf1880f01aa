"""``python -m fgst.runs``: see :mod:`fgst.cli.runs`."""

from fgst.cli.runs import main
from fgst.errors import run_command

if __name__ == "__main__":
    run_command(main)
