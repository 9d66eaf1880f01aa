"""Statistics of a sweep, compared with SciPy and with examples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fgst.data.dataset import ArrowDataset
from fgst.sweep.results import TrialResult, baseline_label, build_rows, paired, rank_report
from fgst.sweep.spec import EarlyStopping, SweepSpec, build_spec
from fgst.sweep.status import TrialStatus
from tests.support import small
from tests.support.definitions import FOCAL_K, JOINT


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


def make_spec(dataset: ArrowDataset, *, seeds: int = 1, early_stop: EarlyStopping | None = None) -> SweepSpec:
    config = small.small_config(dataset, train__epochs=9)
    return build_spec(FOCAL_K, config, dataset, values=[2, 4, 6], seeds=seeds, early_stop=early_stop)


def finished(label: str, seed: int, val: float, test: float = 0.0) -> TrialResult:
    return TrialResult(
        f"{label}{seed}", label, seed, {}, "", TrialStatus.FINISHED, {"val/top1": val, "test/top1": test}
    )


def test_paired_difference_matches_scipys_t_interval() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(80, 3, 6), rng.normal(79, 3, 6)
    first = [finished("a", seed, value) for seed, value in enumerate(a)]
    second = [finished("b", seed, value) for seed, value in enumerate(b)][::-1]  # paired by seed, not by position
    difference = paired(first, second, "val/top1")
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert difference is not None
    assert difference.pairs == 6
    assert difference.mean - difference.half_width == pytest.approx(interval.low)
    assert difference.mean + difference.half_width == pytest.approx(interval.high)
    assert difference.beyond_noise is bool(interval.low > 0 or interval.high < 0)


def test_at_least_two_common_seeds_are_paired() -> None:
    results = [finished("a", 0, 80), finished("a", 1, 90), finished("a", 2, 70)]
    assert paired(results, [finished("b", 2, 60)], "val/top1") is None
    difference = paired(results, [finished("b", 2, 60), finished("b", 0, 70), finished("b", 7, 1)], "val/top1")
    assert difference is not None
    assert (difference.mean, difference.pairs, difference.half_width) == (10, 2, 0)
    assert difference.beyond_noise


def test_rows_are_compared_with_the_baseline(dataset: ArrowDataset) -> None:
    spec = make_spec(dataset, seeds=3)
    results = [finished(f"K={k}", seed, 50 + 10 * k + seed) for k in (2, 4, 6) for seed in range(3)]
    assert baseline_label(spec, results) == "K=2"
    rows = build_rows(spec, results)
    assert rows[0].val_difference is None
    assert [row.val_difference and row.val_difference.mean for row in rows[1:]] == [20, 40]


def test_rank_report_matches_scipys_kendall_tau_at_each_rung(dataset: ArrowDataset) -> None:
    spec = make_spec(dataset, early_stop=EarlyStopping(1, 3))
    rng = np.random.default_rng(1)
    finals = rng.permutation(20) * 1.0
    histories = [{1: rng.normal(), 3: value + rng.normal(0, 4), 9: value} for value in finals]
    stopped = [{1: 5.0}, {1: 2.0, 3: 1.0}]  # without a final value, so not counted
    report = rank_report(spec, histories + stopped)
    assert [rung.epoch for rung in report] == [1, 3]
    for rung in report:
        tau = stats.kendalltau([h[rung.epoch] for h in histories], finals).statistic
        assert rung.tau == pytest.approx(tau)
        assert rung.trials == 20
        best = max(histories, key=lambda h: h[9])
        ahead = sum(h[rung.epoch] > best[rung.epoch] for h in histories)
        assert rung.kept_best is (ahead < 20 // 3)
    assert rank_report(spec, histories[:2]) == []
    assert rank_report(spec, [{1: 5.0, 3: 5.0, 9: float(i)} for i in range(3)])[0].tau is None


def test_rows_of_a_search_are_sorted_by_validation(dataset: ArrowDataset) -> None:
    spec = build_spec(JOINT, small.small_config(dataset), dataset)
    results = [finished("x", 0, 10), finished("y", 0, 30), finished("z", 0, 20)]
    results.append(TrialResult("p", "pruned one", 0, {}, "", TrialStatus.PRUNED, {"val/top1": 99}))
    rows = build_rows(spec, results)
    assert [row.label for row in rows] == ["y", "z", "x", "pruned one"]
    assert rows[-1].val is None
