"""What the driver remembers of a sweep while it runs, so that its report need not be asked of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fgst.sweep.backends.ray import Progress
from fgst.sweep.results import TrialResult
from fgst.sweep.runner import SweepRunner
from fgst.tracking.store import TrackingStore
from tests.support import small
from tests.support.questions import FOCAL_K, ask_for


@pytest.fixture
def session(tmp_path: Path, tracking_uri: str) -> SweepRunner:
    dataset = small.write_small(tmp_path / "data")
    spec, _ = ask_for(FOCAL_K, dataset, small.small_config(dataset), values=[2])
    store = TrackingStore(tracking_uri)
    experiment = store.experiment("small x-sub")
    parent = store.start(experiment, "sweep", "a sweep", {"fgst.kind": "sweep"})
    return SweepRunner(spec, store, experiment, parent, tmp_path, "")


@pytest.mark.parametrize("heard_from", [1, 2, 4])
def test_curves_that_were_heard_whole_are_not_read_again(
    session: SweepRunner, heard_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = session.spec.trials[0]
    run = session.store.start(session.experiment, trial.trial_id, trial.name, {}, session.parent.run_id)
    for epoch in (1, 2, 3):
        metrics = {"val/top1": 10.0 * epoch, "train/loss": 3.0 - epoch}
        run.log_metrics(metrics, epoch)
        if epoch >= heard_from:  # an earlier run of the sweep heard the others
            session._hear(Progress(trial, "running", {"epoch": float(epoch), **metrics}))
    asked: list[str] = []
    read = session.store.client.get_metric_history

    def asking(run_id: str, metric: str) -> Any:
        asked.append(metric)
        return read(run_id, metric)

    monkeypatch.setattr(session.store.client, "get_metric_history", asking)
    figures = session.store.run(run.run_id).data.metrics
    result = TrialResult(trial.trial_id, trial.label, 0, dict(trial.params), run.run_id, "finished", figures)
    curves = session._curves(result)
    assert curves == {"val/top1": {1: 10.0, 2: 20.0, 3: 30.0}, "train/loss": {1: 2.0, 2: 1.0, 3: 0.0}}
    assert asked == ([] if heard_from == 1 else ["val/top1", "train/loss"])
