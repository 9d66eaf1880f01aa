"""``python -m data_prep.demo``: see :mod:`fgst.cli.data_demo`."""

from fgst.cli.data_demo import main
from fgst.errors import run_command

if __name__ == "__main__":
    run_command(main)
