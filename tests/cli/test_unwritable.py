"""Places that cannot be written are reported in one line; a result that was computed is printed all the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fgst.cli import evaluate, train
from fgst.cli.command import run_command
from fgst.errors import InputError
from tests.support import small
from tests.support.workspace import TIMEOUT, TINY, Workspace

OPTIONS = ["--dataset", "data", "--preset", "tiny", "--epochs", "1", "--set", "model.focal_joints=2", *TINY]


@pytest.fixture
def workspace(tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """The working directory, with a data set, an empty tracking store and a file ``file``."""
    del tracking_uri  # its database is in the working directory
    small.write_small(tmp_path / "data")
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(tmp_path)
    yield workspace
    workspace.kill_all()


def test_unusable_checkpoint_folder_is_one_line_and_starts_no_run(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        run_command(lambda: train.main([*OPTIONS, "--checkpoints", "file/checkpoints"]))
    assert exit.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"error: {workspace.folder}/file/checkpoints: cannot be used (Not a directory)"
    assert not workspace.trainings()


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "/x"), OSError(30, "Read-only", "/x")])
def test_unusable_file_is_one_line(error: OSError, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as exit:
        run_command(main)
    assert exit.value.code == 2
    assert capsys.readouterr().err == f"error: /x: cannot be used ({error.strerror})\n"


def test_evaluation_that_cannot_be_stored_is_printed(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    train.main(OPTIONS)
    [run] = workspace.trainings()
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    shutil.rmtree(folder / "eval", ignore_errors=True)
    (folder / "eval").touch()
    capsys.readouterr()
    with pytest.raises(InputError, match=f"results were not stored with run {run.info.run_id} .*--no-log"):
        evaluate.main(["--run-id", run.info.run_id])
    assert "top-1" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["file", "x" * 100])
def test_unusable_folder_of_ray_is_one_line(
    place: str, tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ("x" * 100)).mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / place))
    process = workspace.start(*OPTIONS, "--values", "2")
    out, error = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out) == (2, "")
    assert error.splitlines()[-1].startswith("error: Ray cannot start on this machine (")
    assert "RAY_TMPDIR" in error.splitlines()[-1]
    assert "Traceback" not in error
    assert not workspace.sweeps()


def without_override(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``python -m`` as a user whom permissions stop: as root, without the capability to override them."""
    prefix = []
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root can write everywhere: install util-linux, or run the tests as another user")
        prefix = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    command = [*prefix, sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def test_read_only_store_is_one_line_and_a_result_is_printed(workspace: Workspace) -> None:
    train.main(OPTIONS)
    [run] = workspace.trainings()
    database = workspace.folder / "mlflow.db"
    database.chmod(0o444)
    workspace.folder.chmod(0o555)
    try:
        listing = without_override("fgst.runs", "list", folder=workspace.folder)
        evaluation = without_override("fgst.evaluate", "--run-id", run.info.run_id, folder=workspace.folder)
        training = without_override("fgst.train", *OPTIONS, "--checkpoints", "data", folder=workspace.folder)
    finally:
        workspace.folder.chmod(0o755)
    assert (listing.returncode, run.info.run_id in listing.stdout) == (0, True), listing.stderr
    fault = f"the tracking store sqlite:///{database} is read-only for this user"
    assert "top-1" in evaluation.stdout
    for failed in (evaluation, training):
        assert failed.returncode == 2
        assert fault in failed.stderr.splitlines()[-1]
        assert "Traceback" not in failed.stderr
