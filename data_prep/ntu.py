"""``python -m data_prep.ntu``: see :mod:`fgst.cli.data_ntu`."""

from fgst.cli.data_ntu import main
from fgst.errors import run_command

if __name__ == "__main__":
    run_command(main)
