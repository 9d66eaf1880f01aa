"""``--resolve``, ``--race``, ``--dry-run`` and the end of real sweeps: what they say about their precision."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path

import pytest

from fgst.cli.sweep import sweep
from fgst.errors import InputError
from fgst.sweep.definition import SweepDefinition
from fgst.sweep.spec import SweepSpec
from fgst.tracking.tags import Tags
from tests.support import small
from tests.support.workspace import ROOT, TINY, Workspace

REAL_FOCAL_K: SweepDefinition = runpy.run_path(str(ROOT / "sweeps" / "focal_k.py"))["definition"]
MODALITIES: SweepDefinition = runpy.run_path(str(ROOT / "sweeps" / "modalities.py"))["definition"]
LOCAL = [*("--dataset", "data", "--preset", "tiny", "--epochs", "1", "--local", "--cpus-per-trial", "1"), *TINY]

pytestmark = pytest.mark.long


def spec_of(workspace: Workspace, run_id: str) -> SweepSpec:
    with workspace.store.artifacts(run_id, "sweep.json") as file:
        return SweepSpec.from_json(file.read_bytes())


def test_sweep_says_what_it_can_resolve_and_what_it_found(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace.folder)
    assert sweep(REAL_FOCAL_K, argv=[*LOCAL, "--values", "2,4", "--seeds", "2"]) == 0
    output = capsys.readouterr()
    assert re.search(r"^what 2 seeds and \d+ validation clips can resolve \(95 %, power 80 %\):$", output.err, re.M)
    assert "a default for " in output.err
    words = output.out.replace("\n", " ")
    assert re.search(r"With other seeds, on these clips \(95 %\): [a-z ]+ K=2: 4\.", words)
    assert re.search(r"Also on other clips \(95 %\): [a-z ]+ K=2: 4\.", words)
    [run] = workspace.sweeps()
    with workspace.store.artifacts(run.info.run_id, "report.html") as file:
        assert "Also on other clips (95 %)" in file.read_text()

    # The next sweep of this data set plans with that noise, and says so before anything is started.
    assert sweep(REAL_FOCAL_K, argv=[*LOCAL, "--values", "2,4", "--seeds", "2", "--dry-run"]) == 0
    assert re.search(r"points, 4 earlier trainings of [\d.]+ passes, 1 degrees of freedom\)", capsys.readouterr().out)
    assert len(workspace.sweeps()) == 1

    # Without the scores, the table remains, and says that the noise of clips is unknown.
    for folder in (workspace.folder / "mlruns").rglob("scores"):
        shutil.rmtree(folder)
    assert sweep(REAL_FOCAL_K, argv=["--resume", run.info.run_id, "--local"]) == 0
    assert "The noise of clips is unknown for the rows" in capsys.readouterr().out.replace("\n", " ")


def test_resolve_sets_the_seeds_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small.write_small(tmp_path / "data")
    assert sweep(REAL_FOCAL_K, argv=[*LOCAL, "--values", "2,4", "--resolve", "20", "--dry-run"]) == 0
    trials = re.search(r"trials +(\d+)", capsys.readouterr().out)
    assert trials is not None
    # 6 clips at 90 %: 12.2 points. Two values: as many trials as twice the seeds.
    assert int(trials[1]) == 2 * 6
    with pytest.raises(InputError) as error:
        sweep(REAL_FOCAL_K, argv=[*LOCAL, "--values", "2,4", "--resolve", "1", "--dry-run"])
    message = (
        r"--resolve 1: would need 1,\d\d\d seeds = [\d.,]+ h, and sets at most 30; --seeds 30 resolves 6\.\d points"
    )
    assert re.match(message, str(error.value))
    assert "standard deviation between seeds: 12.2 points (a default for 6 clips at 90 %)" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resolve", "2", "--seeds", "3"], "--resolve chooses the number of seeds; remove --seeds"),
        (["--resolve", "2", "--folds", "2"], "--resolve chooses the number of seeds; remove --folds"),
        (["--resolve", "2", "--search", "random"], "--resolve chooses the seeds of a grid"),
        (["--resolve", "2", "--values", "4"], "--resolve needs at least two values"),
        (["--race", "--seeds", "1"], "--race needs at least two seeds"),
        (["--race", "--protocol", "paper"], "--race compares values by validation accuracy"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    small.write_small(tmp_path / "data")
    values = [] if "--values" in options or "--search" in options else ["--values", "2,4"]
    with pytest.raises(InputError, match=message):
        sweep(REAL_FOCAL_K, argv=[*LOCAL, *values, *options])
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_race_is_stopped_and_resumed(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace.folder)
    options = [*LOCAL, "--values", "2,4", "--race", "--folds", "2"]
    assert sweep(REAL_FOCAL_K, argv=[*options, "--max-trials", "3"]) == 0
    output = capsys.readouterr()
    assert "at most 4 trials on small" in output.err
    assert "The race is not complete: 1 of at most 2 rounds" in output.out.replace("\n", " ")
    [run] = workspace.sweeps()
    spec = spec_of(workspace, run.info.run_id)
    assert (spec.race, spec.seeds) == (True, 2)
    with pytest.raises(InputError, match="remove --resolve from the command"):
        sweep(REAL_FOCAL_K, argv=["--resume", run.info.run_id, "--local", "--resolve", "3"])
    assert sweep(REAL_FOCAL_K, argv=["--resume", run.info.run_id, "--local", "--race"]) == 0
    assert "The race trained 4 of at most 4 trials (0 saved, 0 %)" in capsys.readouterr().out.replace("\n", " ")
    children = workspace.store.children(run.info.run_id)
    # Round by round, unlike a grid.
    assert [(c.data.params["model.focal_joints"], c.data.tags[Tags.SEED]) for c in children] == [
        ("2", "0"), ("4", "0"), ("2", "1"), ("4", "1"),
    ]  # fmt: skip


def test_race_of_modalities_ends_with_an_ensemble(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.folder)
    options = [*LOCAL, "--values", "joint,bone", "--race", "--seeds", "2", "--set", "model.focal_joints=4"]
    assert sweep(MODALITIES, argv=options) == 0
    [run] = workspace.sweeps()
    assert Tags.ENSEMBLE in run.data.tags


@pytest.mark.slow
def test_race_on_ray(workspace: Workspace) -> None:
    arguments = ["--dataset", "data", "--preset", "tiny", "--values", "2,4", "--epochs", "1", "--race", "--seeds", "2"]
    result = workspace.sweep(*arguments, "--cpus-per-trial", "1", *TINY)
    assert result.returncode == 0, result.stderr
    assert "The race trained 4 of at most 4 trials" in result.stdout.replace("\n", " ")
    [run] = workspace.sweeps()
    assert run.info.status == "FINISHED"
    children = workspace.store.children(run.info.run_id)
    rounds = [int(child.data.tags[Tags.SEED]) for child in children]
    assert rounds == sorted(rounds) == [0, 0, 1, 1]
