"""The frame of every command: argument parsing, error messages and exit codes."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from fgst.errors import InputError, Interrupted


class CommandParser(argparse.ArgumentParser):
    """A parser whose help is the module's docstring, and whose complaints are one line like all others."""

    def __init__(self, prog: str, doc: str | None) -> None:
        super().__init__(
            prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def format_command(words: Sequence[str]) -> str:
    """Join a command's words into a line that can be pasted into a shell."""
    return shlex.join(words)


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
