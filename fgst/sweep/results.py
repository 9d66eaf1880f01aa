"""Results of a sweep: trials, means over seeds, paired differences, and how well early epochs predicted the last."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fgst.evaluation.analysis import holm
from fgst.sweep.correctness import ByRun, mean_correct, paired_table
from fgst.sweep.definition import format_params
from fgst.sweep.noise import Difference, crossed, student
from fgst.sweep.race import Drop, RaceState, race_state
from fgst.sweep.selection import WinnerEstimate, estimate_winner
from fgst.sweep.spec import SweepSpec
from fgst.sweep.status import StopReason, SweepStatus, TrialStatus

MeanStd = tuple[float, float]
MAX_SCORED = 400  # runs whose scores a table reads: a server takes milliseconds for each


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
        correct: which clips the trials classified correctly, by run id, of the split that rows are compared by.
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
    correct: ByRun = field(default_factory=dict)

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
class Row:
    """One configuration: mean and standard deviation over its finished seeds.

    Attributes:
        label, params: the configuration.
        finished, trials: number of finished and of all trials.
        val, test: top-1 in %, ``None`` if no trial has it. The mean over folds counts all their clips equally.
        minutes: training time per trial.
        published: the paper's top-1 in %.
        pruned, failed: numbers of trials.
        val_difference, test_difference: to the baseline's row, with the noise of seeds; their p-values are corrected
            for the number of rows. ``None`` for the baseline itself and with fewer than two common seeds.
        dropped: why a race trained it with no further seeds.
        clip_difference: that of the split that rows are compared by, with the noise of seeds and clips; with a single
            common seed only that of clips. ``None`` without stored scores.
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
    clip_difference: Difference | None = None
    dropped: Drop | None = None
    params: Mapping[str, Any] = field(default_factory=dict)


def labels_of(spec: SweepSpec, results: Sequence[TrialResult]) -> list[str]:
    """Labels of the rows: a grid's in its order, a search's by descending mean validation top-1."""
    if spec.search == "grid":
        return list(dict.fromkeys(trial.label for trial in spec.trials))
    labels = dict.fromkeys(result.label for result in results)
    finished = _by_label(results, TrialStatus.FINISHED)
    means = {label: val_top1(spec, finished.get(label, ())) for label in labels}
    return sorted(labels, key=lambda label: -(means[label] or (-math.inf, 0))[0])


def build_rows(spec: SweepSpec, results: Sequence[TrialResult], correct: ByRun | None = None) -> list[Row]:
    """One row per configuration of the sweep.

    Args:
        correct: which clips the trials classified correctly, of the split that rows are compared by.
    """
    params = {trial.label: dict(trial.params) for trial in spec.trials} | {r.label: dict(r.params) for r in results}
    planned, started = Counter(trial.label for trial in spec.trials), Counter(result.label for result in results)
    ended = {
        status: _by_label(results, status) for status in (TrialStatus.FINISHED, TrialStatus.PRUNED, TrialStatus.FAILED)
    }
    baseline, race = baseline_label(spec, results), race_of(spec, results)
    base = ended[TrialStatus.FINISHED].get(baseline, []) if baseline else []
    rows = []
    for label in labels_of(spec, results):
        finished = ended[TrialStatus.FINISHED].get(label, [])
        val, test, clips = None, None, None
        if label != baseline:
            val = paired(finished, base, "val/top1", spec, correct)
            test = paired(finished, base, "test/top1", spec, correct)
            clips = val if spec.varies_folds else _clip_difference(finished, base, correct)
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
                val_difference=val,
                test_difference=test,
                clip_difference=clips,
                dropped=race.dropped.get(label) if race else None,
            )
        )
    for name in ("val_difference", "test_difference", "clip_difference"):
        rows = _corrected(rows, name)
    return rows


