"""Reachability of servers."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from fgst.errors import InputError

TIMEOUT_SECONDS = 10


def require_server(url: str, what: str) -> None:
    """Check that a server accepts connections at ``scheme://host:port``.

    The check gives up after ten seconds; the servers' own clients would retry for minutes.

    Args:
        url: the server's address; http and https have a default port.
        what: the name of the server in the error message.

    Raises:
        InputError: if it accepts no connection.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
        if not parts.hostname or port is None:
            raise InputError(f"{what} {url} has no host and port")
        with socket.create_connection((parts.hostname, port), timeout=TIMEOUT_SECONDS):
            pass
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot connect to {what} {url} ({error})") from None
