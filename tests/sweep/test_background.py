"""Work beside: in order, not waited for, and what goes wrong in it is heard."""

from __future__ import annotations

import errno
import threading

import pytest

from fgst.sweep.background import BackgroundWorker


def test_nobody_waits_and_the_order_stays() -> None:
    done: list[int] = []
    gate = threading.Event()
    with BackgroundWorker() as aside:
        aside.do(lambda: done.append(int(gate.wait(30))))
        for number in (2, 3, 4):
            aside.do(lambda number=number: done.append(number))  # type: ignore[misc]
        assert done == []  # the first of them waits still
        gate.set()
        assert not aside.disk_full_at_the_end()
        assert done == [1, 2, 3, 4]


@pytest.mark.parametrize("error", [ValueError("what it was"), OSError(errno.ENOSPC, "No space left on device")])
def test_what_goes_wrong_is_heard_at_the_end(error: Exception) -> None:
    gate = threading.Event()

    def fails() -> None:
        gate.wait(30)
        raise error

    with BackgroundWorker() as aside:
        aside.do(fails)
        gate.set()
        if isinstance(error, OSError):
            assert aside.disk_full_at_the_end()
        else:
            with pytest.raises(ValueError, match="what it was"):
                aside.disk_full_at_the_end()


def test_what_went_wrong_is_heard_by_the_next() -> None:
    def fails() -> None:
        raise ValueError("what it was")

    with BackgroundWorker() as aside:
        aside._doing.append(aside._thread.submit(fails))
        aside._thread.submit(lambda: None).result()  # by now it has failed
        with pytest.raises(ValueError, match="what it was"):
            aside.do(lambda: None)
        assert not aside.disk_full_at_the_end()


def test_leaving_waits_for_what_is_under_way() -> None:
    done: list[int] = []
    with BackgroundWorker() as aside:
        aside.do(lambda: done.append(1))
    assert done == [1]
