"""What a command does with bad input and with Ctrl-C: one clear line, and an exit code that scripts can read."""

from __future__ import annotations

import errno


class InputError(ValueError):
    """Something that the user gave is wrong: the message says what, where, and what to do about it.

    Every command turns it into one line on stderr and exit code 2, without a traceback.
    """


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came of, is a full disk, here or under a database."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "disk is full" in str(error) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


class Preempted(Exception):
    """A training was asked to leave, in the middle of an epoch; all steps so far are in its checkpoint."""


class Interrupted(Exception):
    """Ctrl-C, after everything was saved; the message says how to go on."""
