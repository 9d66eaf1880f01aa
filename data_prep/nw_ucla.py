"""Entry point of ``python -m data_prep.nw_ucla``; see :mod:`fgst.cli.data_nw_ucla`."""

from fgst.cli.command import run_command
from fgst.cli.data_nw_ucla import main

if __name__ == "__main__":
    run_command(main)
