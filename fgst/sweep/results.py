"""What a sweep's figures say, and how sure: means over seeds, paired differences, how well rungs foretold the end."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fgst.sweep.definition import SweepSpec, format_params

MeanStd = tuple[float, float]
ENDINGS = ("finished", "pruned", "failed", "interrupted", "running")


@dataclass(frozen=True)
class TrialResult:
    """How a trial stands in MLflow.

    Attributes:
        key, label, seed, point: which trial it is.
        run_id: of its MLflow run.
        ending: one of ``ENDINGS``; "pruned" was stopped early, "interrupted" goes on when the sweep is resumed.
        metrics: its last ones, by MLflow name; accuracies in %.
        reason: of a failure.
        halved: its batches went through the network in two halves, for want of memory.
    """

    trial_id: str
    label: str
    seed: int
    params: Mapping[str, Any]
    run_id: str
    status: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    used_micro_batches: bool = False


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences in % (same seeds on both sides), and half the width of its 95 % interval."""

    mean: float
    half_width: float
    pairs: int

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.mean) > self.half_width


@dataclass(frozen=True)
class Row:
    """One configuration: mean and standard deviation over its finished seeds; ``None`` where no trial has the figure.

    Accuracies in %, ``minutes`` of training per trial. ``val_difference`` and ``test_difference`` are to the baseline's
    row, ``None`` for itself and under two common seeds. ``pruned`` and ``failed`` count trials.
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


def labels_of(spec: SweepSpec, results: Sequence[TrialResult]) -> list[str]:
    """The rows' labels: a grid's in its order, a search's from the best by validation down."""
    if spec.search == "grid":
        return list(dict.fromkeys(trial.label for trial in spec.trials))
    labels = dict.fromkeys(result.label for result in results)
    finished = _by_label(results, "finished")
    means = {label: mean_std(finished.get(label, ()), "val/top1") for label in labels}
    return sorted(labels, key=lambda label: -(means[label] or (-math.inf, 0))[0])


def build_rows(spec: SweepSpec, results: Sequence[TrialResult]) -> list[Row]:
    """A row for each configuration that is part of the sweep."""
    published = dict(spec.published)
    labels = labels_of(spec, results)
    planned, begun = Counter(trial.label for trial in spec.trials), Counter(result.label for result in results)
    ended = {status: _by_label(results, status) for status in ("finished", "pruned", "failed")}
    baseline = baseline_label(spec, results)
    base = ended["finished"].get(baseline, []) if baseline else []
    rows = []
    for label in labels:
        finished = ended["finished"].get(label, [])
        differences = [None if label == baseline else paired(finished, base, m) for m in ("val/top1", "test/top1")]
        rows.append(
            Row(
                label=label,
                finished=len(finished),
                trials=planned[label] or begun[label],
                val=mean_std(finished, "val/top1"),
                test=mean_std(finished, "test/top1"),
                minutes=mean_std(finished, "minutes"),
                published=published.get(label),
                pruned=len(ended["pruned"].get(label, ())),
                failed=len(ended["failed"].get(label, ())),
                val_difference=differences[0],
                test_difference=differences[1],
            )
        )
    return rows


def baseline_label(spec: SweepSpec, results: Sequence[TrialResult]) -> str | None:
    """Label of the row that others are compared with: the question's, else the first."""
    if spec.search == "grid":
        labels = labels_of(spec, results)
    else:  # as they were begun: the first is what the user enqueued, or the paper's setting
        labels = list(
            dict.fromkeys(
                [*(format_params(dict(params)) for params in spec.initial_points), *(o.label for o in results)]
            )
        )
    return spec.baseline if spec.baseline in labels else next(iter(labels), None)


def best_result(spec: SweepSpec, results: Sequence[TrialResult]) -> TrialResult | None:
    """The trial to go on with: of the configuration with the best mean validation top-1, its best by validation.

    Of equals the first. Where all clips train (protocol paper) there is nothing to choose by, and the test clips are
    not for choosing: then it is the first trial that finished.
    """
    finished = [result for result in results if result.status == "finished"]
    if spec.search == "grid":
        order = {trial.trial_id: number for number, trial in enumerate(spec.trials)}
        finished.sort(key=lambda result: order.get(result.trial_id, len(order)))

    means = {label: mean_std(some, "val/top1") for label, some in _by_label(finished, "finished").items()}

    def worth(result: TrialResult) -> tuple[float, float]:
        return (means[result.label] or (0.0, 0.0))[0], result.metrics.get("val/top1", 0.0)

    return max(finished, key=worth, default=None)


def mean_std(results: Sequence[TrialResult], metric: str) -> MeanStd | None:
    """Mean and sample standard deviation (0 of a single one); ``None`` of none."""
    values = [result.metrics[metric] for result in results if metric in result.metrics]
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def paired(one: Sequence[TrialResult], other: Sequence[TrialResult], metric: str) -> Difference | None:
    """``one`` minus ``other`` over the seeds that both have, with Student's t; ``None`` under two common seeds."""
    from scipy.stats import t

    values = [{o.seed: o.metrics[metric] for o in side if metric in o.metrics} for side in (one, other)]
    seeds = sorted(values[0].keys() & values[1].keys())
    if len(seeds) < 2:
        return None
    differences = [values[0][seed] - values[1][seed] for seed in seeds]
    spread = statistics.stdev(differences) / math.sqrt(len(seeds))
    return Difference(statistics.fmean(differences), float(t.ppf(0.975, len(seeds) - 1)) * spread, len(seeds))


@dataclass(frozen=True)
class Rung:
    """How well an epoch foretold the end: Kendall's tau-b over ``trials`` that ran to the end; ``None`` of constants.

    ``kept_best`` says whether the best of these trials was among the share that this rung lets go on.
    """

    epoch: int
    tau: float | None
    trials: int
    kept_best: bool


def rank_report(spec: SweepSpec, histories: Sequence[Mapping[int, float]]) -> list[Rung]:
    """Whether early stopping was, or would have been, safe.

    Args:
        histories: validation top-1 by epoch, of trials that ran to the end; under three of them nothing is said.
    """
    from scipy.stats import kendalltau

    epochs = spec.base.train.epochs
    stop = spec.early_stop
    reduction = stop.reduction if stop else 3
    epoch = stop.grace if stop else max(1, epochs // 9)
    whole = [history for history in histories if epochs in history]
    rungs: list[Rung] = []
    while epoch < epochs and len(whole) >= 3:
        pairs = [(history[epoch], history[epochs]) for history in whole if epoch in history]
        if len(pairs) >= 3:
            then, finally_ = zip(*pairs, strict=True)
            tau = float(kendalltau(then, finally_).statistic)
            best = max(pairs, key=lambda pair: pair[1])
            ahead = sum(value > best[0] for value in then)
            kept = ahead < max(1, len(pairs) // reduction)
            rungs.append(Rung(epoch, None if math.isnan(tau) else tau, len(pairs), kept))
        epoch *= reduction
    return rungs


def _by_label(results: Sequence[TrialResult], status: str) -> dict[str, list[TrialResult]]:
    found: dict[str, list[TrialResult]] = defaultdict(list)
    for result in results:
        if result.status == status:
            found[result.label].append(result)
    return found
