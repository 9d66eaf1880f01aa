"""Entry point of ``python -m data_prep.custom``; see :mod:`fgst.cli.data_custom`."""

from fgst.cli.command import run_command
from fgst.cli.data_custom import main

if __name__ == "__main__":
    run_command(main)
