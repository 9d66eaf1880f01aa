"""Whole sweeps as a user runs them: a script with Ray and MLflow."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal

import pytest

from fgst.cli import evaluate
from fgst.cli.sweep import sweep as run_sweep
from fgst.errors import InputError
from fgst.sweep.definition import SweepDefinition
from fgst.sweep.spec import SweepSpec
from fgst.tracking.tags import Tags
from tests.support.workspace import ROOT, TIMEOUT, TINY, Workspace, metrics_by_trial

pytestmark = pytest.mark.long

FOCAL_K: SweepDefinition = runpy.run_path(str(ROOT / "sweeps" / "focal_k.py"))["definition"]


def test_sweep_of_two_trials(workspace: Workspace) -> None:
    arguments = ["--dataset", "data", "--preset", "tiny", "--values", "2,4", "--epochs", "2"]
    arguments += ["--cpus-per-trial", "1", *TINY]
    result = workspace.sweep(*arguments)
    assert result.returncode == 0, result.stderr
    [parent] = workspace.sweeps()
    children = workspace.store.children(parent.info.run_id)
    assert parent.info.status == "FINISHED"
    assert [c.info.status for c in children] == ["FINISHED"] * 2
    assert {c.data.params["model.focal_joints"] for c in children} == {"2", "4"}

    # The table has a row for each value, and the last line is the command that evaluates the best trial.
    assert re.search(r"│\s+2\b.*│", result.stdout)
    assert re.search(r"│\s+4\b.*│", result.stdout)
    last = result.stdout.strip().splitlines()[-1]
    best = max(children, key=lambda c: c.data.metrics["val/top1"])
    match = re.fullmatch(r"python -m fgst.evaluate --run-id ([0-9a-f]{32})", last)
    assert match
    printed = next(c for c in children if c.info.run_id == match[1])
    assert printed.data.metrics["val/top1"] == best.data.metrics["val/top1"]
    assert parent.data.tags["fgst.best_run"] == match[1]
    report = workspace.module("fgst.evaluate", "--run-id", match[1], "--json")
    assert report.returncode == 0, report.stderr
    values = json.loads(report.stdout)  # exactly one object
    assert values["top1"] == printed.data.metrics["test/top1"]

    with workspace.store.artifacts(parent.info.run_id, "") as folder:
        spec = SweepSpec.from_json((folder / "sweep.json").read_text())
        table = (folder / "table.csv").read_text().splitlines()
        page = (folder / "report.html").read_text()
        assert list((folder / "figures").glob("*.png"))
    assert spec.title in page
    assert f"python -m fgst.evaluate --run-id {match[1]}" in page
    assert {trial.trial_id for trial in spec.trials} == {c.data.tags[Tags.TRIAL_ID] for c in children}
    assert [line.partition(",")[0] for line in table] == ["K", "2", "4"]
    # The rest is in MLflow.
    assert [path.name for path in (workspace.folder / "ray_results").iterdir()] == ["studies"]

    # Without Ray, the trials have the same metrics, and the table has the same columns except for the minutes.
    local = workspace.sweep(*arguments, "--local")
    assert local.returncode == 0, local.stderr
    [other] = [run for run in workspace.sweeps() if run.info.run_id != parent.info.run_id]
    assert metrics_by_trial(workspace.store.children(other.info.run_id)) == metrics_by_trial(children)
    with workspace.store.artifacts(other.info.run_id, "table.csv") as file:
        assert [line.split(",")[:7] for line in file.read_text().splitlines()] == [
            line.split(",")[:7] for line in table
        ]

    with pytest.raises(InputError, match=match[1]):  # the message names the sweep's best trial
        evaluate.main(["--run-id", parent.info.run_id, "--tracking-uri", workspace.store.uri])


def test_ctrl_c_interrupts_a_sweep_and_prints_the_resume_command(workspace: Workspace) -> None:
    process = workspace.start("--dataset", "data", "--preset", "tiny", "--values", "2,4", "--epochs", "40", *TINY)
    sweep = workspace.wait_for_epoch(process, 1)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole foreground process group
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, err
    assert re.search(rf"python \S*focal_k.py --resume {sweep}$", err, re.MULTILINE)
    assert "Traceback" not in err
    assert workspace.store.run(sweep).info.status == "KILLED"
    assert {c.info.status for c in workspace.store.children(sweep)} == {"KILLED"}


@pytest.mark.slow
def test_failed_trials_are_reported_with_their_reason(workspace: Workspace) -> None:
    settings = ["--set", "train.lr=1e30", "--set", "train.warmup=0"]
    result = workspace.sweep(
        "--dataset", "data", "--preset", "tiny", "--values", "2,4", "--epochs", "2", *TINY, *settings
    )
    assert result.returncode == 1
    assert result.stderr.count("DivergedError") == 2
    assert "Traceback" not in result.stderr
    [parent] = workspace.sweeps()
    assert parent.info.status == "FAILED"
    assert {c.info.status for c in workspace.store.children(parent.info.run_id)} == {"FAILED"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "nowhere"], "nowhere"),
        (["--dataset", "data", "--values", "2,7"], "model.focal_joints is 7"),
        (["--dataset", "data", "--values", "two"], "--values two"),
        (["--dataset", "data", "--set", "model.depth=3"], "model.depth"),
        (["--dataset", "data", "--benchmark", "x-set"], "x-sub, x-view"),
        (["--dataset", "data", "--local", "--tracking-uri", "sqlite:////nowhere/at/all.db"], "/nowhere/at"),
        (["--dataset", "data", "--values", ","], "--values ,"),
        (["--dataset", "data", "--local", "--tracking-uri", "http://127.0.0.1:9"], "cannot connect to"),
        (["--dataset", "data", "--address", "127.0.0.1:9"], "cannot connect to"),
        (["--resume", "0" * 32], "there is no run"),
        (["--resume", "last"], "32 hexadecimal digits"),
    ],
)
def test_invalid_input_is_rejected_before_the_sweep_starts(
    workspace: Workspace, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.folder)
    argv = arguments if "--resume" in arguments else ["--preset", "tiny", *TINY, *arguments]
    with pytest.raises(InputError, match=re.escape(message)):
        run_sweep(FOCAL_K, argv=argv)
    assert not workspace.sweeps()


def test_invalid_input_prints_one_line_and_exits_with_2(workspace: Workspace) -> None:
    result = workspace.sweep("--dataset", "data", "--preset", "tiny", "--values", "2,7", *TINY)
    assert result.returncode == 2
    assert result.stdout == ""
    assert (
        result.stderr
        == "error: model.focal_joints is 7, but skeleton stick-6 has 6 joints; e.g. --set model.focal_joints=4\n"
    )


def test_dry_run_prints_the_trials_and_starts_nothing(workspace: Workspace) -> None:
    result = workspace.sweep(
        "--dataset", "data", "--preset", "tiny", "--values", "2,4", "--seeds", "2", "--dry-run", *TINY
    )
    assert result.returncode == 0, result.stderr
    assert [f"K={k} joint s{s}" in result.stdout for k in (2, 4) for s in (0, 1)] == [True] * 4
    assert not workspace.sweeps()
