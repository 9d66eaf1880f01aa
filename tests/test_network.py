"""Passwords in URLs are left out of what is printed, and taken from the environment where they are needed."""

from __future__ import annotations

import pytest

from fgst.errors import InputError
from fgst.network import complete_url, redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://user:secret@host:5432/db", "postgresql://user:***@host:5432/db"),
        ("postgresql+psycopg2://user:s@cr:et@host/db", "postgresql+psycopg2://user:***@host/db"),
        ("(connect to https://:secret@host/path failed)", "(connect to https://:***@host/path failed)"),
        (
            "mysql://u:secret@h/db?charset=utf8 and http://u:secret@h",
            "mysql://u:***@h/db?charset=utf8 and http://u:***@h",
        ),
        ("postgresql://user@host/db?password=secret&x=1", "postgresql://user@host/db?password=***&x=1"),
        ("https://hooks.example/a?x=1&token=secret'", "https://hooks.example/a?x=1&token=***'"),
        ("postgresql://user@host/db", "postgresql://user@host/db"),
        ("http://localhost:5000/#/experiments/1?o=a@b", "http://localhost:5000/#/experiments/1?o=a@b"),
        ("sqlite:////home/a:b@c/mlflow.db", "sqlite:////home/a:b@c/mlflow.db"),
        ("no URL: user:secret@host", "no URL: user:secret@host"),
    ],
)
def test_passwords_are_replaced_and_nothing_else(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(expected) == expected


def test_left_out_password_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://user:secret@host/db"
    monkeypatch.setenv("SOME_URL", url)
    assert complete_url("postgresql://user:***@host/db", "SOME_URL") == url
    assert complete_url("postgresql://user@host/db", "SOME_URL") == "postgresql://user@host/db"
    for other in ("postgresql://user:secret@another/db", ""):
        monkeypatch.setenv("SOME_URL", other)
        with pytest.raises(InputError, match=r"user:\*\*\*@host/db: passwords are never recorded; set SOME_URL"):
            complete_url("postgresql://user:***@host/db", "SOME_URL")
