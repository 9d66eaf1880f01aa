"""The command line of a sweep as a user runs it: printed commands can be pasted, and failing output loses nothing."""

from __future__ import annotations

import functools
import html
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Run

from fgst.cli import evaluate
from fgst.cli.sweep import sweep
from fgst.cli.sweep_parser import build_parser
from fgst.cli.sweep_spec import DEMO_SEEDS, new_spec
from fgst.config import PRESETS
from fgst.data.synthetic import make_demo
from fgst.errors import InputError, Interrupted
from fgst.sweep.definition import SweepDefinition
from fgst.sweep.options import SweepOptions
from fgst.sweep.race import DEFAULT_ROUNDS
from fgst.tracking.tags import Tags
from fgst.tracking.uris import sqlite_uri
from tests.support import small
from tests.support.workspace import ROOT, TIMEOUT, TINY, Workspace

pytestmark = pytest.mark.long

# One process, without Ray.
FOCAL_K: SweepDefinition = runpy.run_path(str(ROOT / "sweeps" / "focal_k.py"))["definition"]
LOCAL = [*("--preset", "tiny", "--epochs", "1", "--local", "--cpus-per-trial", "1"), *TINY]


@pytest.fixture
def workspace(tmp_path: Path, tracking_uri: str) -> Iterator[Workspace]:
    """A working directory whose path contains characters that shells and URIs treat specially."""
    del tracking_uri  # its database is moved
    folder = tmp_path / "Jo's 100%20 sweeps? #1"
    folder.mkdir()
    shutil.move(tmp_path / "mlflow.db", folder)
    small.write_small(folder / "data set")
    workspace = Workspace(folder)
    yield workspace
    workspace.kill_all()


