"""Tests of GPU sharing: the rule for the number of trials per GPU, and the measurement on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fgst.errors import InputError
from fgst.sweep.planning.gpu_sharing import choose_share, measure_throughput
from tests.support import small


def record_throughput(*rates: float) -> tuple[Callable[[int], float], list[int]]:
    """Make a function with the throughputs of 1, 2, 4 and 8 trials, and the list of counts that it is called with."""
    counts: list[int] = []

    def throughput(count: int) -> float:
        counts.append(count)
        return rates[count.bit_length() - 1]

    return throughput, counts


@pytest.mark.parametrize(
    ("rates", "memory", "share", "measured"),
    [
        ((100, 200, 400, 800), 1, 1 / 8, [1, 2, 4, 8]),  # 8 is the limit
        ((100, 109), 1, 1, [1, 2]),  # an increase of less than 10 %
        ((100, 111, 120), 1, 1 / 2, [1, 2, 4]),
        ((100, 150, 90, 800), 1, 1 / 2, [1, 2, 4]),  # stops at the first count that is not better
        ((100, 190, 0), 1, 1 / 2, [1, 2, 4]),  # four do not fit
        ((100, 200, 400), 22.5, 1 / 4, [1, 2, 4]),  # four take 90 of 100 GiB, which is the limit
        ((100, 200), 22.6, 1 / 2, [1, 2]),
        ((100,), 60, 1, [1]),
        ((0,), 1, 1, [1]),  # one does not fit either
    ],
)
def test_share_maximizes_throughput_within_memory(
    rates: tuple[float, ...], memory: float, share: float, measured: list[int]
) -> None:
    throughput, counts = record_throughput(*rates)
    assert choose_share(memory, 100, throughput) == share
    assert counts == measured


def test_max_trials_limits_the_share() -> None:
    throughput, counts = record_throughput(1, 2, 4, 8)
    assert choose_share(1, 100, throughput, max_trials=3) == 1 / 2
    assert counts == [1, 2]


def test_throughput_of_two_processes_is_measured(tmp_path: Path) -> None:
    dataset = small.write_small(tmp_path / "data")
    rate, memory = measure_throughput(small.small_config(dataset), str(dataset.path), "cpu", 2, steps=2)
    assert 1 < rate < 100_000
    assert 0.1 < memory < 4  # GiB of a process with PyTorch


def test_invalid_input_is_not_mistaken_for_lack_of_memory(tmp_path: Path) -> None:
    dataset = small.write_small(tmp_path / "data")
    with pytest.raises(InputError, match="no such directory"):
        measure_throughput(small.small_config(dataset), str(tmp_path / "missing"), "cpu", 1)


def test_process_that_runs_out_of_memory_does_not_fit(tmp_path: Path) -> None:
    dataset = small.write_small(tmp_path / "data")
    # The coordinates of one batch take terabytes, so that their allocation fails at once.
    config = small.small_config(dataset, data__frames=10_000, train__batch_size=20_000, train__repeat=1_000)
    assert measure_throughput(config, str(dataset.path), "cpu", 1) == (0.0, 0.0)
