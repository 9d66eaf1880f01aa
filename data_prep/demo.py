"""Entry point of ``python -m data_prep.demo``; see :mod:`fgst.cli.data_demo`."""

from fgst.cli.command import run_command
from fgst.cli.data_demo import main

if __name__ == "__main__":
    run_command(main)
