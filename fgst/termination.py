"""SIGTERM and SIGHUP end a command in the same way as Ctrl-C.

Job schedulers, ``timeout`` and service managers send SIGTERM, and a closed terminal sends SIGHUP, to one process or to
a whole process group. Commands save their state when they are interrupted by Ctrl-C, so both signals raise
``KeyboardInterrupt`` as well.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

REPEAT_SECONDS = 10.0
"""Time within which further SIGTERM and SIGHUP are ignored, so that saving is not interrupted: ``timeout`` sends its
signal to the process and then to its group, shells repeat SIGHUP, and systemd sends both signals."""

_last_signal = -REPEAT_SECONDS
_cleanup_is_unsafe = False


@contextmanager
def as_interrupt() -> Iterator[None]:
    """Within the context, let SIGTERM and SIGHUP raise ``KeyboardInterrupt`` in the main thread.

    A signal that this process ignores stays ignored: ``nohup`` ignores SIGHUP, and shells start the background jobs of
    scripts with SIGINT ignored. Has no effect in other threads, where Python does not allow handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Determined now, because after a hangup the descriptors no longer refer to a terminal.
    terminal = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def handle(number: int, frame: FrameType | None) -> None:
        global _last_signal
        if number == signal.SIGHUP:
            _discard_output(terminal)
        before, _last_signal = _last_signal, time.monotonic()
        if _last_signal - before >= REPEAT_SECONDS:
            raise KeyboardInterrupt

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def skip_cleanup_at_exit() -> None:
    """Make the command end without the interpreter's cleanup, which would wait for a library that does not respond."""
    global _cleanup_is_unsafe
    _cleanup_is_unsafe = True


def cleanup_at_exit_is_unsafe() -> bool:
    """Whether :func:`skip_cleanup_at_exit` was called."""
    return _cleanup_is_unsafe


def _discard_output(terminal: Sequence[int]) -> None:
    """Redirect output to a lost terminal, which would fail, to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in terminal:
        os.dup2(null, descriptor)
    os.close(null)
