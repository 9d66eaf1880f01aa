"""Tests of the progress display: one line per trial that ended, with counts and accuracies."""

from __future__ import annotations

import pytest

from fgst.config import DataConfig, ModelConfig, TrainConfig, TrialConfig
from fgst.sweep.definition import Parameter, Trial
from fgst.sweep.progress import ProgressView
from fgst.sweep.scheduler import TrialUpdate
from fgst.sweep.spec import SweepSpec
from fgst.sweep.status import TrialStatus

BASE = TrialConfig(ModelConfig(), DataConfig("data", "x-view"), TrainConfig(epochs=9, repeat=5))
TRIALS = [Trial(f"K={k}", BASE, str(k), (("K", k),)) for k in (3, 9, 15)]
SPEC = SweepSpec(
    name="focal_k", title="How many?", parameters=(Parameter("K", (3, 9, 15)),), search="grid", seeds=1, limit=None,
    objectives=("val_top1",), early_stop=None, initial_points=(), base=BASE, trials=tuple(TRIALS), published=(),
    source="", baseline="", dataset_name="nw-ucla", dataset_digest="9f" * 32,
)  # fmt: skip
METRICS = {"epoch": 9.0, "train/loss": 0.5, "val/top1": 81.26, "test/top1": 79.0, "minutes": 1.5}


def show(*updates: tuple[int, TrialStatus, dict[str, float]], ended_before: int = 0) -> None:
    """Show updates, each of a trial's index, status and metrics, after ``ended_before`` trials of earlier calls."""
    with ProgressView(SPEC, ended_before) as view:
        for number, status, metrics in updates:
            view.listen(TrialUpdate(TRIALS[number], status, metrics))


def test_epochs_print_nothing_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show((0, TrialStatus.RUNNING, METRICS))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("status", "metrics", "line"),
    [
        (TrialStatus.FINISHED, METRICS, "[1/3] K=3 joint s0  val 81.3 %  test 79.0 %  1.5 min"),
        (
            TrialStatus.PRUNED,
            {"epoch": 3.0, "val/top1": 40.0},
            "[1/3] K=3 joint s0  stopped early after epoch 3  val 40.0 %",
        ),
        (TrialStatus.FAILED, {}, "[1/3] K=3 joint s0  failed"),
        (TrialStatus.INTERRUPTED, {}, "[0/3] K=3 joint s0  interrupted"),
    ],
)
def test_one_line_is_printed_per_trial_that_ended(
    capsys: pytest.CaptureFixture[str], status: TrialStatus, metrics: dict[str, float], line: str
) -> None:
    show((0, TrialStatus.RUNNING, METRICS), (0, status, metrics))
    assert capsys.readouterr() == ("", line + "\n")


def test_trials_of_earlier_calls_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    show((1, TrialStatus.FINISHED, METRICS), (2, TrialStatus.FINISHED, METRICS), ended_before=1)
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["[2/3]", "[3/3]"]


def test_terminals_show_running_trials_and_the_best_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes Rich treat stderr as a terminal
    monkeypatch.setenv("COLUMNS", "120")
    show((0, TrialStatus.FINISHED, METRICS), (1, TrialStatus.RUNNING, METRICS | {"epoch": 4.0}))
    output = capsys.readouterr().err
    assert "1/3 done, 1 running, best K=3 val 81.3 %" in output
    assert "K=9 joint s0" in output
    assert "4/9" in output
