"""Check what sweeps say about their precision, on simulated seeds and clips with known true differences; takes minutes.

A network classifies a clip correctly if a sum of normal variables is above 0: the configuration's quality, the clip's
difficulty, how much the configuration suits the clip, the seed's quality, and the rest, which differs for every network
and clip. The true accuracy of a configuration is thus known, on the simulated clips as well as on all clips.

  python -m benchmarks.resolution                     all tables, as in docs/sweeps.md
  python -m benchmarks.resolution --repeats 100       less precise
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from fgst.evaluation.analysis import holm
from fgst.sweep.noise import ALPHA, crossed, residual_variance, student
from fgst.sweep.planning.resolution import Noise, Resolution
from fgst.sweep.race import eliminate
from fgst.sweep.selection import estimate_from_table

VALUES = 7  # configurations of a sweep


@dataclass(frozen=True)
class World:
    """Standard deviations of the variables whose sum decides whether a clip is classified correctly."""

    difficulty: float = 1.0
    suitability: float = 0.4
    seed: float = 0.05
    rest: float = 0.6

    @property
    def total(self) -> float:
        """Standard deviation of the sum."""
        return math.hypot(self.difficulty, self.suitability, self.seed, self.rest)


class Clips:
    """Simulated clips and configurations.

    Args:
        accuracies: true accuracies of the configurations on all clips, from 0 to 1; or on the simulated ones.
        on_these: whether they are those on the simulated clips.

    Attributes:
        on_these_clips: true accuracies on the simulated clips, averaged over all seeds.
    """

    def __init__(
        self,
        world: World,
        accuracies: Sequence[float],
        clips: int,
        generator: np.random.Generator,
        *,
        on_these: bool = False,
    ) -> None:
        self._world, self._generator = world, generator
        shape = (len(accuracies), clips)
        self._sums = generator.normal(0, world.difficulty, clips) + generator.normal(0, world.suitability, shape)
        self._spread = math.hypot(world.seed, world.rest)
        if on_these:
            for row, accuracy in zip(self._sums, accuracies, strict=True):
                row += self._quality(row, accuracy)
        else:
            self._sums += (norm.ppf(accuracies) * world.total)[:, None]
        self.on_these_clips = norm.cdf(self._sums / self._spread).mean(axis=1)

    def _quality(self, row: np.ndarray, accuracy: float) -> float:
        """The quality with which a configuration has this accuracy on the simulated clips."""
        return float(brentq(lambda q: norm.cdf((row + q) / self._spread).mean() - accuracy, -20, 20, xtol=1e-6))

    def train(self, seeds: int) -> np.ndarray:
        """Train each configuration with these many seeds; returns ``(configurations, seeds, clips)`` booleans."""
        rows, clips = self._sums.shape
        noise = self._generator.normal(0, self._world.seed, (rows, seeds, 1))
        noise = noise + self._generator.normal(0, self._world.rest, (rows, seeds, clips))
        return np.asarray(self._sums[:, None] + noise > 0)


def coverage(repeats: int, generator: np.random.Generator) -> Iterator[list[str]]:
    """How often the 95 % intervals of a difference contain the truth, and how often equal values are said to differ."""
    yield ["accuracy", "seeds", "clips", "these clips", "other clips", "false, these", "false, other"]
    for accuracy, seeds, clips in (
        (0.9, 1, 205), (0.9, 2, 205), (0.9, 3, 205), (0.7, 3, 205), (0.9, 5, 464), (0.97, 3, 464), (0.9, 10, 205),
    ):  # fmt: skip
        # Intervals of one seed are those of its two networks, so that seeds do not differ here.
        world = World() if seeds > 1 else World(seed=0.0, rest=1e-9)
        these, other, false_these, false_other = [], [], [], []
        for _ in range(repeats):
            simulated = Clips(world, [accuracy] * VALUES, clips, generator)
            correct = simulated.train(seeds).astype(int)
            truths = 100 * (simulated.on_these_clips[1:] - simulated.on_these_clips[0])
            wide = [crossed(row - correct[0]) for row in correct[1:]]
            other += [abs(d.mean) <= d.half_width for d in wide]
            false_other.append(min(holm([d.p_value or 0.0 for d in wide])) <= ALPHA)
            if seeds > 1:
                narrow = [student(100 * (row - correct[0]).mean(axis=1), None, 100 / clips) for row in correct[1:]]
                these += [abs(d.mean - truth) <= d.half_width for d, truth in zip(narrow, truths, strict=True)]
                equal = Clips(world, [accuracy] * VALUES, clips, generator, on_these=True).train(seeds).mean(axis=2)
                p_values = [student(100 * (row - equal[0]), None, 100 / clips).p_value or 0.0 for row in equal[1:]]
                false_these.append(min(holm(p_values)) <= ALPHA)
        shown = [_percent(values) for values in (these, other, false_these, false_other)]
        yield [f"{100 * accuracy:.0f} %", str(seeds), str(clips), *shown]


def power(repeats: int, generator: np.random.Generator) -> Iterator[list[str]]:
    """How often ``--resolve`` finds the difference that it promises to find (80 %)."""
    yield ["points", "values", "noise known from", "seeds (median)", "found"]
    clips, accuracy, world = 205, 0.88, World()
    for points, values in ((2.0, 2), (4.0, 2), (2.0, VALUES), (4.0, VALUES)):
        for pilots in (None, (4, 3), (4, 5)):
            used, found = [], []
            for _ in range(repeats):
                accuracies = [accuracy, accuracy + points / 100, *[accuracy] * (values - 2)]
                simulated = Clips(world, accuracies, clips, generator, on_these=True)
                noise = _noise(simulated, world, clips, accuracy, generator, pilots)
                seeds = Resolution(noise, 2, clips, values - 1).seeds_for(points)
                assert seeds is not None
                reached = 100 * simulated.train(seeds).mean(axis=2)
                differences = [student(row - reached[0], None, 100 / clips) for row in reached[1:]]
                corrected = holm([d.p_value or 0.0 for d in differences])
                used.append(seeds)
                found.append(corrected[0] <= ALPHA and differences[0].mean > 0)
            source = "many trainings" if pilots is None else f"{pilots[0]} values × {pilots[1]} seeds"
            yield [f"{points:g}", str(values), source, f"{np.median(used):.0f}", _percent(found)]


def _noise(
    simulated: Clips,
    world: World,
    clips: int,
    accuracy: float,
    generator: np.random.Generator,
    pilots: tuple[int, int] | None,
) -> Noise:
    """The noise that planning assumes: from many trainings of these configurations, or from a few earlier ones."""
    if pilots is None:
        reached = 100 * simulated.train(100)[:2].mean(axis=2)
        return Noise(float(np.std(reached[1] - reached[0], ddof=1)), 0, 0.1, 0.05, "", "")
    rows, seeds = pilots
    reached = 100 * Clips(world, [accuracy] * rows, clips, generator, on_these=True).train(seeds).mean(axis=2)
    table = {str(i): dict(enumerate(row)) for i, row in enumerate(reached.tolist())}
    variance, freedom = residual_variance(table)
    return Noise(math.sqrt(2 * variance), freedom, 0.1, 0.05, "", "")


def winners(repeats: int, generator: np.random.Generator) -> Iterator[list[str]]:
    """Error of the accuracy of the best trial: that of its validation, and that of the estimate."""
    yield ["trials", "clips", "std of true accuracies", "validation", "honest estimate", "its interval contains it"]
    for trials, clips, spread in (
        (7, 205, 0.0), (7, 205, 1.0), (40, 205, 0.0), (40, 205, 2.0), (40, 464, 2.0), (100, 205, 3.0),
    ):  # fmt: skip
        raw, honest, contained = [], [], []
        for _ in range(repeats):
            accuracies = np.clip(0.88 + generator.normal(0, spread / 100, trials), 0.5, 0.99)
            # The networks are fixed: what their seeds contribute belongs to them.
            world = World(seed=0.0, suitability=math.hypot(0.4, 0.6), rest=1e-9)
            table = Clips(world, accuracies.tolist(), clips, generator).train(1)[:, 0].astype(float)
            truth = 100 * float(accuracies[table.mean(axis=1).argmax()])
            estimate = estimate_from_table(table)
            assert estimate is not None
            raw.append(estimate.reached - truth)
            honest.append(estimate.honest - truth)
            contained.append(abs(honest[-1]) <= estimate.half_width)
        yield [
            str(trials), str(clips), f"{spread:g}", f"{np.mean(raw):+.1f}",
            f"{np.mean(honest):+.1f} (std {np.std(honest):.1f})", _percent(contained),
        ]  # fmt: skip


def races(repeats: int, generator: np.random.Generator) -> Iterator[list[str]]:
    """How often a race keeps the best value, and how many trainings it saves."""
    yield ["true accuracies, points below the best", "seeds", "best kept", "values left", "trainings saved"]
    settings: dict[str, tuple[list[float], World]] = {
        "all equal": ([0.0] * VALUES, World()),
        "1 each": ([float(i) for i in range(VALUES)], World()),
        "2 each": ([2.0 * i for i in range(VALUES)], World()),
        "0 and six times 5": ([0.0] + [5.0] * (VALUES - 1), World()),
        "six times 0.5 apart, one far": ([0, 0.5, 1, 1.5, 2, 2.5, 15], World()),
        "1 each, seeds differ more": ([float(i) for i in range(VALUES)], World(seed=0.2)),
    }
    for name, (below, world) in settings.items():
        for rounds in (5, 10):
            kept, left_over, saved = [], [], []
            for _ in range(repeats):
                simulated = Clips(world, [0.9 - b / 100 for b in below], 205, generator, on_these=True)
                reached = 100 * simulated.train(rounds).mean(axis=2)
                left, trained = _race(reached)
                kept.append("0" in left)
                left_over.append(len(left))
                saved.append(1 - trained / reached.size)
            yield [name, str(rounds), _percent(kept), f"{np.mean(left_over):.1f}", f"{100 * np.mean(saved):.0f} %"]


def _race(reached: np.ndarray) -> tuple[list[str], int]:
    """Race over accuracies ``(values, rounds)``; returns the values that are left, and the number of trainings."""
    values, rounds = reached.shape
    left, trained = [str(i) for i in range(values)], 0
    table: dict[str, dict[int, float]] = {label: {} for label in left}
    for number in range(1, rounds + 1):
        for label in left:
            table[label][number] = float(reached[int(label), number - 1])
            trained += 1
        dropped = eliminate(table, left, number, values, rounds)
        left = [label for label in left if label not in dropped]
        if len(left) < 2:
            break
    return left, trained


def _percent(values: Sequence[bool]) -> str:
    return f"{100 * np.mean(values):.1f} %" if values else "–"


def markdown(rows: Iterator[list[str]]) -> str:
    """A Markdown table; the first row contains the headings."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * (lines[0].count("|") - 1), *lines[1:]])


TABLES = {"coverage": coverage, "power of --resolve": power, "winners": winners, "races": races}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000, help="simulated sweeps per line; default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES), help="these tables only")
    options = parser.parse_args()
    for name in options.only:
        print(f"\n{name}\n\n{markdown(TABLES[name](options.repeats, np.random.default_rng(0)))}", flush=True)


if __name__ == "__main__":
    main()