def paste(command: str, workspace: Workspace) -> subprocess.CompletedProcess[str]:
    """Run a command line in a shell in which ``python`` is this interpreter."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-c", command], cwd=workspace.folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )


def test_printed_commands_can_be_pasted(workspace: Workspace) -> None:
    uri = sqlite_uri(workspace.folder / "mlflow.db")
    options = ["--dataset", "data set", "--tracking-uri", uri, "--storage", "check points", *LOCAL]
    stopped = workspace.sweep(*options, "--values", "2,4", "--max-trials", "1")
    assert stopped.returncode == 0, stopped.stderr
    [resume] = re.findall(r"run the remaining trials with: (.+)$", stopped.stderr, re.MULTILINE)

    resumed = paste(resume, workspace)
    assert resumed.returncode == 0, resumed.stderr
    [sweep] = workspace.sweeps()
    assert [child.info.status for child in workspace.store.children(sweep.info.run_id)] == ["FINISHED"] * 2
    evaluate = resumed.stdout.splitlines()[-1]
    evaluated = paste(evaluate, workspace)
    assert "top-1" in evaluated.stdout, evaluated.stderr

    with workspace.store.artifacts(sweep.info.run_id, "report.html") as file:
        page = file.read_text(encoding="utf-8")
    commands = [html.unescape(text) for text in re.findall(r"<(?:code|pre)[^>]*>\s*(python .+?)\s*</", page, re.DOTALL)]
    assert len(commands) >= 2, "the report shows how to evaluate the best trial and how to resume the sweep"
    for command in set(commands) - {evaluate, resume}:
        result = paste(command, workspace)
        assert result.returncode == 0, f"{command}\n{result.stderr}"


def test_sweep_resumes_where_its_data_set_has_moved(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.folder)
    settings = [*LOCAL, "--values", "2,4", "--seeds", "1"]
    assert sweep(FOCAL_K, argv=["--dataset", "data set", *settings, "--max-trials", "1"]) == 0
    [run] = workspace.sweeps()
    shutil.move("data set", "moved%20data")
    resume = ["--resume", run.info.run_id, "--local"]
    with pytest.raises(InputError, match=f"data set of sweep {run.info.run_id} is no longer there.*--dataset"):
        sweep(FOCAL_K, argv=resume)
    with pytest.raises(InputError, match="remove --values, --epochs from the command"):
        sweep(FOCAL_K, argv=[*resume, "--dataset", "moved%20data", "--values", "2,6", "--epochs", "7", "--seeds", "1"])
    small.write_small(workspace.folder / "other", small.motion_clips(30))
    with pytest.raises(InputError, match="digest differs"):
        sweep(FOCAL_K, argv=[*resume, "--dataset", "other"])
    # Options may repeat those of the sweep.
    assert sweep(FOCAL_K, argv=[*resume, "--dataset", "moved%20data", *settings]) == 0
    assert sweep(FOCAL_K, argv=resume) == 0  # the new location was recorded
    first, second = sorted(
        workspace.store.children(run.info.run_id), key=lambda child: child.data.params["data.dataset"]
    )
    assert [Path(child.data.params["data.dataset"]).name for child in (first, second)] == ["data set", "moved%20data"]
    with pytest.raises(InputError, match=f"data set of run {first.info.run_id} is no longer there.*--dataset"):
        evaluate.main(["--run-id", first.info.run_id])
    evaluate.main(["--run-id", first.info.run_id, "--dataset", "moved%20data"])


def test_sweep_stopped_before_any_trial_ends_is_resumable(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace.folder)
    limit = ["--max-hours", "1e-09"]
    assert sweep(FOCAL_K, argv=["--dataset", "data set", *LOCAL, "--values", "2", *limit]) == 0
    [run] = workspace.sweeps()
    assert f"stopped by {' '.join(limit)}; run the remaining trials with: " in capsys.readouterr().err
    assert (run.info.status, run.data.tags[Tags.STOP_REASON]) == ("FINISHED", " ".join(limit))
    assert sweep(FOCAL_K, argv=["--resume", run.info.run_id, "--local"]) == 0
    finished_sweep(workspace)
    [report] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("report: ")]
    page = Path(report.removeprefix("report: "))
    assert page.is_absolute()
    assert run.info.run_id in page.parts
    assert "How many focal joints K?" in page.read_text()


def finished_sweep(workspace: Workspace) -> Run:
    """The only sweep, which must be finished and have its report."""
    [sweep] = workspace.sweeps()
    assert sweep.info.status == "FINISHED"
    assert [child.info.status for child in workspace.store.children(sweep.info.run_id)] == ["FINISHED"]
    with workspace.store.artifacts(sweep.info.run_id, "") as folder:
        assert (folder / "report.html").is_file()
        assert (folder / "table.csv").is_file()
    return sweep


@pytest.mark.parametrize(
    ("redirection", "code"),
    [
        pytest.param("| true; exit ${PIPESTATUS[0]}", 141, id="closed pipe"),
        pytest.param("> /dev/full", 1, id="full device"),
        pytest.param("| cat", 0, id="ASCII", marks=pytest.mark.slow),  # tests/cli/test_command.py has a quick test
    ],
)
def test_sweep_whose_table_cannot_be_printed_is_complete(workspace: Workspace, redirection: str, code: int) -> None:
    if "full" in redirection and not Path("/dev/full").exists():
        pytest.skip("this platform has no /dev/full")
    words = [sys.executable, str(ROOT / "sweeps" / "focal_k.py"), "--dataset", "data set", *LOCAL, "--values", "4"]
    result = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$@" {redirection}', "bash", *words],
        cwd=workspace.folder,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    finished_sweep(workspace)
    if not code:
        assert result.stdout.isascii()
        assert "validation" in result.stdout


def test_ctrl_c_after_the_last_trial_prints_the_command_that_completes_the_sweep(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(workspace.folder)
    arguments = ["--dataset", "data set", *LOCAL, "--values", "4"]
    with monkeypatch.context() as patch:
        patch.setattr("fgst.sweep.callbacks.TablePrinter.on_end", interrupt)
        with pytest.raises(Interrupted, match="Complete the sweep with: ") as interruption:
            sweep(FOCAL_K, argv=arguments)
    words = shlex.split(str(interruption.value).split(" with: ")[1])
    assert sweep(FOCAL_K, argv=words[2:]) == 0
    finished_sweep(workspace)


def test_sweep_without_data_set_uses_the_demo_and_its_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fgst.data.synthetic.make_demo", functools.partial(make_demo, clips=48))
    assert PRESETS["demo"].model.focal_joints in FOCAL_K.demo_values
    for options, values, seeds in (
        ((), FOCAL_K.demo_values, DEMO_SEEDS),
        (("--values", "2,4", "--seeds", "2"), (2, 4), 2),
        (("--race",), FOCAL_K.demo_values, DEFAULT_ROUNDS),
        (("--preset", "tiny", "--values", "2,4"), (2, 4), 1),
    ):
        argv = [*options, "--dry-run"]
        spec, _, _ = new_spec(FOCAL_K, SweepOptions.from_values(vars(build_parser(FOCAL_K, None).parse_args(argv))))
        assert (spec.parameters[0].values, spec.seeds, spec.generated) == (values, seeds, True)
        assert spec.setting.preset == ("tiny" if "tiny" in options else "demo")
    chosen = [line for line in capsys.readouterr().err.splitlines() if "--preset" in line]
    listed = ",".join(map(str, FOCAL_K.demo_values))
    assert chosen == [
        f"no --preset: using --preset demo --values {listed} --seeds {DEMO_SEEDS}",
        "no --preset: using --preset demo",
        f"no --preset: using --preset demo --values {listed}",
    ]
