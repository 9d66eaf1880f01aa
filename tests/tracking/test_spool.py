"""The spool: order, size limit, recovery after a kill, and no overhead while the server responds."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from fgst.errors import InputError, StoreUnavailable
from fgst.tracking import spool as spool_module
from fgst.tracking.spool import RetryingClient, Spool, retry_while_unavailable
from tests.support.process import kill_on_line, start_python


class Server:
    """Receives records while it is available; fails after ``fails_after`` more records (never if negative)."""

    def __init__(self) -> None:
        self.available = True
        self.received: list[Any] = []
        self.fails_after = -1

    def send(self, record: dict[str, Any], files: Path | None) -> None:
        if not self.available or self.fails_after == 0:
            raise ConnectionError("refused")
        self.fails_after -= 1
        paths = [path for path in files.rglob("*") if path.is_file()] if files else []
        contents = {str(path.relative_to(str(files))): path.read_text() for path in paths}
        self.received.append((record, contents) if contents else record)


def is_unavailable(error: BaseException) -> bool:
    return isinstance(error, ConnectionError)


def numbered(*values: int) -> list[dict[str, int]]:
    return [{"n": value} for value in values]


def write_all(spool: Spool, values: Iterable[int]) -> None:
    for n in values:
        spool.write({"n": n})


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "RETRY_PAUSES", (0.01, 0.02))


def test_nothing_is_written_to_disk_while_the_server_responds(tmp_path: Path) -> None:
    server = Server()
    spool = Spool(tmp_path / "spool", server.send, is_unavailable)
    for n in range(3):
        spool.write({"n": n})
    spool.drain()
    assert server.received == numbered(0, 1, 2)
    assert not (tmp_path / "spool").exists()


def test_order_survives_an_outage_during_a_replay(tmp_path: Path) -> None:
    server = Server()
    spool = Spool(tmp_path / "spool", server.send, is_unavailable)
    spool.write({"n": 0})
    server.available = False
    for n in range(1, 6):
        spool.write({"n": n})
    server.available, server.fails_after = True, 2
    spool.write({"n": 6})  # 1 and 2 are sent, then the server fails
    assert server.received == numbered(0, 1, 2)
    server.fails_after = -1
    spool.write({"n": 7})
    assert server.received == numbered(*range(8))
    assert not spool.pending
    assert spool.total == 6


def test_files_are_copied_when_they_are_written(tmp_path: Path) -> None:
    server = Server()
    server.available = False
    spool = Spool(tmp_path / "spool", server.send, is_unavailable)
    (tmp_path / "files" / "deep").mkdir(parents=True)
    (tmp_path / "files" / "deep" / "a.txt").write_text("first")
    spool.write({"n": 1}, tmp_path / "files")
    (tmp_path / "files" / "deep" / "a.txt").write_text("changed later")
    server.available = True
    spool.drain()
    assert server.received == [({"n": 1}, {"deep/a.txt": "first"})]
    assert not list(tmp_path.glob("spool/files"))


def test_infinity_and_nan_are_buffered_exactly(tmp_path: Path) -> None:
    server = Server()
    server.available = False
    spool = Spool(tmp_path / "spool", server.send, is_unavailable)
    spool.write({"n": float("inf")})
    spool.write({"n": float("nan")})
    server.available = True
    spool.drain()
    assert [str(record["n"]) for record in server.received] == ["inf", "nan"]


def test_full_spool_blocks_until_the_server_responds(tmp_path: Path) -> None:
    server = Server()
    server.available = False
    spool = Spool(tmp_path / "spool", server.send, is_unavailable, size_limit=2000, patience=0.1)
    with pytest.raises(StoreUnavailable, match="has not responded"):
        write_all(spool, range(10_000))
    assert (tmp_path / "spool" / "records.jsonl").stat().st_size < 2100
    server.available = True
    spool.drain()
    assert server.received == numbered(*range(len(server.received)))  # complete up to the limit


def test_other_errors_are_raised(tmp_path: Path) -> None:
    def fail(record: dict[str, Any], files: Path | None) -> None:
        raise ValueError("no such run")

    with pytest.raises(ValueError, match="no such run"):
        Spool(tmp_path / "spool", fail, is_unavailable).write({})
    assert not (tmp_path / "spool").exists()


def test_requests_that_time_out_are_retried_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(spool_module.time, "monotonic", lambda: clock[0])
    attempts = []

    def time_out(record: dict[str, Any], files: Path | None) -> None:
        attempts.append(record)
        clock[0] += 20
        raise ConnectionError("timed out")

    spool = Spool(tmp_path / "spool", time_out, is_unavailable)
    for n in range(10):
        spool.write({"n": n})
        clock[0] += 10  # an epoch
    assert len(attempts) == 1


def test_partial_lines_are_discarded(tmp_path: Path) -> None:
    server = Server()
    server.available = False
    Spool(tmp_path / "spool", server.send, is_unavailable).write({"n": 1})
    with (tmp_path / "spool" / "records.jsonl").open("ab") as file:
        file.write(b'[{"n": 2}, "')
    spool = Spool(tmp_path / "spool", server.send, is_unavailable)  # another process
    spool.write({"n": 3})
    with (tmp_path / "spool" / "records.jsonl").open("ab") as file:
        file.write(b'[{"n": 4')
    server.available = True
    spool.drain()
    assert server.received == numbered(1, 3)


def test_damaged_record_is_reported(tmp_path: Path) -> None:
    """Only the last record can be incomplete after a kill or a power cut: no other one is dropped silently."""
    server = Server()
    server.available = False
    spool = Spool(tmp_path / "spool", server.send, is_unavailable)
    write_all(spool, range(3))
    records = tmp_path / "spool" / "records.jsonl"
    records.write_bytes(records.read_bytes().replace(b'"n": 1', b'"n": \0'))
    server.available = True
    with pytest.raises(InputError, match=r"records\.jsonl: is damaged"):
        spool.replay()
    assert server.received == numbered(0)
    assert spool.pending


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


def test_records_of_a_killed_process_are_replayed(tmp_path: Path) -> None:
    kill_on_line(start_python(CRASH, tmp_path / "spool"), "now")
    server = Server()
    server.fails_after = 5
    with pytest.raises(ConnectionError):
        Spool(tmp_path / "spool", server.send, is_unavailable).replay()
    server.fails_after = -1
    Spool(tmp_path / "spool", server.send, is_unavailable).drain()  # another process: no record is sent twice
    assert len(server.received) > 20
    assert server.received == numbered(*range(len(server.received)))
    assert sorted(os.listdir(tmp_path / "spool")) in (["lock", "total"], ["total"])


def test_retrying_client_retries_until_the_server_responds(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes: list[Any] = [ConnectionError("refused"), ConnectionError("refused"), 7]

    class Client:
        name = "client"

        def request(self) -> int:
            outcome = outcomes.pop(0)
            if isinstance(outcome, BaseException):
                raise outcome
            return int(outcome)

    client = RetryingClient(Client(), is_unavailable)
    assert client.request() == 7
    assert client.name == "client"
    assert capsys.readouterr().err.count("does not respond (refused)") == 1


def test_retries_end_after_the_time_limit() -> None:
    def refuse() -> None:
        raise ConnectionError("refused")

    with pytest.raises(StoreUnavailable):
        retry_while_unavailable(refuse, is_unavailable, patience=0.05)


def test_stale_offset_of_a_killed_replay_is_ignored(tmp_path: Path) -> None:
    """A replay that was killed after it removed the records leaves the offset up to which they were sent."""
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "sent").write_text("20")
    server = Server()
    server.available = False
    spool = Spool(tmp_path / "spool", server.send, is_unavailable)
    write_all(spool, range(3))
    server.available = True
    spool.drain()
    assert server.received == numbered(0, 1, 2)
