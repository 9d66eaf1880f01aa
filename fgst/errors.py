"""What a command does with bad input and with Ctrl-C: one clear line, and an exit code that scripts can read."""

from __future__ import annotations

import argparse
import errno
import os
import socket
import sys
from collections.abc import Callable
from typing import NoReturn
from urllib.parse import urlsplit


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


class CommandParser(argparse.ArgumentParser):
    """A parser whose help is the module's docstring, and whose complaints are one line like all others."""

    def __init__(self, prog: str, doc: str | None) -> None:
        super().__init__(
            prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def run_command(main: Callable[[], None]) -> None:
    """Run a command's ``main`` and exit: 0 done, 2 bad input, 130 interrupted.

    Anything else that goes wrong is a fault of ours and keeps its traceback.
    """
    try:
        main()
        sys.stdout.flush()  # here, not at exit: a reader that has gone is noticed while it can be handled
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, Interrupted) as interruption:
        print(f"interrupted. {interruption}".strip(), file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (`| head`) has gone. Point stdout elsewhere, or the flush at exit complains again.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        sys.exit(141)
