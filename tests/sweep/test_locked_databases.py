"""Another program holds the lock of the tracking database and of the study's while a sweep runs."""

from __future__ import annotations

import sqlite3
import time
from contextlib import ExitStack, closing

import pytest

from tests.support.workspace import TINY, Workspace

LOCKED_SECONDS = 45  # longer than MLflow (20 seconds) and SQLAlchemy (5 seconds) wait


@pytest.mark.slow
@pytest.mark.parametrize("backend", [["--local"], ["--max-concurrent", "2"]], ids=["local", "ray"])
def test_sweep_waits_for_locked_databases(workspace: Workspace, backend: list[str]) -> None:
    options = ["--dataset", "data", "--cpus-per-trial", "1", "--values", "2,4", "--epochs", "40", *TINY]
    process = workspace.start(*options, *backend)
    sweep = workspace.wait_for_first_epoch(process)
    databases = [workspace.folder / "mlflow.db", *workspace.folder.glob(f"ray_results/studies/{sweep}.db")]
    assert len(databases) == 2
    with ExitStack() as stack:
        for database in databases:
            connection = stack.enter_context(closing(sqlite3.connect(database, isolation_level=None, timeout=60)))
            connection.execute("BEGIN EXCLUSIVE")
        time.sleep(LOCKED_SECONDS)
        assert process.poll() is None
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    trials = workspace.store.children(sweep)
    assert [run.info.status for run in trials] == ["FINISHED"] * 2
    assert [len(workspace.store.metric_history(run.info.run_id, "train/loss")) for run in trials] == [40, 40]


@pytest.mark.slow
def test_command_that_reads_waits_for_a_locked_database(workspace: Workspace) -> None:
    experiment = workspace.store.experiment("small x-sub")
    workspace.store.start(experiment, "key", "a run", {"fgst.kind": "trial"}).finish()
    with closing(sqlite3.connect(workspace.folder / "mlflow.db", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        process = workspace.start_module("fgst.runs", "list")
        time.sleep(30)
        connection.execute("ROLLBACK")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "a run" in out
