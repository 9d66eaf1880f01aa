"""Entry point of ``python -m data_prep.ntu``; see :mod:`fgst.cli.data_ntu`."""

from fgst.cli.command import run_command
from fgst.cli.data_ntu import main

if __name__ == "__main__":
    run_command(main)
