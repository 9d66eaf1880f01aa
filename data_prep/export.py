"""Entry point of ``python -m data_prep.export``; see :mod:`fgst.cli.data_export`."""

from fgst.cli.command import run_command
from fgst.cli.data_export import main

if __name__ == "__main__":
    run_command(main)
