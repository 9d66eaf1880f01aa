"""A tracking server that is killed and restarted during a sweep."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags
from tests.support.team_server import TeamServer
from tests.support.workspace import TIMEOUT, TINY, Workspace, metrics_by_trial, uninterrupted_metrics

EPOCHS = 30


@pytest.fixture
def team(monkeypatch: pytest.MonkeyPatch) -> Iterator[TeamServer]:
    """A running tracking server, to which the environment points."""
    team = TeamServer()
    for name, value in team.environment.items():
        monkeypatch.setenv(name, value)
    try:
        team.start()
        yield team
    finally:
        team.end()


@pytest.mark.slow
def test_sweep_loses_no_data_while_the_tracking_server_is_down(workspace: Workspace, team: TeamServer) -> None:
    store = workspace.store = TrackingStore(team.uri)
    process = workspace.start(
        *("--dataset", "data", "--preset", "tiny", "--values", "2,4", "--epochs", str(EPOCHS)), *TINY
    )  # fmt: skip
    sweep = workspace.wait_for_epoch(process, 2)
    epochs = {run.info.run_id: workspace.epochs(run) for run in store.children(sweep)}
    assert all(count < EPOCHS for count in epochs.values())
    team.kill()
    team.start()
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    assert out.splitlines()[-1].startswith("python -m fgst.evaluate")
    children = store.children(sweep)
    assert [run.info.run_id for run in children] == list(epochs)
    assert [run.info.status for run in children] == ["FINISHED"] * 2
    assert [run.data.tags[Tags.STATUS] for run in children] == ["finished"] * 2
    assert store.run(sweep).info.status == "FINISHED"
    assert any(int(run.data.tags.get(Tags.SPOOLED, "0")) for run in children)
    assert "the tracking server was unreachable during the sweep; all buffered data has been uploaded" in err
    for run in children:
        steps = [m.step for m in store.client.get_metric_history(run.info.run_id, "train/loss")]
        assert steps == list(range(1, EPOCHS + 1))
        for path in ("checkpoint/model.safetensors", "scores/test.arrow", "figures/confusion.png"):
            with store.artifacts(run.info.run_id, path) as file:
                assert file.stat().st_size > 0
    assert metrics_by_trial(children) == uninterrupted_metrics(workspace, sweep)
    assert not list((workspace.folder / "ray_results").glob("*/spool"))
