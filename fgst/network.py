"""Whether a server can be reached."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from fgst.errors import InputError


def require_server(url: str, what: str) -> None:
    """Look, for 10 s at most, whether somebody listens at ``scheme://host:port``; clients themselves try for minutes.

    Raises:
        InputError: if nobody does.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
        if not parts.hostname or port is None:
            raise InputError(f"{what} {url} has no host and port")
        with socket.create_connection((parts.hostname, port), timeout=10):
            pass
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"nobody answers at {what} {url} ({error})") from None
