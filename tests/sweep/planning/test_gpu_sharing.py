"""How many trainings share a card: the rule, and the measurement on a CPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fgst.errors import InputError
from fgst.sweep.planning.gpu_sharing import choose_share, probe
from tests.support import small


def curve(*rates: float) -> tuple[Callable[[int], float], list[int]]:
    """A throughput by count (of 1, 2, 4, 8 trainings), and what was asked of it."""
    asked: list[int] = []

    def throughput(count: int) -> float:
        asked.append(count)
        return rates[count.bit_length() - 1]

    return throughput, asked


@pytest.mark.parametrize(
    ("rates", "memory", "share", "probed"),
    [
        ((100, 200, 400, 800), 1, 1 / 8, [1, 2, 4, 8]),  # no more than 8
        ((100, 109), 1, 1, [1, 2]),  # a tenth is the least
        ((100, 111, 120), 1, 1 / 2, [1, 2, 4]),
        ((100, 150, 90, 800), 1, 1 / 2, [1, 2, 4]),  # what comes after is not asked
        ((100, 190, 0), 1, 1 / 2, [1, 2, 4]),  # four died
        ((100, 200, 400), 22.5, 1 / 4, [1, 2, 4]),  # four are 90 GiB of 100: they fit, and eight do not
        ((100, 200), 22.6, 1 / 2, [1, 2]),
        ((100,), 60, 1, [1]),
        ((0,), 1, 1, [1]),  # not even one
    ],
)
def test_share(rates: tuple[float, ...], memory: float, share: float, probed: list[int]) -> None:
    throughput, asked = curve(*rates)
    assert choose_share(memory, 100, throughput) == share
    assert asked == probed


def test_most_is_kept() -> None:
    throughput, asked = curve(1, 2, 4, 8)
    assert choose_share(1, 100, throughput, most=3) == 1 / 2
    assert asked == [1, 2]


def test_probe_measures_trainings_side_by_side(tmp_path: Path) -> None:
    dataset = small.write_small(tmp_path / "data")
    rate, memory = probe(small.small_config(dataset), str(dataset.path), "cpu", 2, steps=2)
    assert 1 < rate < 100_000
    assert 0.1 < memory < 4  # a process with PyTorch


def test_bad_input_is_named_not_taken_for_lack_of_memory(tmp_path: Path) -> None:
    dataset = small.write_small(tmp_path / "data")
    with pytest.raises(InputError, match="no such directory"):
        probe(small.small_config(dataset), str(tmp_path / "gone"), "cpu", 1)


def test_what_dies_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = small.write_small(tmp_path / "data")
    monkeypatch.setattr("fgst.sweep.planning.gpu_sharing._train", die)
    assert probe(small.small_config(dataset), str(dataset.path), "cpu", 1) == (0.0, 0.0)


def die(*arguments: object) -> None:
    os._exit(1)
