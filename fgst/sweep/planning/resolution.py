"""What difference the planned seeds and clips can resolve, and what a given difference would need.

A difference to the baseline is *resolved* if it is found with a power of 80 %, while all comparisons of the table
together err with a probability of 5 % (Bonferroni's bound of Holm's correction). Further seeds reduce the noise of
seeds only: a difference on other clips has a limit that depends on the number of clips.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fgst.sweep.noise import ALPHA
from fgst.sweep.spec import SweepSpec

POWER = 0.8
MAX_SEEDS = 30  # that --resolve sets
MOST = 100_000  # seeds or clips that are considered at all
EXAMPLES = (0.5, 1.0, 2.0)  # differences in points
DEFAULT_ACCURACY = 90.0
# Networks trained by the same recipe err on the same clips more often than chance: the share of clips on which exactly
# one of two is correct is about p (1 - p), half of that of independent networks. At 71 % and 205 clips this gives 3.2
# points between seeds; benchmarks/results/nw-ucla.md has 2.9 (root mean square of eleven variations, preset tiny).
DISCORDANCE = 1.0
# The part of the discordance that is taken to be the same with every seed.
PERSISTENT_SHARE = 0.5
# Estimated standard deviations are replaced by their upper limit with this confidence: planning with the estimate
# itself would miss the power half of the time.
CONFIDENCE = 0.8


@dataclass(frozen=True)
class Noise:
    """What is known about the noise of a sweep before it starts.

    Attributes:
        pair_std: standard deviation over seeds of the paired difference of two values, in points.
        freedom: degrees of freedom that it was estimated with; 0 for a default.
        discordance: share of clips on which exactly one of two networks with the same seed is correct.
        persistent: share of clips that contributes the same difference with every seed: the variance of the difference
            over clips, apart from what varies with the seed.
        source: where the standard deviation comes from.
        clip_source: where the discordance comes from.
    """

    pair_std: float
    freedom: int
    discordance: float
    persistent: float
    source: str
    clip_source: str

    @property
    def planned_std(self) -> float:
        """The standard deviation to plan with: the upper limit of an estimate."""
        from scipy.stats import chi2  # lazy: scipy.stats takes half a second to import

        if not self.freedom:
            return self.pair_std
        return self.pair_std * math.sqrt(self.freedom / float(chi2.ppf(1 - CONFIDENCE, self.freedom)))


def default_noise(clips: int, accuracy: float | None = None) -> Noise:
    """The noise that is assumed without earlier trainings.

    Args:
        clips: number of clips of a training.
        accuracy: in %, if known.
    """
    share = (DEFAULT_ACCURACY if accuracy is None else min(accuracy, 99.0)) / 100
    discordance = DISCORDANCE * share * (1 - share)
    source = f"a default for {clips:,} clips at {100 * share:.0f} %"
    return Noise(
        100 * math.sqrt(discordance / clips), 0, discordance, PERSISTENT_SHARE * discordance, source, "a default"
    )


@dataclass(frozen=True)
class Resolution:
    """What a sweep can resolve.

    Attributes:
        noise: of the sweep.
        seeds: pairs of each comparison: seeds, or folds.
        clips: number of clips on which a value is evaluated.
        comparisons: number of values that are compared with the baseline.
    """

    noise: Noise
    seeds: int
    clips: int
    comparisons: int

    @property
    def _level(self) -> float:
        return ALPHA / max(1, self.comparisons)

    def on_these_clips(self) -> float:
        """The smallest difference in points that these seeds resolve on these clips; infinite for a single seed."""
        from scipy.optimize import brentq  # lazy: SciPy takes half a second to import

        if self.seeds < 2:
            return math.inf
        # In units of the standard error; with two seeds, it takes some hundred of them.
        found = brentq(lambda ratio: t_power(ratio, self.seeds, self._level) - POWER, 0.1, 1e4)
        return float(found) * self.noise.planned_std / math.sqrt(self.seeds)

    def on_other_clips(self) -> float:
        """The smallest difference in points that these seeds and clips resolve on other clips."""
        return math.hypot(self.on_these_clips(), self.limit_of_clips())

    def limit_of_clips(self) -> float:
        """The smallest difference in points on other clips that any number of seeds resolves with these clips."""
        return 100 * _quantiles(self._level) * math.sqrt(self.noise.persistent / self.clips)

    def seeds_for(self, points: float) -> int | None:
        """The number of seeds that resolve a difference on these clips; ``None`` beyond ``MOST``."""
        ratio = points / self.noise.planned_std if self.noise.planned_std else math.inf
        if ratio == math.inf:
            return 2

        def resolves(seeds: int) -> bool:
            return t_power(ratio * math.sqrt(seeds), seeds, self._level) >= POWER

        high = 2
        while not resolves(high):
            if high > MOST:
                return None
            high *= 2
        low = max(2, high // 2)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if resolves(middle) else (middle + 1, high)
        return high

    def clips_for(self, points: float) -> int:
        """The number of clips whose noise lets these seeds resolve a difference on other clips."""
        varying = (self.noise.discordance - self.noise.persistent) / self.seeds
        return math.ceil((100 * _quantiles(self._level) / points) ** 2 * (self.noise.persistent + max(0.0, varying)))


def t_power(ratio: float, seeds: int, level: float) -> float:
    """Power of the two-sided paired t-test for a difference of ``ratio`` standard errors."""
    from scipy.stats import nct, norm, t  # lazy: scipy.stats takes half a second to import

    if seeds > 200:  # the non-central distribution is slow there, and normal
        return float(norm.sf(norm.isf(level / 2) - ratio))
    return float(nct.sf(t.isf(level / 2, seeds - 1), seeds - 1, ratio))


def _quantiles(level: float) -> float:
    """Standard errors at which a two-sided test has the power."""
    from scipy.stats import norm  # lazy: scipy.stats takes half a second to import

    return float(norm.isf(level / 2) + norm.ppf(POWER))


def resolution_of(spec: SweepSpec, noise: Noise, clips: int) -> Resolution | None:
    """What a sweep can resolve; ``None`` if it compares nothing.

    Args:
        clips: number of clips of a training, see :func:`clips_per_training`.
    """
    values = len({trial.label for trial in spec.trials}) or spec.total // spec.seeds
    if values < 2:
        return None
    pairs = min(spec.seeds, len(spec.fold_clips)) if spec.varies_folds else spec.seeds
    return Resolution(noise, pairs, sum(spec.fold_clips) if spec.varies_folds else clips, values - 1)


def describe(spec: SweepSpec, resolution: Resolution) -> list[str]:
    """Lines for the user."""
    noise, split = resolution.noise, "test" if spec.compared_split == "test" else "validation"
    together = f" for {resolution.comparisons} comparisons together" if resolution.comparisons > 1 else ""
    repetitions = spec.repetitions if resolution.seeds > 1 else spec.repetitions[:-1]
    std = f"standard deviation of a pair: {noise.pair_std:.1f} points, {noise.source}"
    these, other = _points(resolution.on_these_clips()), _points(resolution.on_other_clips())
    seeds = " / ".join(f"{n:,}" if (n := resolution.seeds_for(points)) else "too many" for points in EXAMPLES)
    clips = " / ".join(f"{_rounded(resolution.clips_for(points)):,}" for points in EXAMPLES)
    examples = " / ".join(f"{points:g}" for points in EXAMPLES)
    lines = [
        f"what {resolution.seeds} {repetitions} and {resolution.clips:,} {split} clips can resolve "
        f"(95 %{together}, power 80 %):"
    ]
    if spec.varies_folds:
        lines.append(f"  with other seeds and on other clips: {these} ({std})")
        lines.append(f"  {examples} points need about {clips} clips")
        return lines
    lines.append(f"  with other seeds, on these clips: {these} ({std})")
    lines.append(
        f"  also on other clips: {other}, and {_points(resolution.limit_of_clips())} with any number of seeds "
        f"({100 * noise.discordance:.1f} % of the clips differ between two networks, {noise.clip_source})"
    )
    lines.append(f"  {examples} points need {seeds} seeds on these clips; about {clips} clips for other clips")
    return lines


def _points(points: float) -> str:
    if points == math.inf:
        return "nothing with a single seed"
    return f"{points:.1f} points" if points < 100 else "over 100 points"


def _rounded(number: int) -> int:
    """Two significant digits, upwards: more would suggest a precision that the estimate does not have."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit
