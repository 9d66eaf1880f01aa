"""Functions for all commands: parsing arguments, output streams, log messages, error messages and exit codes."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import errno
import io
import logging
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, NoReturn

from fgst import termination
from fgst.errors import DivergedError, InputError, Interrupted, StoreUnavailable
from fgst.network import redact

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

# Exit codes besides 0. The last two are what shells report for SIGINT and SIGPIPE.
FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130
CLOSED_PIPE = 141

# Errors of files that the user can repair: missing permission, a read-only file system, a file in place of a folder.
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)

_SUBSTITUTES = {
    "…": "...", "–": "-", "—": "-", "−": "-", "·": "-", "•": "*", "×": "x", "±": "+/-", "≈": "~", "≤": "<=", "≥": ">=",
    "→": "->", "←": "<-", "↔": "<->", "‘": "'", "’": "'", "“": '"', "”": '"', "§": "section ",
    "\N{NO-BREAK SPACE}": " ", "█": "#", "━": "-", "─": "-", "│": "|", "┃": "|",
}  # fmt: skip
_invoked_as: ContextVar[str | None] = ContextVar("invoked_as", default=None)


class CommandParser(argparse.ArgumentParser):
    """An argument parser that prints a docstring as its help and reports errors as :class:`InputError`.

    Args:
        prog: the command as the documentation writes it, e.g. ``python -m fgst.train``.
        doc: description with examples, printed unwrapped; usually the module's docstring.
    """

    def __init__(self, prog: str, doc: str | None) -> None:
        invoked_as = _invoked_as.get()
        if invoked_as is not None and prog.startswith("python "):  # sub-parsers inherit their parent's name
            prog = invoked_as
        super().__init__(
            prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print the help; unlike in the base class, an output that cannot be written raises an OSError."""
        (file or sys.stdout).write(self.format_help())

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


@contextlib.contextmanager
def invoked_as(prog: str) -> Iterator[None]:
    """Make parsers that are created in this context use the name ``prog`` in usage and error messages."""
    token = _invoked_as.set(prog)
    try:
        yield
    finally:
        _invoked_as.reset(token)


def format_command(words: Iterable[object]) -> str:
    """Join the words of a command into one line that can be pasted into a shell.

    Args:
        words: program and arguments; each is quoted where it contains spaces or other special characters. Passwords in
            URLs are left out.
    """
    return redact(shlex.join(map(str, words)))


def run_command(main: Callable[[], None]) -> None:
    """Run a command's ``main`` and turn its outcome into an exit code.

    Returns normally if ``main`` returns (exit code 0). Otherwise exits with

    * 1 and one line if the output cannot be written, e.g. because the disk it is redirected to is full, or for a
      :class:`StoreUnavailable` or a :class:`DivergedError`;
    * 2 and one line for an :class:`InputError`, or for a file that cannot be used, e.g. without permission;
    * 130 for Ctrl-C, SIGTERM, SIGHUP (see :mod:`fgst.termination`) or :class:`Interrupted`;
    * 141, silently, if the reader of the output has closed the pipe (``| head``);
    * the code of a ``SystemExit`` that ``main`` raises.

    Any other exception is a bug and keeps its traceback, without the passwords in URLs.
    """
    configure_streams()
    configure_logging()
    sys.excepthook = lambda *error: _report("".join(traceback.format_exception(*error)).rstrip())
    configure_warnings()
    with termination.as_interrupt():
        code, exits = _run(main)
    if termination.cleanup_at_exit_is_unsafe():
        os._exit(code if isinstance(code, int) else FAILED)
    if exits or code:
        sys.exit(code)


