"""Print a TCP port of this machine that is free: the given one, or the first from 5000 on.

Example:
  python tools/free_port.py 8080
"""

from __future__ import annotations

import socket
import sys

FIRST, COUNT = 5000, 50


def is_free(port: int) -> bool:
    """Whether a server can listen on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
    return True


def main(arguments: list[str]) -> None:
    """Print the port, or exit with a message."""
    if arguments:
        if not arguments[0].isdecimal() or not is_free(int(arguments[0])):
            sys.exit(f"error: cannot listen on port {arguments[0]}; choose another with PORT=…")
        print(arguments[0])
        return
    port = next((port for port in range(FIRST, FIRST + COUNT) if is_free(port)), None)
    if port is None:
        sys.exit(f"error: ports {FIRST} to {FIRST + COUNT - 1} are taken; choose another with PORT=…")
    if port != FIRST:
        print(f"port {FIRST} is taken; using {port}", file=sys.stderr)
    print(port)


if __name__ == "__main__":
    main(sys.argv[1:])
