"""A worker thread that records the ends of trials for the driver."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from fgst.errors import is_disk_full


class BackgroundWorker:
    """Runs callables one after another on a background thread; leaving the context waits for all of them.

    Recording how a trial ended takes half a dozen requests. With 64 trials writing to the same tracking server these
    took 1.6 s, during which the driver's loop started no other trial.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown()

    def submit(self, call: Callable[[], None]) -> None:
        """Run ``call`` after all earlier ones; raises the exception of an earlier call."""
        earlier = len(self._pending)
        self._pending.append(self._executor.submit(call))
        for _ in range(earlier):
            if not self._pending[0].done():
                break
            self._pending.popleft().result()

    def wait(self) -> bool:
        """Wait for all calls; returns whether one failed because a disk is full. Raises any other exception."""
        disk_full = False
        while self._pending:
            try:
                self._pending.popleft().result()
            except Exception as error:
                if not is_disk_full(error):
                    raise
                disk_full = True
        return disk_full
