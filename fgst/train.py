"""``python -m fgst.train``: see :mod:`fgst.cli.train`."""

from fgst.cli.train import main
from fgst.errors import run_command

if __name__ == "__main__":
    run_command(main)
