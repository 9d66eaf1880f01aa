"""A project folder that is moved, renamed or copied keeps its artifacts next to its database."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fgst.cli.runs import main as runs_command
from fgst.errors import InputError
from fgst.tracking.queries import collect_garbage
from fgst.tracking.relocation import relocate
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags
from fgst.tracking.uris import sqlite_uri
from tests.tracking.sample_runs import SampleRuns


@pytest.fixture
def original(tmp_path: Path) -> SampleRuns:
    """A project folder with a tracking store; its name needs quoting in URIs."""
    folder = tmp_path / "my 100%25 project?"
    folder.mkdir()
    return SampleRuns(sqlite_uri(folder / "mlflow.db"), folder)


def files(folder: Path) -> dict[str, bytes]:
    """Contents of all files, without the database, by relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".db"}


def copy_of(project: SampleRuns, name: str = "copy") -> Path:
    return Path(shutil.copytree(project.folder, project.folder.parent / name))


def test_garbage_collection_in_a_copy_leaves_the_original_alone(original: SampleRuns) -> None:
    sweep, trials = original.add_sweep(40.0, 60.0, 50.0)
    copy = copy_of(original)
    before = files(original.folder)
    runs_command(["gc", "--delete", "--tracking-uri", str(copy / "mlflow.db")])
    assert files(original.folder) == before
    left = files(copy)
    assert sum(name.endswith(".safetensors") for name in left) == 1
    assert not (copy / "ray_results" / sweep).exists()
    with original.store.artifacts(trials[0], "checkpoint/model.safetensors"):
        pass


def test_copy_writes_next_to_its_own_database(original: SampleRuns) -> None:
    original.add_sweep(40.0)
    copy = copy_of(original)
    before = files(original.folder)
    store = TrackingStore(str(copy / "mlflow.db"))
    run = store.start(store.experiment("small x-sub"), "new", "new", {})
    (copy / "fresh").mkdir()
    (copy / "fresh" / "notes.txt").write_text("text")
    run.log_artifacts(copy / "fresh")
    assert files(original.folder) == before
    assert list((copy / "mlruns").rglob("notes.txt"))


def test_renamed_project_finds_artifacts_checkpoints_and_study(original: SampleRuns) -> None:
    sweep, trials = original.add_sweep(40.0, 60.0)
    original.store.client.set_tag(sweep, Tags.STUDY_STORAGE, sqlite_uri(original.folder / "ray_results" / "optuna.db"))
    original.store.register("fgst-small", trials[1], "checkpoint", {})
    renamed = original.folder.rename(original.folder.parent / "renamed")
    store = TrackingStore(str(renamed / "mlflow.db"))
    with store.artifacts(trials[1], "checkpoint/model.safetensors") as file:
        assert file.is_file()
    tags = store.run(sweep).data.tags
    assert tags[Tags.STORAGE] == str(renamed / "ray_results" / sweep)
    assert tags[Tags.STUDY_STORAGE] == sqlite_uri(renamed / "ray_results" / "optuna.db")
    artifacts = store.local_artifacts(store.run(trials[1]))
    assert artifacts is not None
    assert artifacts.is_relative_to(renamed)
    version = store.client.get_model_version_download_uri("fgst-small", "1")
    assert str(original.folder) not in version
    assert not original.folder.exists()


def test_second_move_is_followed_too_and_other_folders_with_the_same_beginning_are_not(original: SampleRuns) -> None:
    sweep, trials = original.add_sweep(40.0)
    neighbour = f"{original.folder} 2/ray_results/{sweep}"
    original.store.client.set_tag(sweep, Tags.STORAGE, neighbour)
    folder = original.folder
    for name in ("second", "third"):
        folder = folder.rename(folder.parent / name)
        store = TrackingStore(str(folder / "mlflow.db"))
        with store.artifacts(trials[0], "checkpoint/config.json"):
            pass
        assert store.run(sweep).data.tags[Tags.STORAGE] == neighbour


def test_folder_under_another_name_is_not_a_move(original: SampleRuns, capsys: pytest.CaptureFixture[str]) -> None:
    _, trials = original.add_sweep(40.0)
    link = original.folder.parent / "link"
    link.symlink_to(original.folder)
    uri = original.store.run(trials[0]).info.artifact_uri
    store = TrackingStore(str(link / "mlflow.db"))
    assert store.run(trials[0]).info.artifact_uri == uri
    assert capsys.readouterr().err == ""


def test_artifacts_that_lie_elsewhere_by_choice_stay_there(tmp_path: Path) -> None:
    store = TrackingStore(str(tmp_path / "mlflow.db"))
    chosen = (tmp_path / "artifacts" / "7").as_uri()
    experiment = store.client.create_experiment("chosen", artifact_location=chosen)
    by_number = store.client.create_experiment("default", artifact_location=(tmp_path / "x" / "mlruns" / "3").as_uri())
    relocate(tmp_path / "mlflow.db")
    assert store.client.get_experiment(experiment).artifact_location == chosen
    assert store.client.get_experiment(by_number).artifact_location.endswith("/x/mlruns/3")


def test_nothing_outside_the_store_is_deleted(original: SampleRuns, tmp_path: Path) -> None:
    sweep, _ = original.add_sweep(60.0)
    outside = tmp_path / "scratch" / sweep
    outside.mkdir(parents=True)
    (outside / "state.pt").write_bytes(b"s")
    original.store.client.set_tag(sweep, Tags.STORAGE, str(outside))
    report = collect_garbage(original.store, None, delete=True)
    assert [(row["place"], row["store"], row["removed"]) for row in report["found"]] == [(None, str(outside), False)]
    assert (outside / "state.pt").exists()


def test_database_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, but a text that is long enough " * 100)
    with pytest.raises(InputError, match="cannot open the tracking store"):
        TrackingStore(str(tmp_path / "mlflow.db"))


def test_move_is_said_once(original: SampleRuns, capsys: pytest.CaptureFixture[str]) -> None:
    original.add_sweep(40.0)
    copy = copy_of(original)
    capsys.readouterr()
    TrackingStore(str(copy / "mlflow.db"))
    message = capsys.readouterr().err
    assert str(original.folder) in message
    assert str(copy / "mlruns") in message
    TrackingStore(str(copy / "mlflow.db"))
    assert capsys.readouterr().err == ""
    with closing(sqlite3.connect(original.folder / "mlflow.db")) as connection:
        (location,) = connection.execute(
            "SELECT artifact_location FROM experiments WHERE name = 'small x-sub'"
        ).fetchone()
    assert "copy" not in location
