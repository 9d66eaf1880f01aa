"""Graceful reaction to SIGTERM: a training saves its progress before its process ends.

Cloud providers announce the end of a spot node one or two minutes in advance, and a node that shuts down sends SIGTERM
to all processes. A training then stops after its current step and saves a checkpoint from which another node resumes
at that step.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_CODE = 128 + signal.SIGTERM
_stop_requested = threading.Event()
_training_active = threading.Event()


def should_stop() -> bool:
    """Return whether this process has received SIGTERM."""
    return _stop_requested.is_set()


def install_handler() -> None:
    """Defer SIGTERM while a training is active (see :func:`training_in_progress`).

    At all other times, the previous handler of SIGTERM is used. Call this function in the main thread: Python allows
    signal handlers only there.
    """
    previous = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: object) -> None:
        _stop_requested.set()
        if _training_active.is_set():
            return
        if callable(previous):
            previous(number, frame)  # type: ignore[arg-type]
        else:
            os._exit(EXIT_CODE)

    signal.signal(signal.SIGTERM, handle)


@contextmanager
def training_in_progress() -> Iterator[None]:
    """Mark the body as a training that polls :func:`should_stop` and ends on its own."""
    _training_active.set()
    try:
        yield
    finally:
        _training_active.clear()