def _run(main: Callable[[], None]) -> tuple[str | int | None, bool]:
    """Run ``main`` and report its failure; returns the exit code, and whether ``main`` exited."""
    code: str | int | None = 0
    exits = False
    try:
        main()
    except InputError as error:
        code = BAD_INPUT
        _report(f"error: {' '.join(str(error).split())}")
    except (StoreUnavailable, DivergedError) as error:
        code = FAILED
        _report(f"error: {' '.join(str(error).split())}")
    except (KeyboardInterrupt, Interrupted) as interruption:
        code = INTERRUPTED
        _report(f"interrupted. {interruption}".strip())
    except SystemExit as request:
        exits, code = True, request.code
        if isinstance(request.__context__, BrokenPipeError):  # Rich turns a closed pipe into SystemExit(1)
            code = CLOSED_PIPE
    except BrokenPipeError:
        code = CLOSED_PIPE
    except OSError as error:
        if not is_output_failure(error):
            if error.errno not in _UNUSABLE or not error.filename:
                raise
            code = BAD_INPUT
            _report(f"error: {os.fsdecode(error.filename)}: cannot be used ({error.strerror})")
    return _finish_output(code), exits


def _finish_output(code: str | int | None) -> str | int | None:
    """Flush standard output while errors can still be handled; return the exit code.

    Args:
        code: the exit code so far. An error that was reported before keeps its code.
    """
    if sys.stdout is None:  # the process was started with a closed standard output
        return code
    failure = getattr(sys.stdout, "failure", None)
    try:
        sys.stdout.flush()
    except OSError as error:
        failure = error
    if code == CLOSED_PIPE or failure is not None:
        _discard_output()
    if isinstance(failure, BrokenPipeError):
        return code or CLOSED_PIPE
    if failure is not None and not code:
        _report(f"error: cannot write to standard output ({failure.strerror})")
        return FAILED
    return code


def _discard_output() -> None:
    """Send buffered and further output to the null device, so that the interpreter's flush at exit succeeds."""
    null = open(os.devnull, "w")  # noqa: SIM115  (stays open until the process exits)
    if isinstance(sys.stdout, _Output):
        with contextlib.suppress(OSError):
            os.dup2(null.fileno(), sys.stdout.fileno())
    sys.stdout = null


def _report(line: str) -> None:
    with contextlib.suppress(OSError):  # standard error may be the same closed pipe
        print(redact(line), file=sys.stderr)


# Output streams


class _Output(io.TextIOWrapper):
    """Standard output that stores its last error.

    This distinguishes a full disk to which the output is redirected from a full disk on which a command writes files.
    """

    failure: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self.failure = error
            raise


def is_output_failure(error: BaseException) -> bool:
    """Return whether writing to standard output raised this exception."""
    return error is getattr(sys.stdout, "failure", None)


def configure_streams() -> None:
    """Let standard output and error replace characters that their encoding lacks, e.g. ``±`` with ``+/-`` in ASCII.

    By default Python raises a UnicodeEncodeError, which would end a sweep at its first table.
    """
    codecs.register_error("fgst.substitute", _substitute)
    if sys.stdout is sys.__stdout__ and type(sys.stdout) is io.TextIOWrapper:
        old = sys.stdout
        encoding, line_buffering, write_through = old.encoding, old.line_buffering, old.write_through
        new = _Output(old.detach(), encoding, line_buffering=line_buffering, write_through=write_through)
        sys.stdout = sys.__stdout__ = new  # type: ignore[misc]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "fgst.substitute":
            stream.reconfigure(errors="fgst.substitute")


def _substitute(error: UnicodeError) -> tuple[str | bytes, int]:
    """Codec error handler that replaces one character with an ASCII substitute, or with ``?``.

    Bytes of a file name that could not be decoded (which Python represents as surrogates) are printed unchanged.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return _SUBSTITUTES.get(character, "?"), error.start + 1


# Log messages


class _StderrHandler(logging.Handler):
    """Prints messages to the current value of ``sys.stderr``, so that later redirections are respected."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _report(self.format(record))
        except Exception:
            self.handleError(record)


def configure_warnings() -> None:
    """Under ``python -W error``, let only this project's own warnings be errors.

    Otherwise a library's warning would be taken for a failure of whatever it was called for, e.g. the tracking store.
    """
    if any(option.startswith("error") for option in sys.warnoptions):
        warnings.filterwarnings("default", module=r"(?!fgst\b|sweeps\b|data_prep\b|__main__$)")


def configure_logging() -> None:
    """Print messages of the ``fgst`` loggers from level INFO to standard error, without a prefix."""
    logger = logging.getLogger("fgst")
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())
        logger.setLevel(logging.INFO)
