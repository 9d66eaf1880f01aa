"""The command ``fgst runs``: tables, JSON, invalid arguments and exit codes."""

from __future__ import annotations

import csv
import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from fgst.cli.runs import main
from fgst.cli.runs_tables import format_size
from fgst.config import PRESETS
from fgst.errors import InputError
from fgst.tracking.store import TrackingStore
from fgst.tracking.training import trial_tags
from tests.tracking.sample_runs import SampleRuns


@pytest.fixture
def runs(tracking_uri: str, tmp_path: Path) -> SampleRuns:
    """An empty tracking store with methods that add runs."""
    return SampleRuns(tracking_uri, tmp_path)


def run_json(runs: SampleRuns, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Run the command and return the JSON object that it prints."""
    main([*arguments, "--tracking-uri", runs.uri, "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("arguments", [["list"], ["list", "--sweep"], ["best"], ["compare"], ["gc"]])
def test_tables_fit_80_columns_and_show_full_ids(
    runs: SampleRuns, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    sweep, trials = runs.add_sweep(40.0, 60.0)
    runs.store.client.set_tag(trials[0], "mlflow.runName", "[red]a name[/red] \x1b[31m of " + "great length " * 9)
    run_ids = [sweep] if "--sweep" in arguments else trials if "compare" in arguments else []
    main([*arguments, *run_ids, "--tracking-uri", runs.uri])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    if arguments[0] != "compare":
        assert (sweep if arguments == ["list"] else trials[0]) in out
    if arguments != ["list"]:
        assert "[red]a name" in out


def test_commands_print_json(runs: SampleRuns, capsys: pytest.CaptureFixture[str]) -> None:
    sweep, trials = runs.add_sweep(40.0, 60.0)
    [row] = run_json(runs, capsys, "list")["runs"]
    assert row["run_id"] == sweep
    assert [row["run_id"] for row in run_json(runs, capsys, "list", "--sweep", sweep)["runs"]] == trials
    [group] = run_json(runs, capsys, "best")["groups"]
    assert group["runs"][0]["run_id"] == trials[1]
    assert run_json(runs, capsys, "compare", *trials)["parameters"] == {"K": ["0", "1"]}
    assert len(run_json(runs, capsys, "gc")["found"]) == 2
    assert len(run_json(runs, capsys, "gc", "--delete")["found"]) == 2
    assert run_json(runs, capsys, "gc")["found"] == []


@pytest.mark.parametrize("command", ["list", "best"])
def test_narrow_terminal_shows_all_values(
    command: str, runs: SampleRuns, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = runs.add_trial(61.5, test=58.25)
    monkeypatch.setenv("COLUMNS", "40")
    main([command, "--tracking-uri", runs.uri])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert all(len(line) <= 40 for line in lines)
    assert {run_id, "val %: 61.5", "test %: 58.2"} <= set(lines)


# Garbage collection


def test_gc_reports_remote_storage(
    runs: SampleRuns, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.add_sweep(40.0, 60.0)
    monkeypatch.setattr(TrackingStore, "local_artifacts", lambda self, run: None)
    main(["gc", "--tracking-uri", runs.uri])
    assert "this command deletes nothing" in " ".join(capsys.readouterr().out.split())


@pytest.mark.skipif(os.geteuid() == 0, reason="root has permission to write everywhere")
def test_gc_reports_folders_without_permission(runs: SampleRuns, capsys: pytest.CaptureFixture[str]) -> None:
    sweep, _ = runs.add_sweep()
    storage = runs.folder / "ray_results" / sweep / "key"
    storage.chmod(0o500)
    with pytest.raises(SystemExit) as raised:
        main(["gc", "--delete", "--tracking-uri", runs.uri, "--json"])
    storage.chmod(0o700)
    assert raised.value.code == 1
    assert "cannot be deleted" in json.loads(capsys.readouterr().out)["found"][0]["fault"]


def test_gc_exits_with_1_if_deleting_fails(
    runs: SampleRuns, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.add_sweep()

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(SystemExit) as raised:
        main(["gc", "--delete", "--tracking-uri", runs.uri, "--json"])
    assert raised.value.code == 1
    report = json.loads(capsys.readouterr().out)
    assert report["found"][0]["fault"] == "cannot be deleted (Permission denied)"
    assert report["removed_bytes"] == 0


# Invalid arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--experiment", "none"], "there is no such experiment; existing: Default, small x-sub"),
        (["best", "--experiment", ""], "there is no such experiment"),
        (["list", "--sweep", "x"], "not 32 hexadecimal digits"),
        (["list", "--sweep", "0" * 32], "there is no run"),
        (["curves", "0" * 32], "there is no run"),
        (["compare", "0" * 32], "two runs or more"),
        (["compare", "0" * 32, "0" * 32], "twice"),
        (["compare", "../../etc/passwd", "\x00"], "not 32 hexadecimal digits"),
        (["list", "--limit", "0"], "must be greater than 0"),
        (["remove"], "invalid choice"),
        ([], "required"),
    ],
)
def test_invalid_arguments_are_rejected(runs: SampleRuns, arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main([*arguments, *(["--tracking-uri", runs.uri] if arguments and arguments != ["remove"] else [])])


@pytest.mark.parametrize("command", [["list", "--sweep"], ["curves"]])
def test_trial_instead_of_sweep_is_rejected_with_working_command(
    runs: SampleRuns, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    trial = runs.add_trial(1.0)
    with pytest.raises(InputError, match=f"run {trial} is not a sweep; list the sweeps with ") as error:
        main([*command, trial, "--tracking-uri", runs.uri])
    words = shlex.split(str(error.value).partition(" with ")[2])
    assert words[:3] == ["python", "-m", "fgst.runs"]
    main(words[3:])
    assert trial in capsys.readouterr().out


def test_list_does_not_create_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such tracking store"):
        main(["list", "--tracking-uri", f"sqlite:///{tmp_path}/none.db"])
    assert list(tmp_path.iterdir()) == []


def add_training(runs: SampleRuns, experiment: str, digest: str, **values: Any) -> str:
    """Add a finished training with all of its settings; return its run id."""
    config = PRESETS["small"].with_values({name.replace("__", "."): value for name, value in values.items()})
    tags = trial_tags(config, experiment, digest)
    run = runs.store.start(runs.store.experiment(f"{experiment} x-sub"), f"key {experiment} {values}", "a trial", tags)
    run.log_settings(config.flat())
    run.log_metrics({"test/top1": 90.0, "val/top1": 80.0}, 1)
    run.finish()
    return run.run_id


def test_compared_runs_say_what_they_were_trained_with(
    runs: SampleRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"data__benchmark": "x-sub", "train__epochs": 16, "train__repeat": 5}
    one = add_training(runs, "demo", "a" * 64, **settings)
    same = add_training(runs, "demo", "a" * 64, **settings, data__protocol="paper", train__lr=0.5)
    other = add_training(runs, "nw-ucla", "b" * 64, **settings)
    report = run_json(runs, capsys, "compare", one, same)
    assert report["same_clips"]
    assert [run["setting"] for run in report["runs"]] == [
        {
            "data": "demo x-sub",
            "protocol": protocol,
            "modality": "joint",
            "preset": preset,
            "passes": "80",
            "seeds": "1",
        }
        for protocol, preset in (("validation", "small"), ("paper", "small (lr=0.5)"))
    ]
    assert not run_json(runs, capsys, "compare", one, other)["same_clips"]

    latex, table = tmp_path / "t.tex", tmp_path / "t.csv"
    main(["compare", one, other, "--tracking-uri", runs.uri, "--latex", str(latex), "--csv", str(table)])
    out = " ".join(capsys.readouterr().out.split())
    assert "accuracies on different test clips cannot be compared" in out
    assert "accuracies on different test clips cannot be compared" in latex.read_text()
    rows = {row[0]: row[1:] for row in csv.reader(table.open())}
    assert rows["data set"] == ["demo x-sub", "nw-ucla x-sub"]
    assert rows["test/top1"] == ["90.0", "90.0"]

    main(["list", "--tracking-uri", runs.uri])
    assert "paper, joint, small (lr=0.5), 80 passes" in " ".join(capsys.readouterr().out.split())


def test_list_and_best_are_written_to_files(runs: SampleRuns, tmp_path: Path) -> None:
    sweep, trials = runs.add_sweep(40.0, 60.0)
    table = tmp_path / "t.csv"
    for arguments, ids in ((["list"], [sweep]), (["list", "--sweep", sweep], trials), (["best"], trials[::-1])):
        main([*arguments, "--tracking-uri", runs.uri, "--csv", str(table), "--latex", str(tmp_path / "t.tex")])
        assert [row["run_id"] for row in csv.DictReader(table.open())] == ids
        assert all(run_id in (tmp_path / "t.tex").read_text() for run_id in ids)
    with pytest.raises(InputError, match=r"--csv missing/t\.csv: there is no folder missing"):
        main(["best", "--tracking-uri", runs.uri, "--csv", "missing/t.csv"])


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2 * 10**12, "2.0 TB")])
def test_format_size(count: int, text: str) -> None:
    assert format_size(count) == text
