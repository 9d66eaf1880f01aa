"""The runner of damaged files reports every kind of outcome."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import pytest

from fgst.errors import InputError
from tests.support.mutation import mutations, read_mutations

SAMPLE = json.dumps({"a": [1, 2, {"b": 3.5}], "c": "text", "d": list(range(50))}).encode()


def parse(data: bytes) -> Any:
    """Parse JSON text of at most a megabyte."""
    try:
        if len(data) > 2**20:
            raise InputError("is too large")
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON: {type(error).__name__}") from None


def fail(data: bytes) -> None:
    """Fail in a different way for each of five kinds of damaged content."""
    if data == SAMPLE:
        return
    match sum(data) % 20:
        case 0:
            os.kill(os.getpid(), signal.SIGSEGV)
        case 1:
            bytearray(2**40)
        case 2:
            time.sleep(60)
        case 3:
            raise KeyError("a")
        case 4:
            raise InputError("first line\nsecond line")


def test_mutations_are_reproducible_and_different() -> None:
    first = list(mutations(SAMPLE, 200, seed=1))
    assert first == list(mutations(SAMPLE, 200, seed=1))
    assert len({data for _, data in first}) > 150
    assert len({name for name, _ in first}) > 15


def test_read_and_refused_files_are_counted() -> None:
    outcomes = read_mutations(parse, {"sample": SAMPLE}, 200)
    outcomes.check(200)
    assert outcomes.right > 20
    assert outcomes.refused > 20


def test_crashes_hangs_and_other_exceptions_are_faults_of_one_file() -> None:
    outcomes = read_mutations(fail, {"sample": SAMPLE}, 150, seconds=1)
    listed = "\n".join(outcomes.faults)
    for fault in ("SIGSEGV", "MemoryError", "took too long", "KeyError", "message of 22 characters"):
        assert fault in listed
    assert outcomes.right + outcomes.refused + len(outcomes.faults) == 150
    with pytest.raises(AssertionError, match="damaged files"):
        outcomes.check(150)


def test_sample_that_is_not_read_is_reported() -> None:
    with pytest.raises(AssertionError, match="the undamaged sample is not read"):
        read_mutations(parse, {"sample": b"{"}, 10)
