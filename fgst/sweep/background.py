"""What the driver writes about its trials, beside the loop that starts them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from fgst.errors import is_disk_full


class BackgroundWorker:
    """Does one thing after another in a thread beside; a context manager that ends when all is done.

    To write down how a trial ended takes half a dozen requests. On a tracking server that 64 trials keep busy they took
    1.6 s, in which no other trial began.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._doing: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()

    def do(self, call: Callable[[], None]) -> None:
        """Do this after all else; raises what an earlier call raised."""
        self._doing.append(self._thread.submit(call))
        while self._doing and self._doing[0].done():
            self._doing.popleft().result()

    def disk_full_at_the_end(self) -> bool:
        """Wait until all is done; whether something found no room. Raises what else went wrong."""
        full = False
        while self._doing:
            try:
                self._doing.popleft().result()
            except Exception as error:
                if not is_disk_full(error):
                    raise
                full = True
        return full
