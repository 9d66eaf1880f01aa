"""``python -m fgst.model``: see :mod:`fgst.cli.model`."""

from fgst.cli.model import main
from fgst.errors import run_command

if __name__ == "__main__":
    run_command(main)
