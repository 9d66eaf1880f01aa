"""``python -m fgst.predict``: see :mod:`fgst.cli.predict`."""

from fgst.cli.command import run_command
from fgst.cli.predict import main

if __name__ == "__main__":
    run_command(main)
