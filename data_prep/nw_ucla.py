"""``python -m data_prep.nw_ucla``: see :mod:`fgst.cli.data_nw_ucla`."""

from fgst.cli.data_nw_ucla import main
from fgst.errors import run_command

if __name__ == "__main__":
    run_command(main)
