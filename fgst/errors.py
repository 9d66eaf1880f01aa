"""Exceptions that commands turn into one-line messages and exit codes."""

from __future__ import annotations

import errno


class InputError(ValueError):
    """Invalid input from the user.

    The message says what is wrong, where, and how to fix it. Every command prints it as one line on stderr and exits
    with code 2, without a traceback.
    """


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
