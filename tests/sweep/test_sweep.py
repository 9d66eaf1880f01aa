"""Whole sweeps as a user runs them: the script, real Ray, real MLflow."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal

import pytest

from fgst.cli.sweep import sweep as run_sweep
from fgst.errors import InputError
from fgst.sweep.backends.resources import Resources, max_concurrent_trials, resources_per_trial
from fgst.sweep.definition import SweepDefinition
from fgst.sweep.spec import SweepSpec
from fgst.tracking.tags import Tags
from tests.support.workspace import ROOT, TIMEOUT, TINY, Workspace, metrics_by_trial

FOCAL_K: SweepDefinition = runpy.run_path(str(ROOT / "sweeps" / "focal_k.py"))["definition"]


def test_sweep_of_two_trials(workspace: Workspace) -> None:
    arguments = [
        "--dataset",
        "data",
        "--preset",
        "tiny",
        "--values",
        "2,4",
        "--epochs",
        "2",
        "--cpus-per-trial",
        "1",
        *TINY,
    ]
    done = workspace.sweep(*arguments)
    assert done.returncode == 0, done.stderr
    [parent] = workspace.sweeps()
    children = workspace.store.children(parent.info.run_id)
    assert parent.info.status == "FINISHED"
    assert [c.info.status for c in children] == ["FINISHED"] * 2
    assert {c.data.params["model.focal_joints"] for c in children} == {"2", "4"}

    # The table has each value; the last line is the next command, and that command works on each trial.
    assert re.search(r"│\s+2\b.*│", done.stdout)
    assert re.search(r"│\s+4\b.*│", done.stdout)
    last = done.stdout.strip().splitlines()[-1]
    best = max(children, key=lambda c: c.data.metrics["val/top1"])
    match = re.fullmatch(r"python -m fgst.evaluate --run-id ([0-9a-f]{32})", last)
    assert match
    named = next(c for c in children if c.info.run_id == match[1])
    assert named.data.metrics["val/top1"] == best.data.metrics["val/top1"]
    assert parent.data.tags["fgst.best_run"] == match[1]
    for child in children:
        report = workspace.module("fgst.evaluate", "--run-id", child.info.run_id, "--json")
        assert report.returncode == 0, report.stderr
        values = json.loads(report.stdout)  # exactly one object
        assert values["top1"] == child.data.metrics["test/top1"]

    with workspace.store.artifacts(parent.info.run_id, "") as folder:
        spec = SweepSpec.from_json((folder / "sweep.json").read_text())
        table = (folder / "table.csv").read_text().splitlines()
        page = (folder / "report.html").read_text()
        assert list((folder / "figures").glob("*.png"))
    assert spec.title in page
    assert f"python -m fgst.evaluate --run-id {match[1]}" in page
    assert {trial.trial_id for trial in spec.trials} == {c.data.tags[Tags.TRIAL_ID] for c in children}
    assert [line.partition(",")[0] for line in table] == ["K", "2", "4"]
    # All is in MLflow, nothing is left over but the study.
    assert [path.name for path in (workspace.folder / "ray_results").iterdir()] == ["optuna.db"]

    # In one process, without Ray: the same trials, the same figures, the same table but for the minutes.
    alone = workspace.sweep(*arguments, "--local")
    assert alone.returncode == 0, alone.stderr
    [other] = [run for run in workspace.sweeps() if run.info.run_id != parent.info.run_id]
    assert metrics_by_trial(workspace.store.children(other.info.run_id)) == metrics_by_trial(children)
    with workspace.store.artifacts(other.info.run_id, "table.csv") as file:
        assert [line.split(",")[:7] for line in file.read_text().splitlines()] == [
            line.split(",")[:7] for line in table
        ]

    refused = workspace.module("fgst.evaluate", "--run-id", parent.info.run_id)
    assert refused.returncode == 2
    assert match[1] in refused.stderr  # a sweep is no network; its best trial is named


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(workspace: Workspace) -> None:
    process = workspace.start("--dataset", "data", "--preset", "tiny", "--values", "2,4", "--epochs", "40", *TINY)
    sweep = workspace.wait_for_epoch(process, 1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole foreground group
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, err
    assert re.search(rf"python \S*focal_k.py --resume {sweep}$", err, re.MULTILINE)
    assert "Traceback" not in err
    assert workspace.store.run(sweep).info.status == "KILLED"
    assert {c.info.status for c in workspace.store.children(sweep)} == {"KILLED"}


@pytest.mark.slow
def test_failed_trials_are_told_with_their_reason(workspace: Workspace) -> None:
    settings = ["--set", "train.lr=1e30", "--set", "train.warmup=0"]
    done = workspace.sweep(
        "--dataset", "data", "--preset", "tiny", "--values", "2,4", "--epochs", "2", *TINY, *settings
    )
    assert done.returncode == 1
    assert done.stderr.count("DivergedError") == 2
    assert "Traceback" not in done.stderr
    [parent] = workspace.sweeps()
    assert parent.info.status == "FAILED"
    assert {c.info.status for c in workspace.store.children(parent.info.run_id)} == {"FAILED"}


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--dataset", "nowhere"], "nowhere"),
        (["--dataset", "data", "--values", "2,7"], "model.focal_joints is 7"),
        (["--dataset", "data", "--values", "two"], "--values two"),
        (["--dataset", "data", "--set", "model.depth=3"], "model.depth"),
        (["--dataset", "data", "--benchmark", "x-set"], "x-sub, x-view"),
        (["--dataset", "data", "--tracking-uri", "sqlite:////nowhere/at/all.db"], "/nowhere/at"),
        (["--dataset", "data", "--values", ","], "--values ,"),
        (["--dataset", "data", "--tracking-uri", "http://127.0.0.1:9"], "cannot connect to"),
        (["--dataset", "data", "--address", "127.0.0.1:9"], "cannot connect to"),
        (["--resume", "0" * 32], "there is no run"),
        (["--resume", "last"], "32 hexadecimal digits"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    workspace: Workspace, arguments: list[str], names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.folder)
    asked = arguments if "--resume" in arguments else ["--preset", "tiny", *TINY, *arguments]
    with pytest.raises(InputError, match=re.escape(names)):
        run_sweep(FOCAL_K, argv=asked)
    assert not workspace.sweeps()


def test_bad_input_is_one_line_and_exit_code_2(workspace: Workspace) -> None:
    done = workspace.sweep("--dataset", "data", "--preset", "tiny", "--values", "2,7", *TINY)
    assert done.returncode == 2
    assert done.stdout == ""
    assert (
        done.stderr
        == "error: model.focal_joints is 7, but skeleton stick-6 has 6 joints; e.g. --set model.focal_joints=4\n"
    )


@pytest.mark.parametrize(
    ("cluster", "asked", "given", "trials"),
    [
        ({"CPU": 2.0}, Resources(), {"CPU": 1.0, "GPU": 0.0}, 8),
        ({"CPU": 16.0}, Resources(), {"CPU": 5.0, "GPU": 0.0}, 3),
        ({"CPU": 16.0}, Resources(max_concurrent=2), {"CPU": 8.0, "GPU": 0.0}, 8),
        ({"CPU": 16.0}, Resources(cpus_per_trial=2), {"CPU": 2.0, "GPU": 0.0}, 8),
        ({"CPU": 16.0, "GPU": 2.0}, Resources(), {"CPU": 1.0, "GPU": 1.0}, 8),
        ({"CPU": 16.0, "GPU": 2.0}, Resources(gpus_per_trial=0.25), {"CPU": 1.0, "GPU": 0.25}, 8),
        ({"CPU": 16.0, "GPU": 2.0}, Resources(gpus_per_trial=0), {"CPU": 2.0, "GPU": 0.0}, 8),
    ],
)
def test_shares_of_a_trial(cluster: dict[str, float], asked: Resources, given: dict[str, float], trials: int) -> None:
    assert resources_per_trial([cluster], asked, trials) == given


def test_a_trial_lies_on_one_node() -> None:
    nodes = [{}, {"CPU": 4.0}, {"CPU": 4.0}, {"CPU": 4.0, "GPU": 2.0}]
    on_cpu = Resources(gpus_per_trial=0)
    assert [resources_per_trial(nodes, on_cpu, trials)["CPU"] for trials in (1, 2, 3, 4, 6, 12, 50)] == [
        4,
        4,
        4,
        2,
        2,
        1,
        1,
    ]
    assert max_concurrent_trials(nodes, {"CPU": 3.0, "GPU": 0.0}) == 3
    assert max_concurrent_trials(nodes, {"CPU": 1.0, "GPU": 0.6}) == 2  # of one GPU each
    for asked, words in (
        (Resources(gpus_per_trial=0, cpus_per_trial=5), "--cpus-per-trial is 5, but no node has more than 4"),
        (Resources(gpus_per_trial=1, cpus_per_trial=8), "--cpus-per-trial is 8, but no node has more than 4"),
    ):
        with pytest.raises(InputError, match=words):
            resources_per_trial(nodes, asked, 1)
    with pytest.raises(InputError, match="no node has both 4 cores and 1 GPUs"):
        resources_per_trial([{"CPU": 4.0}, {"GPU": 1.0}], Resources(cpus_per_trial=4), 1)


@pytest.mark.parametrize(
    ("cluster", "asked", "names"),
    [
        ({"CPU": 2.0}, Resources(gpus_per_trial=0.5), "Ray finds no GPU"),
        ({"CPU": 2.0, "GPU": 1.0}, Resources(gpus_per_trial=2), "there are 1 GPUs"),
        ({"CPU": 2.0}, Resources(cpus_per_trial=4), "there are 2 cores"),
    ],
)
def test_what_the_cluster_can_never_give_is_refused(cluster: dict[str, float], asked: Resources, names: str) -> None:
    # Ray would wait for it for ever.
    with pytest.raises(InputError, match=names):
        resources_per_trial([cluster], asked, 1)


def test_dry_run_prints_the_trials_and_starts_nothing(workspace: Workspace) -> None:
    done = workspace.sweep(
        "--dataset", "data", "--preset", "tiny", "--values", "2,4", "--seeds", "2", "--dry-run", *TINY
    )
    assert done.returncode == 0, done.stderr
    assert [f"K={k} joint s{s}" in done.stdout for k in (2, 4) for s in (0, 1)] == [True] * 4
    assert not workspace.sweeps()
