"""The background thread on which the driver records how trials ended."""

from __future__ import annotations

import errno
import threading
import time

import pytest

from fgst.sweep.background import BackgroundWorker


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def broken() -> None:
    raise RuntimeError("broken")


def test_calls_run_in_order_on_another_thread() -> None:
    numbers: list[int] = []
    threads: set[int] = set()

    def call(number: int) -> None:
        numbers.append(number)
        threads.add(threading.get_ident())

    with BackgroundWorker() as worker:
        for number in range(20):
            worker.submit(lambda number=number: call(number))  # type: ignore[misc]
        assert worker.wait() is False
    assert numbers == list(range(20))
    assert threads.isdisjoint({threading.get_ident()})
    assert len(threads) == 1


def test_submit_does_not_wait() -> None:
    release = threading.Event()
    with BackgroundWorker() as worker:
        worker.submit(lambda: release.wait(30) and None)  # type: ignore[arg-type, return-value]
        worker.submit(lambda: None)
        assert not release.is_set()
        release.set()
        assert worker.wait() is False


def test_a_full_disk_is_reported_by_wait_and_later_calls_still_run() -> None:
    numbers: list[int] = []
    with BackgroundWorker() as worker:
        # Both are queued behind a call that is still running: submit raises what an earlier, finished call raised.
        worker.submit(lambda: time.sleep(0.2))
        worker.submit(full)
        worker.submit(lambda: numbers.append(1))
        assert worker.wait() is True
    assert numbers == [1]


def test_an_exception_is_raised_by_a_later_submit() -> None:
    def submit_until_it_raises(worker: BackgroundWorker) -> None:
        for _ in range(1000):
            worker.submit(broken)
            time.sleep(0.01)

    with BackgroundWorker() as worker, pytest.raises(RuntimeError, match="broken"):
        submit_until_it_raises(worker)


def test_an_exception_is_raised_by_wait() -> None:
    with BackgroundWorker() as worker:
        worker.submit(broken)
        with pytest.raises(RuntimeError, match="broken"):
            worker.wait()


def test_leaving_the_context_waits_for_all_calls() -> None:
    numbers: list[int] = []
    with BackgroundWorker() as worker:
        worker.submit(lambda: time.sleep(0.2))
        worker.submit(lambda: numbers.append(1))
    assert numbers == [1]
