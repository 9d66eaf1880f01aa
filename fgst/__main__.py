"""``python -m fgst``: the same as the ``fgst`` command, see :mod:`fgst.cli.main`."""

from fgst.cli.main import main

if __name__ == "__main__":
    main()
