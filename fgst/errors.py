"""Exceptions that commands turn into one-line messages and exit codes."""

from __future__ import annotations

import errno


class InputError(ValueError):
    """Invalid input from the user.

    The message says what is wrong, where, and how to fix it. Every command prints it as one line on stderr and exits
    with code 2, without a traceback.
    """


class DeletedInMlflow(InputError):
    """A run or its experiment was deleted in MLflow; the message says which, and how to restore it."""


class StoreUnavailable(Exception):
    """A server or database did not respond within the time limit; the message says for how long and why."""


class DivergedError(RuntimeError):
    """A training whose loss or gradient is no longer finite.

    The message names the epoch and the settings that help. It is printed as one line, with exit code 1; in a sweep it
    is the reason of the failed trial.
    """


class Preempted(Exception):
    """The training stopped on request, within an epoch; its checkpoint includes every step so far."""


class Interrupted(Exception):
    """Ctrl-C, after everything was saved; the message names the command that resumes the work."""


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error or one of its causes means that a disk is full, including errors of databases."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "disk is full" in str(error) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


# Messages of SQLite and PostgreSQL, which reach us in exceptions of several libraries.
_UNAVAILABLE_DATABASE = (
    "database is locked",
    "database table is locked",
    "database schema is locked",
    "connection refused",
    "could not connect to server",
    "connection to server",
    "server closed the connection",
    "the connection is closed",
    "connection has been closed unexpectedly",
    "terminating connection",
    "the database system is",  # starting up, shutting down, in recovery mode
)


def is_database_unavailable(error: BaseException | None) -> bool:
    """Return whether an error or one of its causes means that a database is locked or unreachable."""
    while error is not None:
        # Rejected credentials arrive in the same way as a refused connection, and waiting does not help.
        message = str(error).lower()
        if "authentication failed" in message or "does not exist" in message:
            return False
        if any(text in message for text in _UNAVAILABLE_DATABASE):
            return True
        error = error.__cause__ or error.__context__
    return False