def _corrected(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows with p-values of this difference that are corrected for their number."""
    differences = [getattr(row, name) for row in rows]
    p_values = iter(holm([d.p_value for d in differences if d is not None]))
    return [
        row if d is None else replace(row, **{name: replace(d, p_value=next(p_values))})
        for row, d in zip(rows, differences, strict=True)
    ]


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


def runs_to_compare(spec: SweepSpec, results: Sequence[TrialResult], most: int = MAX_SCORED) -> list[str]:
    """Ids of the finished runs whose scores the table needs: those of the baseline, then of the rows in their order.

    Args:
        most: maximum number; a search has the best rows first.
    """
    groups, baseline = _by_label(results, TrialStatus.FINISHED), baseline_label(spec, results)
    labels = dict.fromkeys([*([baseline] if baseline else []), *labels_of(spec, results)])
    return [trial.run_id for label in labels for trial in groups.get(label, ())][:most]


def best_result(spec: SweepSpec, results: Sequence[TrialResult]) -> TrialResult | None:
    """The trial to continue with: the best by validation of the configuration with the best mean validation top-1.

    Ties go to the first. Folds have different validation clips: a configuration that has finished more of them goes
    first, and its first fold is chosen. Of a race, only values that were not dropped are compared, by its complete
    rounds. Without validation clips (protocol paper) it is the first trial that finished: test clips are never used to
    choose.
    """
    finished = [result for result in results if result.status == TrialStatus.FINISHED]
    if race := race_of(spec, results):
        last = spec.base.train.seed + race.rounds
        compared = [r for r in finished if r.label not in race.dropped and r.seed < last]
        finished = compared or finished
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


def race_of(spec: SweepSpec, results: Sequence[TrialResult]) -> RaceState | None:
    """The state of a race; ``None`` for other sweeps."""
    if not spec.race:
        return None
    accuracies = {
        r.trial_id: r.metrics["val/top1"]
        for r in results
        if r.status == TrialStatus.FINISHED and "val/top1" in r.metrics
    }
    failed = {r.trial_id for r in results if r.status == TrialStatus.FAILED}
    first = spec.base.train.seed
    weights = {seed: float(spec.val_clips(seed)) for seed in range(first, first + spec.seeds)}
    return race_state(spec.trials, accuracies, failed, weights)


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
    one: Sequence[TrialResult],
    other: Sequence[TrialResult],
    metric: str,
    spec: SweepSpec | None = None,
    correct: ByRun | None = None,
) -> Difference | None:
    """``one`` minus ``other`` over their common seeds, with Student's t; ``None`` for fewer than two common seeds.

    Validation clips of folds differ: a fold counts as often as it has clips, and the pairs are folds, each the mean
    over its seeds. Their interval includes the noise of clips.

    Args:
        spec: the sweep, if the results may be of folds.
        correct: which clips the trials classified correctly, from which their number follows.
    """
    values = [{o.seed: o.metrics[metric] for o in side if metric in o.metrics} for side in (one, other)]
    seeds = sorted(values[0].keys() & values[1].keys())
    differences = [values[0][seed] - values[1][seed] for seed in seeds]
    if spec is not None and spec.varies_folds and metric == "val/top1":
        by_fold: dict[int, list[float]] = defaultdict(list)
        for seed, difference in zip(seeds, differences, strict=True):
            by_fold[spec.fold_of(seed)].append(difference)
        clips = [spec.fold_clips[fold] for fold in by_fold]
        if len(by_fold) < 2:
            return None
        return student([statistics.fmean(d) for d in by_fold.values()], clips)
    if len(seeds) < 2:
        return None
    known = [len(correct[o.run_id].clip_ids) for o in one if correct and o.run_id in correct]
    is_scored = spec is not None and metric == spec.compared_metric and known
    return student(differences, resolution=100 / statistics.fmean(known) if is_scored else 0.0)


def _clip_difference(
    one: Sequence[TrialResult], other: Sequence[TrialResult], correct: ByRun | None
) -> Difference | None:
    """``one`` minus ``other`` with the noise of seeds and clips; ``None`` without scores of the same clips."""
    runs = [{o.seed: o.run_id for o in side} for side in (one, other)]
    seeds = sorted(runs[0].keys() & runs[1].keys())
    table = paired_table([(runs[0][seed], runs[1][seed]) for seed in seeds], correct or {})
    return None if table is None else crossed(table)


def winner_estimate(spec: SweepSpec, results: Sequence[TrialResult], correct: ByRun) -> WinnerEstimate | None:
    """What the validation accuracy of the best configuration is worth; ``None`` without scores of validation clips."""
    if spec.base.data.protocol == "paper":
        return None
    groups = _by_label(results, TrialStatus.FINISHED)
    candidates = [mean_correct([trial.run_id for trial in group], correct) for group in groups.values()]
    return estimate_winner([candidate for candidate in candidates if candidate is not None])


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
