"""The study's database while it is locked by another process, and what is recorded of its URL."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import optuna
import pytest

from fgst.errors import InputError, StoreUnavailable
from fgst.sweep import study_storage
from fgst.sweep.study_storage import open_storage


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another writer that holds the lock within the context."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(study_storage, "_SQLITE_TIMEOUT", 0.1)
    return tmp_path / "study.db"


def test_calls_wait_until_the_lock_is_released(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = optuna.create_study(study_name="s", storage=open_storage(f"sqlite:///{database}"))
    asked = study.ask()
    released = threading.Event()

    def hold() -> None:
        with locked(database):
            held.set()
            time.sleep(2)
        released.set()

    held = threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    asked.suggest_float("x", 0, 1)
    asked.report(0.5, 1)
    study.tell(asked, 0.5)
    assert released.is_set()
    thread.join()
    message = capsys.readouterr().err
    assert f"the study's database sqlite:///{database} does not respond" in message
    assert "database is locked" in message
    reloaded = optuna.load_study(study_name="s", storage=f"sqlite:///{database}")
    assert [trial.value for trial in reloaded.trials] == [0.5]


def test_waiting_has_a_bound_and_is_not_repeated_by_each_further_call(database: Path) -> None:
    study = optuna.create_study(study_name="s", storage=open_storage(f"sqlite:///{database}", patience=1.0))
    with locked(database):
        start = time.monotonic()
        with pytest.raises(StoreUnavailable, match="has not responded"):
            study.ask()
        assert time.monotonic() - start >= 1
        for _ in range(5):
            with pytest.raises(StoreUnavailable):
                study.set_user_attr("a", 1)
    study.set_user_attr("a", 1)  # it is back


def test_what_is_no_database_is_refused_without_its_password(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("not a database " * 100)
    with pytest.raises(InputError, match="cannot be opened"):
        open_storage(f"sqlite:///{tmp_path}/study.db")
    with pytest.raises(InputError) as error:
        open_storage("nonsense://user:secret@host/db")
    assert "secret" not in str(error.value)
    assert "nonsense://user:***@host/db" in str(error.value)
