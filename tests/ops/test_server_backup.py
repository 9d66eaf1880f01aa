"""The team's server, kept in a bucket while its machine is away."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from fgst.errors import InputError
from fgst.ops.server_backup import main
from fgst.tracking.store import TrackingStore
from tests.support.team_server import TeamServer


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """The folder of a server that has run."""
    folder = tmp_path / "server"
    for name, content in {
        "known": "",
        "secret": "s",
        "mlflow.log": "long",
        "postgres/PG_VERSION": "16",
        "lock": "",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "secret").chmod(0o600)
    (folder / "postgres").chmod(0o700)
    return folder


def test_what_was_kept_comes_back(server: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = (tmp_path / "kept.tar.gz").as_uri()
    main(["save", str(server), uri])
    there = tmp_path / "elsewhere" / "server"
    main(["restore", str(there), uri])
    assert sorted(p.relative_to(there).as_posix() for p in there.rglob("*")) == [
        "known", "postgres", "postgres/PG_VERSION", "secret",
    ]  # fmt: skip
    assert (there / "postgres").stat().st_mode & 0o777 == 0o700
    assert (there / "secret").stat().st_mode & 0o777 == 0o600
    out = capsys.readouterr().out
    assert "kept as" in out
    assert "restored from" in out
    with pytest.raises(InputError, match="they are not replaced"):
        main(["restore", str(there), uri])


def test_where_nothing_was_kept_the_server_begins_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["restore", str(tmp_path / "server"), (tmp_path / "kept.tar.gz").as_uri()])
    assert "begins anew" in capsys.readouterr().out
    assert not (tmp_path / "server").exists()


def test_a_copy_that_broke_off_counts_for_nothing(server: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.tar.gz"
    (server / "postgres" / "base").write_bytes(bytes(range(256)) * 4000)
    main(["save", str(server), kept.as_uri()])
    kept.write_bytes(kept.read_bytes()[:-1000])
    there = tmp_path / "there"
    with pytest.raises(InputError, match="could not be copied"):
        main(["restore", str(there), kept.as_uri()])
    assert not (there / "known").exists()
    main(["save", str(server), kept.as_uri()])
    main(["restore", str(there), kept.as_uri()])
    assert (there / "known").exists()


def test_a_server_at_work_is_not_copied(server: Path, tmp_path: Path) -> None:
    with FileLock(server / "lock"), pytest.raises(InputError, match="stop it first"):
        main(["save", str(server), (tmp_path / "kept.tar.gz").as_uri()])
    assert not (tmp_path / "kept.tar.gz").exists()


@pytest.mark.parametrize(
    ("uri", "word"),
    [("kept.tar.gz", "name a URI"), ("nonsense://x/y", "cannot be reached"), ("file:///no/such/x", "copied")],
)
def test_what_cannot_be_is_one_message(uri: str, word: str, server: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=word) as error:
        main(["save", str(server), uri])
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no tracking server has ever run"):
        main(["save", str(tmp_path / "nothing"), (tmp_path / "kept.tar.gz").as_uri()])


@pytest.mark.slow
def test_a_real_server_goes_on_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = TeamServer(), TeamServer()
    try:
        first.start()
        for name, value in first.environment.items():
            monkeypatch.setenv(name, value)
        store = TrackingStore()
        run = store.start(store.experiment("kept"), "kept", "kept", {"note": "here"})
        uri = (tmp_path / "kept.tar.gz").as_uri()
        with pytest.raises(InputError, match="stop it first"):
            main(["save", str(first.folder / "data"), uri])
        first.stop()
        main(["save", str(first.folder / "data"), uri])
        shutil.rmtree(first.folder / "data")
        main(["restore", str(second.folder / "data"), uri])
        second.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", second.uri)
        assert TrackingStore().run(run.run_id).data.tags["note"] == "here"
        second.stop()
    finally:
        first.end()
        second.end()
