"""The spool: order, bound, what a killed process leaves, and no cost while the server answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fgst.tracking import spool as spool_module
from fgst.tracking.spool import RetryingClient, Spool, TrackingServerUnavailable, retry_while_unavailable
from tests.support.small import kill_when_told, start_python


class Server:
    """Takes records, or is away; ``dies_after`` more records it goes away."""

    def __init__(self) -> None:
        self.up, self.taken, self.asked = True, [], 0  # type: bool, list[Any], int
        self.dies_after = -1

    def send(self, record: dict[str, Any], files: Path | None) -> None:
        self.asked += 1
        if not self.up or self.dies_after == 0:
            raise ConnectionError("refused")
        self.dies_after -= 1
        inside = [path for path in files.rglob("*") if path.is_file()] if files else []
        told = {str(path.relative_to(str(files))): path.read_text() for path in inside}
        self.taken.append((record, told) if told else record)


def away(error: BaseException) -> bool:
    return isinstance(error, ConnectionError)


def numbers(*values: int) -> list[dict[str, int]]:
    return [{"n": value} for value in values]


def spool_all(spool: Spool, values: Iterator[int]) -> None:
    for n in values:
        spool.write({"n": n})


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_PAUSES", (0.01, 0.02))


def test_nothing_is_written_while_the_server_answers(tmp_path: Path) -> None:
    server = Server()
    spool = Spool(tmp_path / "spool", server.send, away)
    for n in range(3):
        spool.write({"n": n})
    spool.drain()
    assert server.taken == numbers(0, 1, 2)
    assert not (tmp_path / "spool").exists()


def test_order_is_kept_through_an_outage_in_the_middle_of_a_replay(tmp_path: Path) -> None:
    server = Server()
    spool = Spool(tmp_path / "spool", server.send, away)
    spool.write({"n": 0})
    server.up = False
    for n in range(1, 6):
        spool.write({"n": n})
    server.up, server.dies_after = True, 2
    spool.write({"n": 6})  # 1 and 2 go out, then it is away again
    assert server.taken == numbers(0, 1, 2)
    server.dies_after = -1
    spool.write({"n": 7})
    assert server.taken == numbers(*range(8))
    assert not spool.pending
    assert spool.total == 6


def test_files_are_kept_as_they_were(tmp_path: Path) -> None:
    server = Server()
    server.up = False
    spool = Spool(tmp_path / "spool", server.send, away)
    (tmp_path / "files" / "deep").mkdir(parents=True)
    (tmp_path / "files" / "deep" / "a.txt").write_text("first")
    spool.write({"n": 1}, tmp_path / "files")
    (tmp_path / "files" / "deep" / "a.txt").write_text("changed since")
    server.up = True
    spool.drain()
    assert server.taken == [({"n": 1}, {"deep/a.txt": "first"})]
    assert not list(tmp_path.glob("spool/files"))


def test_metrics_that_are_no_numbers_survive(tmp_path: Path) -> None:
    server = Server()
    server.up = False
    spool = Spool(tmp_path / "spool", server.send, away)
    spool.write({"n": float("inf")})
    spool.write({"n": float("nan")})
    server.up = True
    spool.drain()
    assert [str(record["n"]) for record in server.taken] == ["inf", "nan"]


def test_a_full_spool_waits_for_the_server_and_says_so(tmp_path: Path) -> None:
    server = Server()
    server.up = False
    spool = Spool(tmp_path / "spool", server.send, away, limit=2000, patience=0.1)
    numbered = iter(range(10_000))
    with pytest.raises(TrackingServerUnavailable, match="has not answered"):
        spool_all(spool, numbered)
    assert (tmp_path / "spool" / "records.jsonl").stat().st_size < 2100
    server.up = True
    spool.drain()
    assert server.taken == numbers(*range(len(server.taken)))  # what was taken on is whole


def test_other_errors_are_no_outage(tmp_path: Path) -> None:
    def refuse(record: dict[str, Any], files: Path | None) -> None:
        raise ValueError("no such run")

    with pytest.raises(ValueError, match="no such run"):
        Spool(tmp_path / "spool", refuse, away).write({})
    assert not (tmp_path / "spool").exists()


def test_a_server_that_lets_us_wait_is_asked_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(spool_module.time, "monotonic", lambda: clock[0])
    asked = []

    def hang(record: dict[str, Any], files: Path | None) -> None:
        asked.append(record)
        clock[0] += 20
        raise ConnectionError("timed out")

    spool = Spool(tmp_path / "spool", hang, away)
    for n in range(10):
        spool.write({"n": n})
        clock[0] += 10  # an epoch
    assert len(asked) == 1


def test_half_a_line_is_left_out(tmp_path: Path) -> None:
    server = Server()
    server.up = False
    Spool(tmp_path / "spool", server.send, away).write({"n": 1})
    with (tmp_path / "spool" / "records.jsonl").open("ab") as file:
        file.write(b'[{"n": 2}, "')
    spool = Spool(tmp_path / "spool", server.send, away)  # another process
    spool.write({"n": 3})
    with (tmp_path / "spool" / "records.jsonl").open("ab") as file:
        file.write(b'[{"n": 4')
    server.up = True
    spool.drain()
    assert server.taken == numbers(1, 3)


CRASH = """
import sys
from pathlib import Path
from fgst.tracking.spool import Spool
def send(record, files):
    raise ConnectionError("refused")
spool = Spool(Path(sys.argv[1]), send, lambda error: isinstance(error, ConnectionError))
for n in range(100_000):
    spool.write({"n": n})
    if n == 20:
        print("now", flush=True)
"""


def test_what_a_killed_process_left_is_replayed(tmp_path: Path) -> None:
    kill_when_told(start_python(CRASH, tmp_path / "spool"), "now")
    server = Server()
    server.dies_after = 5
    with pytest.raises(ConnectionError):
        Spool(tmp_path / "spool", server.send, away).replay()
    server.dies_after = -1
    Spool(tmp_path / "spool", server.send, away).drain()  # yet another process: nothing twice
    assert len(server.taken) > 20
    assert server.taken == numbers(*range(len(server.taken)))
    assert sorted(os.listdir(tmp_path / "spool")) in (["lock", "total"], ["total"])


def test_patience_ends_and_answers_come_through(capsys: pytest.CaptureFixture[str]) -> None:
    answers: list[Any] = [ConnectionError("refused"), ConnectionError("refused"), 7]

    class Client:
        name = "client"

        def ask(self) -> int:
            answer = answers.pop(0)
            if isinstance(answer, BaseException):
                raise answer
            return int(answer)

    patient = RetryingClient(Client(), away)
    assert patient.ask() == 7
    assert patient.name == "client"
    assert capsys.readouterr().err.count("does not answer (refused)") == 1

    def never() -> None:
        raise ConnectionError("refused")

    with pytest.raises(TrackingServerUnavailable):
        retry_while_unavailable(never, away, patience=0.05)
