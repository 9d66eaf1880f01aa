"""``python -m fgst.train``: the commands that it prints evaluate and resume the training."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from fgst.cli import evaluate, train
from fgst.cli.command import run_command
from fgst.data.dataset import ArrowDataset
from fgst.data.splits import Benchmark
from fgst.errors import InputError, Interrupted
from fgst.tracking.run import TrackedRun
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags
from fgst.tracking.training import track
from tests.support.small import write_small

SETTINGS = ("--preset", "tiny", "--epochs", "2", "--set", "model.focal_joints=4", "--set", "model.parts=3")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    return write_small(tmp_path_factory.mktemp("data sets") / "small")


@pytest.fixture
def options(dataset: ArrowDataset, tmp_path: Path, tracking_uri: str) -> list[str]:
    """Options of a short training, with spaces in all paths."""
    folder = tmp_path / "tracking store"
    folder.mkdir()
    shutil.copy(tmp_path / "mlflow.db", folder)
    uri = f"sqlite:///{folder}/mlflow.db"
    paths = ["--dataset", str(dataset.path), "--checkpoints", str(tmp_path / "my checkpoints"), "--tracking-uri", uri]
    return [*paths, *SETTINGS, "--device", "cpu", "--threads", "1"]


def arguments(command: str, module: str) -> list[str]:
    """Return the arguments of a printed command as the shell would split them."""
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", module]
    return words[3:]


def test_printed_evaluate_command_works(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train.main(options)
    command = capsys.readouterr().out.splitlines()[-1]
    evaluate.main(arguments(command, "fgst.evaluate"))
    assert "top-1" in capsys.readouterr().out


def test_divergence_is_one_line_with_exit_code_1(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = options[options.index("--tracking-uri") + 1]
    monkeypatch.setattr("sys.argv", ["train", *options, "--set", "train.lr=1e30", "--set", "train.warmup=0"])
    with pytest.raises(SystemExit) as exit_request:
        run_command(train.main)
    assert exit_request.value.code == 1
    held_out, run_line, error = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"validation: 1 of 4 subjects \(\d\): 6 clips", held_out)
    assert re.fullmatch(
        r"error: (the (loss|norm of the gradient) is (nan|inf) in epoch 1 \(train clips\)|epoch 1, val clips: .+): the "
        r"training diverged; "
        r"try a lower train\.lr \(it was 1e\+30\) or --set train\.clip_norm=1",
        error,
    )
    run = TrackingStore(uri).run(run_line.split()[1])
    assert run.info.status == "FAILED"
    assert error.removeprefix("error: ") in run.data.tags[Tags.REASON]


def test_what_cannot_be_held_out_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = write_small(tmp_path / "data", benchmarks=[Benchmark("x-sub", "subject", (3,))])
    common = ["--dataset", "data", *SETTINGS, "--device", "cpu", "--threads", "1", "--epochs", "1"]
    with pytest.raises(InputError, match=r"come from one subject.*data\.validation_by=clip, or .*--protocol paper"):
        train.main([*common, "--set", "data.validation_by=subject"])
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    train.main(common)  # holds out recordings instead
    store = TrackingStore(f"sqlite:///{tmp_path}/mlflow.db")
    [run] = store.runs(list(store.experiments()))
    assert run.data.params["data.validation_by"] == "clip"
    assert store.scores(run.info.run_id, "val").num_clips == len(dataset.splits().val) > 0


def test_printed_resume_command_works(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:

        def interrupt_after_first_epoch(*arguments: Any) -> Any:
            for _ in track(*arguments):
                raise KeyboardInterrupt

        patch.setattr("fgst.tracking.training.track", interrupt_after_first_epoch)
        with pytest.raises(Interrupted, match="Resume with: ") as interruption:
            train.main([*options, "--resume=auto"])
    command = str(interruption.value).split("Resume with: ")[1]
    resumed = arguments(command, "fgst.train")
    assert resumed.count("--resume") == 1
    assert "--resume=auto" not in resumed
    run_id = resumed[-1]
    capsys.readouterr()

    train.main(resumed)
    output = capsys.readouterr()
    assert "resuming after epoch 1" in output.err
    assert f"--run-id {run_id}" in output.out
    with pytest.raises(InputError, match=rf"run {run_id} is finished; .*--run-id {run_id} --tracking-uri"):
        train.main(resumed)
    assert not list((tmp_path / "my checkpoints").iterdir())


def test_interruption_before_the_first_step_does_not_leave_the_run_running(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: TrackedRun, *dataset: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrackedRun, "log_dataset", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train.main(options)
    store = TrackingStore(options[options.index("--tracking-uri") + 1])
    assert [run.info.status for run in store.runs(list(store.experiments()))] == ["KILLED"]


def test_interrupted_training_resumes_on_a_moved_data_set(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: TrackedRun, *metrics: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrackedRun, "log_metrics", interrupt)
        with pytest.raises(Interrupted):
            train.main(options)
    old = options[options.index("--dataset") + 1]
    new = shutil.copytree(old, tmp_path / "moved")
    moved = [str(new) if word == old else word for word in options]
    store = TrackingStore(options[options.index("--tracking-uri") + 1])
    [run] = store.runs(list(store.experiments()))
    train.main([*moved, "--resume", run.info.run_id])
    assert store.run(run.info.run_id).info.status == "FINISHED"
