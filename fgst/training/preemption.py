"""A process that is told to end (SIGTERM: its node is about to go) first keeps what its training has learnt.

Clouds warn a spot node a minute or two before they take it away, and on its way down the system sends SIGTERM to every
process. A training then ends after its current step, with a checkpoint from which another node goes on at that step.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

EXIT = 128 + signal.SIGTERM
_asked = threading.Event()
_under_way = threading.Event()


def asked() -> bool:
    """Whether this process was told to end."""
    return _asked.is_set()


def listen() -> None:
    """From now on SIGTERM lets a training that is :func:`under_way` come to a good end. In the main thread only."""
    before = signal.getsignal(signal.SIGTERM)

    def told(number: int, frame: object) -> None:
        _asked.set()
        if _under_way.is_set():
            return
        if callable(before):
            before(number, frame)  # type: ignore[arg-type]
        else:
            os._exit(EXIT)

    signal.signal(signal.SIGTERM, told)


@contextmanager
def under_way() -> Iterator[None]:
    """Inside, a training is under way that looks at :func:`asked`."""
    _under_way.set()
    try:
        yield
    finally:
        _under_way.clear()
