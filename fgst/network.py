"""Servers' addresses: reachability, and passwords that must not be printed or recorded."""

from __future__ import annotations

import os
import re
import socket
from importlib.util import find_spec
from urllib.parse import urlsplit

from fgst.errors import InputError

TIMEOUT_SECONDS = 10
DATABASE_PORTS = {"postgresql": 5432, "postgres": 5432, "mysql": 3306, "mssql": 1433}
HIDDEN = "***"
"""What stands in place of a password."""

_USER_AND_PASSWORD = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@?#]*:)[^\s/]+@")
_SECRET_PARAMETER = re.compile(
    r"([?&;](?:password|passwd|pwd|sslpassword|secret|secret_key|token|access_token|sig|signature)=)[^\s&;#'\")]+", re.I
)


def redact(text: str) -> str:
    """Replace the passwords of all URLs in a text by ``***``: ``postgresql://user:secret@host/db``, ``…?token=secret``.

    Applied to everything that is printed or recorded: error messages of libraries often contain the URL.
    """
    if "://" not in text:
        return text
    return _SECRET_PARAMETER.sub(rf"\1{HIDDEN}", _USER_AND_PASSWORD.sub(rf"\1{HIDDEN}@", text))


def complete_url(url: str, variable: str) -> str:
    """Return a URL with its password, which is taken from the environment if it was left out by :func:`redact`.

    Args:
        url: a URL; one without ``***`` is returned unchanged.
        variable: the environment variable with the complete URL.

    Raises:
        InputError: if the variable has another value or none.
    """
    if HIDDEN not in url:
        return url
    complete = os.environ.get(variable, "")
    if redact(complete) != url:
        raise InputError(f"{url}: passwords are never recorded; set {variable} to this URL with its password")
    return complete


def driver_url(url: str) -> str:
    """Return the URL of a database with the installed driver: SQLAlchemy's default for PostgreSQL is psycopg 3."""
    scheme, separator, rest = url.partition("://")
    if scheme in ("postgresql", "postgres") and not find_spec("psycopg") and find_spec("psycopg2"):
        return f"postgresql+psycopg2{separator}{rest}"
    return url


def require_server(url: str, what: str) -> None:
    """Check that a server accepts connections at ``scheme://host:port``.

    The check gives up after ten seconds; the servers' own clients would retry for minutes. The URL of a database
    without a host, which means a socket or another default, is not checked.

    Args:
        url: the server's address; web servers and databases have a default port.
        what: the name of the server in the error message.

    Raises:
        InputError: if it accepts no connection.
    """
    try:
        parts = urlsplit(url)
        scheme = parts.scheme.partition("+")[0]  # postgresql+psycopg2
        if scheme in DATABASE_PORTS and not parts.hostname:
            return
        port = parts.port or {"https": 443, "http": 80, **DATABASE_PORTS}.get(scheme)
        if not parts.hostname or port is None:
            raise InputError(f"{what} {redact(url)} has no host and port")
        with socket.create_connection((parts.hostname, port), timeout=TIMEOUT_SECONDS):
            pass
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot connect to {what} {redact(url)} ({error})") from None
