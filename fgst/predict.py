"""``python -m fgst.predict``: see :mod:`fgst.cli.predict`."""

from fgst.cli.predict import main
from fgst.errors import run_command

if __name__ == "__main__":
    run_command(main)
