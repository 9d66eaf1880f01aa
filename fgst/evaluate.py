"""``python -m fgst.evaluate``: see :mod:`fgst.cli.evaluate`."""

from fgst.cli.evaluate import main
from fgst.errors import run_command

if __name__ == "__main__":
    run_command(main)
