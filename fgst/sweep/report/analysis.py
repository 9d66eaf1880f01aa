"""Analyses for the report: Pareto front, importance of parameters, and whether early stopping was safe."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fgst.sweep.definition import OBJECTIVES
from fgst.sweep.results import Rung, TrialResult
from fgst.sweep.spec import EarlyStopping, SweepSpec

if TYPE_CHECKING:
    import optuna

VAL_TOP1 = "val/top1"
MIN_TRIALS_FOR_IMPORTANCE = 4
SAFE_TAU = 0.5  # the least Kendall's tau between early and final order that counts as similar


def objective_axes(spec: SweepSpec) -> tuple[list[str], list[str]]:
    """Order two objectives for a plot: cost on the x axis, accuracy on the y axis.

    Returns:
        The names of the objectives and the metrics that trials log them under.
    """
    names = sorted(spec.objectives, key=lambda name: OBJECTIVES[name][0] == "maximize")
    return names, [OBJECTIVES[name][1] for name in names]


def pareto_front(spec: SweepSpec, results: Sequence[TrialResult]) -> list[TrialResult]:
    """Select the trials that no other trial dominates, cheapest first.

    A trial dominates another one if it is at least as good in both objectives and better in one of them; trials with
    equal values are all part of the front.

    Args:
        spec: a sweep with two objectives.
        results: trials that have finite values of both.
    """
    _, metrics = objective_axes(spec)
    signs = {metric: 1 if direction == "maximize" else -1 for direction, metric in OBJECTIVES.values()}
    scores = {
        result.run_id: (signs[metrics[0]] * result.metrics[metrics[0]], signs[metrics[1]] * result.metrics[metrics[1]])
        for result in results
    }
    nondominated, best_second = set(), -math.inf
    for first, second in sorted(set(scores.values()), reverse=True):
        if second > best_second:  # every trial that is as good in the first objective is worse in the second
            nondominated.add((first, second))
            best_second = second
    front = [result for result in results if scores[result.run_id] in nondominated]
    return sorted(front, key=lambda result: scores[result.run_id], reverse=True)


def parameter_importance(study: optuna.Study | None) -> tuple[dict[str, float], str]:
    """Estimate with PED-ANOVA how strongly each parameter determines whether a trial is among the best.

    Args:
        study: the Optuna study of a search; ``None`` for a sweep without one.

    Returns:
        Importance by parameter name, in shares of 1, and a caption; or an empty dictionary and the reason.
    """
    import optuna  # lazy: takes a second to import, and the plots use this module too

    if study is None:
        return {}, "this sweep has no Optuna study"
    complete = [t for t in study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.COMPLETE]
    if len(complete) < MIN_TRIALS_FOR_IMPORTANCE:
        return {}, f"it takes {MIN_TRIALS_FOR_IMPORTANCE} finished trials, and there are {len(complete)}"
    if len({tuple(trial.values) for trial in complete}) == 1:
        return {}, "all trials have the same result"
    # Optuna's default of a tenth would be one trial or none of a short search.
    top_share = min(0.5, max(0.1, 5 / len(complete)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the evaluator is experimental, and warns about few trials
            evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=top_share)
            importance = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except Exception as error:  # evaluators raise many types, and the rest of the report is still useful
        return {}, (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    shares = {name: share for name, share in importance.items() if math.isfinite(share)}
    if len(set(shares.values())) < 2:
        return {}, "the parameters do not differ in importance"
    target = "on or near the Pareto front" if len(study.directions) > 1 else "among the best"
    return shares, (
        f"How strongly each parameter determines whether a trial is {target} "
        f"(the top {100 * top_share:.0f} % of {len(complete)} trials; PED-ANOVA)"
    )


def early_stopping_verdict(rungs: Sequence[Rung], early_stop: EarlyStopping | None) -> str:
    """Say in one or two sentences whether early stopping was safe, or would have been.

    Args:
        rungs: how the order at each rung relates to the final order, from :func:`fgst.sweep.results.rank_report`.
        early_stop: the early stopping of the sweep; ``None`` if every trial was trained to the last epoch.
    """
    epochs = [str(rung.epoch) for rung in rungs if not rung.kept_best]
    lost = f"epoch{'s' if len(epochs) > 1 else ''} {' and '.join(epochs)}" if epochs else ""
    share = f"1 in {early_stop.reduction_factor if early_stop else 3}"
    if early_stop is None:
        if lost:
            return f"Early stopping would not have been safe: the best trial would have been stopped after {lost}."
        return f"Early stopping would have been safe: with {share} continuing, it would have kept the best trial."
    weakest_tau = min((rung.tau for rung in rungs if rung.tau is not None), default=0.0)
    if lost:
        verdict = (
            f"Early stopping was a risk. After {lost}, the trial with the best final accuracy was not among the "
            f"best {share} of the trials that ran to the last epoch: an equally good one may have been stopped."
        )
    elif weakest_tau < SAFE_TAU:
        verdict = (
            "At every comparison, the trial with the best final accuracy was among those to continue, but the early "
            "order says so little about the final one that an equally good trial may have been stopped."
        )
    else:
        verdict = (
            "At every comparison, the trial with the best final accuracy was among those to continue, and the early "
            "order was close to the final one: early stopping looks safe."
        )
    return verdict + " Trials that were stopped are not included, because their final accuracy is not known."
