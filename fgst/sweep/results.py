"""Results of a sweep: trials, means over seeds, paired differences, and how well early epochs predicted the last."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fgst.sweep.definition import format_params
from fgst.sweep.spec import SweepSpec
from fgst.sweep.status import StopReason, SweepStatus, TrialStatus

MeanStd = tuple[float, float]


@dataclass(frozen=True)
class TrialResult:
    """The state of a trial in MLflow.

    Attributes:
        trial_id, label, seed, params: identity of the trial.
        run_id: its MLflow run.
        status: how it ended, or RUNNING.
        metrics: its last metrics by MLflow name; accuracies in %.
        reason: reason of a failure.
        used_micro_batches: whether each batch was split into two parts after running out of memory.
    """

    trial_id: str
    label: str
    seed: int
    params: Mapping[str, Any]
    run_id: str
    status: TrialStatus
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    used_micro_batches: bool = False


@dataclass(frozen=True)
class SweepResult:
    """The result of an invocation of a sweep.

    Attributes:
        spec: the sweep.
        sweep_id: id of its MLflow run.
        status: how the invocation ended.
        trials: all trials started so far, those reused from earlier sweeps first.
        best: the trial to continue with, see :func:`best_result`.
        remaining: number of trials left at most, interrupted ones included.
        stop_reason, details: why no further trial was started, as an enumeration member and in words.
        were_spooled: whether records were buffered while the tracking server was unreachable, and uploaded later.
        deleted: trials whose runs were deleted in MLflow: label, and how to restore the run.
    """

    spec: SweepSpec
    sweep_id: str
    status: SweepStatus
    trials: tuple[TrialResult, ...]
    best: TrialResult | None
    remaining: int
    stop_reason: StopReason | None = None
    details: str = ""
    were_spooled: bool = False
    deleted: tuple[tuple[str, str], ...] = ()

    @property
    def failed(self) -> tuple[TrialResult, ...]:
        """The trials that failed."""
        return tuple(trial for trial in self.trials if trial.status is TrialStatus.FAILED)

    @property
    def interrupted(self) -> tuple[TrialResult, ...]:
        """The trials that were stopped before their last epoch and can be resumed."""
        return tuple(trial for trial in self.trials if trial.status is TrialStatus.INTERRUPTED)

    @property
    def best_label(self) -> str | None:
        """Label of the best configuration if it was chosen by validation."""
        return self.best.label if self.best is not None and "val/top1" in self.best.metrics else None


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences in % (same seeds on both sides) and half the width of its 95 % interval."""

    mean: float
    half_width: float
    pairs: int

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval excludes 0."""
        return abs(self.mean) > self.half_width


@dataclass(frozen=True)
class Row:
    """One configuration: mean and standard deviation over its finished seeds.

    Attributes:
        label, params: the configuration.
        finished, trials: number of finished and of all trials.
        val, test: top-1 in %, ``None`` if no trial has it. The mean over folds counts all their clips equally.
        minutes: training time per trial.
        published: the paper's top-1 in %.
        pruned, failed: numbers of trials.
        val_difference, test_difference: to the baseline's row; ``None`` for the baseline itself and with fewer than two
            common seeds.
    """

    label: str
    finished: int
    trials: int
    val: MeanStd | None
    test: MeanStd | None
    minutes: MeanStd | None
    published: float | None
    pruned: int = 0
    failed: int = 0
    val_difference: Difference | None = None
    test_difference: Difference | None = None
    params: Mapping[str, Any] = field(default_factory=dict)


def labels_of(spec: SweepSpec, results: Sequence[TrialResult]) -> list[str]:
    """Labels of the rows: a grid's in its order, a search's by descending mean validation top-1."""
    if spec.search == "grid":
        return list(dict.fromkeys(trial.label for trial in spec.trials))
    labels = dict.fromkeys(result.label for result in results)
    finished = _by_label(results, TrialStatus.FINISHED)
    means = {label: val_top1(spec, finished.get(label, ())) for label in labels}
    return sorted(labels, key=lambda label: -(means[label] or (-math.inf, 0))[0])


def build_rows(spec: SweepSpec, results: Sequence[TrialResult]) -> list[Row]:
    """One row per configuration of the sweep."""
    params = {trial.label: dict(trial.params) for trial in spec.trials} | {r.label: dict(r.params) for r in results}
    planned, started = Counter(trial.label for trial in spec.trials), Counter(result.label for result in results)
    ended = {
        status: _by_label(results, status) for status in (TrialStatus.FINISHED, TrialStatus.PRUNED, TrialStatus.FAILED)
    }
    baseline = baseline_label(spec, results)
    base = ended[TrialStatus.FINISHED].get(baseline, []) if baseline else []
    rows = []
    for label in labels_of(spec, results):
        finished = ended[TrialStatus.FINISHED].get(label, [])
        differences = [
            None if label == baseline else paired(finished, base, metric, weight)
            for metric, weight in (("val/top1", spec.val_clips), ("test/top1", None))
        ]
        rows.append(
            Row(
                label=label,
                params=params[label],
                finished=len(finished),
                trials=planned[label] or started[label],
                val=val_top1(spec, finished),
                test=mean_std(finished, "test/top1"),
                minutes=mean_std(finished, "minutes"),
                published=spec.published_top1(params[label]),
                pruned=len(ended[TrialStatus.PRUNED].get(label, ())),
                failed=len(ended[TrialStatus.FAILED].get(label, ())),
                val_difference=differences[0],
                test_difference=differences[1],
            )
        )
    return rows


def baseline_label(spec: SweepSpec, results: Sequence[TrialResult]) -> str | None:
    """Label of the row that others are compared with: the definition's baseline if it is part of the sweep, else the
    first row.
    """
    if spec.search == "grid":
        labels = labels_of(spec, results)
    else:  # in the order of their start: the first is what the user enqueued, or the paper's setting
        initial = [format_params(dict(params)) for params in spec.initial_points]
        labels = list(dict.fromkeys([*initial, *(result.label for result in results)]))
    wanted = spec.label_of_value(spec.baseline)
    return wanted if wanted in labels else next(iter(labels), None)


def best_result(spec: SweepSpec, results: Sequence[TrialResult]) -> TrialResult | None:
    """The trial to continue with: the best by validation of the configuration with the best mean validation top-1.

    Ties go to the first. Folds have different validation clips: a configuration that has finished more of them goes
    first, and its first fold is chosen. Without validation clips (protocol paper) it is the first trial that finished:
    test clips are never used to choose.
    """
    finished = [result for result in results if result.status == TrialStatus.FINISHED]
    if spec.search == "grid":
        order = {trial.trial_id: number for number, trial in enumerate(spec.trials)}
        finished.sort(key=lambda result: order.get(result.trial_id, len(order)))

    groups = _by_label(finished, TrialStatus.FINISHED)
    means = {label: val_top1(spec, group) for label, group in groups.items()}

    def rank(result: TrialResult) -> tuple[float, float, float]:
        mean = (means[result.label] or (0.0, 0.0))[0]
        if spec.varies_folds:
            return len(groups[result.label]), mean, -result.seed
        return 0, mean, result.metrics.get("val/top1", 0.0)

    return max(finished, key=rank, default=None)


def val_top1(spec: SweepSpec, results: Sequence[TrialResult]) -> MeanStd | None:
    """Mean and standard deviation of the validation top-1 in %; the mean of folds is that of all their clips."""
    return mean_std(results, "val/top1", spec.val_clips)


def mean_std(
    results: Sequence[TrialResult], metric: str, weight: Callable[[int], float] | None = None
) -> MeanStd | None:
    """Mean and sample standard deviation (0 for a single value); ``None`` without values.

    Args:
        weight: seed → weight of the trial in the mean; by default all are equal.
    """
    known = [result for result in results if metric in result.metrics]
    values = [result.metrics[metric] for result in known]
    if not values:
        return None
    weights = None if weight is None else [weight(result.seed) for result in known]
    return statistics.fmean(values, weights), statistics.stdev(values) if len(values) > 1 else 0.0


def paired(
    one: Sequence[TrialResult], other: Sequence[TrialResult], metric: str, weight: Callable[[int], float] | None = None
) -> Difference | None:
    """``one`` minus ``other`` over their common seeds, with Student's t; ``None`` for fewer than two common seeds.

    Args:
        weight: seed → weight of the pair in the mean; by default all are equal.
    """
    from scipy.stats import t  # lazy: scipy.stats takes half a second to import

    values = [{o.seed: o.metrics[metric] for o in side if metric in o.metrics} for side in (one, other)]
    seeds = sorted(values[0].keys() & values[1].keys())
    if len(seeds) < 2:
        return None
    n, differences = len(seeds), [values[0][seed] - values[1][seed] for seed in seeds]
    weights = [1.0 if weight is None else weight(seed) for seed in seeds]
    mean = statistics.fmean(differences, weights)
    # The standard error of a weighted mean; with equal weights, the standard deviation divided by the root of n.
    deviations = [w * (difference - mean) for w, difference in zip(weights, differences, strict=True)]
    error = math.hypot(*deviations) / sum(weights) * math.sqrt(n / (n - 1))
    return Difference(mean, float(t.ppf(0.975, n - 1)) * error, n)


@dataclass(frozen=True)
class Rung:
    """How well an epoch predicted the last one.

    Attributes:
        epoch: epoch of the rung.
        tau: Kendall's tau-b between accuracies at this epoch and at the last; ``None`` for constant accuracies.
        trials: number of trials that ran to the last epoch.
        kept_best: whether the best of them is among the trials that continue after this rung.
    """

    epoch: int
    tau: float | None
    trials: int
    kept_best: bool


def rank_report(spec: SweepSpec, histories: Sequence[Mapping[int, float]]) -> list[Rung]:
    """Compute whether early stopping was, or would have been, safe.

    Args:
        histories: validation top-1 by epoch, of trials that ran to the last epoch. With fewer than three the report is
            empty.
    """
    from scipy.stats import kendalltau

    epochs = spec.base.train.epochs
    stop = spec.early_stop
    reduction = stop.reduction_factor if stop else 3
    epoch = stop.grace_period if stop else max(1, epochs // 9)
    whole = [history for history in histories if epochs in history]
    rungs: list[Rung] = []
    while epoch < epochs and len(whole) >= 3:
        pairs = [(history[epoch], history[epochs]) for history in whole if epoch in history]
        if len(pairs) >= 3:
            early, last = zip(*pairs, strict=True)
            tau = float(kendalltau(early, last).statistic)
            best = max(pairs, key=lambda pair: pair[1])
            ahead = sum(value > best[0] for value in early)
            kept = ahead < max(1, len(pairs) // reduction)
            rungs.append(Rung(epoch, None if math.isnan(tau) else tau, len(pairs), kept))
        epoch *= reduction
    return rungs


def _by_label(results: Sequence[TrialResult], status: TrialStatus) -> dict[str, list[TrialResult]]:
    groups: dict[str, list[TrialResult]] = defaultdict(list)
    for result in results:
        if result.status == status:
            groups[result.label].append(result)
    return groups
