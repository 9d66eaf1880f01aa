"""``python -m fgst.explain``: see :mod:`fgst.cli.explain`."""

from fgst.cli.explain import main
from fgst.errors import run_command

if __name__ == "__main__":
    run_command(main)
