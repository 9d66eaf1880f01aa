"""Backups of the tracking server of a team in an object store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from fgst.cli.server_backup import main
from fgst.errors import InputError
from fgst.tracking.store import TrackingStore
from tests.support.team_server import TeamServer


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """The folder of a server that was started at least once, with the permissions that it must have."""
    folder = tmp_path / "server"
    for name, content in {
        "known": "",
        "secret": "s",
        "mlflow.log": "log",
        "postgres/PG_VERSION": "16",
        "lock": "",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "secret").chmod(0o600)
    (folder / "postgres").chmod(0o700)
    return folder


def test_restore_recreates_saved_folder(server: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = (tmp_path / "backup.tar.gz").as_uri()
    main(["save", str(server), uri])
    restored = tmp_path / "elsewhere" / "server"
    main(["restore", str(restored), uri])
    assert sorted(p.relative_to(restored).as_posix() for p in restored.rglob("*")) == [
        "known", "postgres", "postgres/PG_VERSION", "secret",
    ]  # fmt: skip
    assert (restored / "postgres").stat().st_mode & 0o777 == 0o700
    assert (restored / "secret").stat().st_mode & 0o777 == 0o600
    out = capsys.readouterr().out
    assert f"saved {server} as {uri}" in out
    assert f"restored {restored} from {uri}" in out
    with pytest.raises(InputError, match="is not overwritten"):
        main(["restore", str(restored), uri])


def test_restore_without_backup_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["restore", str(tmp_path / "server"), (tmp_path / "backup.tar.gz").as_uri()])
    assert "there is no backup at" in capsys.readouterr().out
    assert not (tmp_path / "server").exists()


def test_restore_succeeds_after_failure_with_truncated_backup(server: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.tar.gz"
    (server / "postgres" / "base").write_bytes(bytes(range(256)) * 4000)
    main(["save", str(server), backup.as_uri()])
    backup.write_bytes(backup.read_bytes()[:-1000])
    restored = tmp_path / "restored"
    with pytest.raises(InputError, match="cannot be copied"):
        main(["restore", str(restored), backup.as_uri()])
    assert not (restored / "known").exists()
    main(["save", str(server), backup.as_uri()])
    main(["restore", str(restored), backup.as_uri()])
    assert (restored / "known").exists()


def test_running_server_is_not_saved(server: Path, tmp_path: Path) -> None:
    with FileLock(server / "lock"), pytest.raises(InputError, match="stop it first"):
        main(["save", str(server), (tmp_path / "backup.tar.gz").as_uri()])
    assert not (tmp_path / "backup.tar.gz").exists()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("backup.tar.gz", "not a URI"),
        ("nonsense://x/y", "cannot be accessed"),
        ("file:///no/such/x", "cannot be copied"),
    ],
)
def test_invalid_arguments_are_rejected(uri: str, message: str, server: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as error:
        main(["save", str(server), uri])
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no server has ever started there"):
        main(["save", str(tmp_path / "nothing"), (tmp_path / "backup.tar.gz").as_uri()])


@pytest.mark.slow
def test_restored_server_has_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = TeamServer(), TeamServer()
    try:
        first.start()
        for name, value in first.environment.items():
            monkeypatch.setenv(name, value)
        store = TrackingStore()
        run = store.start(store.experiment("backup"), "backup", "backup", {"note": "text"})
        uri = (tmp_path / "backup.tar.gz").as_uri()
        with pytest.raises(InputError, match="stop it first"):
            main(["save", str(first.folder / "data"), uri])
        first.stop()
        main(["save", str(first.folder / "data"), uri])
        shutil.rmtree(first.folder / "data")
        main(["restore", str(second.folder / "data"), uri])
        second.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", second.uri)
        assert TrackingStore().run(run.run_id).data.tags["note"] == "text"
        second.stop()
    finally:
        first.end()
        second.end()
