"""The background thread on which the driver records how trials ended."""

from __future__ import annotations

import errno
import threading
import time
from functools import partial

import pytest

from fgst.sweep.background import BackgroundWorker


def raise_disk_full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def raise_broken() -> None:
    raise RuntimeError("broken")


def test_calls_run_in_order_on_another_thread() -> None:
    numbers: list[int] = []
    threads: set[int] = set()

    def call(number: int) -> None:
        numbers.append(number)
        threads.add(threading.get_ident())

    with BackgroundWorker() as worker:
        for number in range(20):
            worker.submit(partial(call, number))
        assert worker.wait() is False
    assert numbers == list(range(20))
    assert threads.isdisjoint({threading.get_ident()})
    assert len(threads) == 1


def test_submit_does_not_wait() -> None:
    release = threading.Event()

    def wait_for_release() -> None:
        release.wait(30)

    with BackgroundWorker() as worker:
        worker.submit(wait_for_release)
        worker.submit(lambda: None)
        assert not release.is_set()
        release.set()
        assert worker.wait() is False


def test_wait_reports_a_full_disk_and_later_calls_still_run() -> None:
    numbers: list[int] = []
    with BackgroundWorker() as worker:
        # A call that takes longer than both of these submits, which would raise the exception of a finished call.
        worker.submit(lambda: time.sleep(0.2))
        worker.submit(raise_disk_full)
        worker.submit(lambda: numbers.append(1))
        assert worker.wait() is True
    assert numbers == [1]


def test_later_submit_raises_the_exception_of_a_call() -> None:
    def submit_until_it_raises(worker: BackgroundWorker) -> None:
        for _ in range(1000):
            worker.submit(raise_broken)
            time.sleep(0.01)

    with BackgroundWorker() as worker, pytest.raises(RuntimeError, match="broken"):
        submit_until_it_raises(worker)


def test_wait_raises_the_exception_of_a_call() -> None:
    with BackgroundWorker() as worker:
        worker.submit(raise_broken)
        with pytest.raises(RuntimeError, match="broken"):
            worker.wait()


def test_leaving_the_context_waits_for_all_calls() -> None:
    numbers: list[int] = []
    with BackgroundWorker() as worker:
        worker.submit(lambda: time.sleep(0.2))
        worker.submit(lambda: numbers.append(1))
    assert numbers == [1]
