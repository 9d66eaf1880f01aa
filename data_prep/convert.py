"""Entry point of ``python -m data_prep.convert``; see :mod:`fgst.cli.data_convert`."""

from fgst.cli.command import run_command
from fgst.cli.data_convert import main

if __name__ == "__main__":
    run_command(main)
