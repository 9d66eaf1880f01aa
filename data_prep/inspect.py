"""``python -m data_prep.inspect``: see :mod:`fgst.cli.data_inspect`."""

from fgst.cli.data_inspect import main
from fgst.errors import run_command

if __name__ == "__main__":
    run_command(main)
