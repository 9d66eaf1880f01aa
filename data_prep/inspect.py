"""Entry point of ``python -m data_prep.inspect``; see :mod:`fgst.cli.data_inspect`."""

from fgst.cli.command import run_command
from fgst.cli.data_inspect import main

if __name__ == "__main__":
    run_command(main)
