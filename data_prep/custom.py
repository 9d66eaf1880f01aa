"""``python -m data_prep.custom``: see :mod:`fgst.cli.data_custom`."""

from fgst.cli.data_custom import main
from fgst.errors import run_command

if __name__ == "__main__":
    run_command(main)
