"""What a run would write while its tracking server is away: kept on disk, in order, until the server answers.

A record is a dictionary that JSON can hold; what it means is the affair of whoever sends it. Records are sent at once
as long as the server answers, so that without an outage nothing is written here. From the first one that fails, all go
to ``records.jsonl`` and files to ``files/``, and are sent from there in the same order. Sending a record twice must do
no harm: a request that timed out may have arrived.

Nothing is thinned out or dropped. Whoever would write more than ``limit`` waits for the server, as at the end of a
training; a server that stays away longer than ``patience`` is reported as :class:`ServerAway`, and the folder stays for
the next one who opens it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

Answer = TypeVar("Answer")
Record = dict[str, Any]

LIMIT = 64 * 2**20  # bytes of records: tens of thousands of epochs
PATIENCE = 600.0  # seconds that a server may be away while somebody waits for it
_PAUSES = (0.5, 15.0)  # seconds between two attempts: the first, and the longest


class TrackingServerUnavailable(Exception):
    """The tracking server was away for longer than anybody waits; its message says since when and why."""


def retry_while_unavailable(
    call: Callable[[], Answer], away: Callable[[BaseException], bool], patience: float = PATIENCE, since: float = 0.0
) -> Answer:
    """The answer of ``call``, repeated with growing pauses while the server is away.

    Args:
        away: whether an error means that; any other is raised.
        patience: seconds.
        since: when it went away (``time.monotonic``), if that is known.

    Raises:
        ServerAway: if it stays away for longer.
    """
    pause, told = _PAUSES[0], False
    while True:
        try:
            return call()
        except Exception as error:
            if not away(error):
                raise
            now = time.monotonic()
            since = since or now
            if now - since >= patience:
                raise TrackingServerUnavailable(
                    f"the tracking server has not answered for {patience / 60:.0f} minutes ({_first_line(error)})"
                ) from error
            if not told:
                told = True
                print(
                    f"the tracking server does not answer ({_first_line(error)[:160]}); "
                    f"waiting for up to {patience / 60:.0f} minutes",
                    file=sys.stderr,
                    flush=True,
                )
            time.sleep(min(pause, max(0.0, since + patience - now)))
            pause = min(2 * pause, _PAUSES[1])


class RetryingClient:
    """A client whose calls wait for a server that is away."""

    def __init__(self, client: Any, away: Callable[[BaseException], bool]) -> None:
        self._client, self._away = client, away

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if not callable(method):
            return method
        return lambda *args, **kwargs: retry_while_unavailable(lambda: method(*args, **kwargs), self._away)


class Spool:
    """Sends records, and keeps those that cannot be sent now.

    Args:
        folder: for the spool alone; made when it is needed. One that a killed process left is taken up.
        send: sends a record, with the folder of its files if it has some.
        away: whether an error of ``send`` means that the server is away; any other is raised.
    """

    def __init__(
        self,
        folder: Path,
        send: Callable[[Record, Path | None], None],
        away: Callable[[BaseException], bool],
        limit: int = LIMIT,
        patience: float = PATIENCE,
    ) -> None:
        self.folder, self._send, self._away = folder, send, away
        self._limit, self._patience = limit, patience
        self._records, self._sent, self._total = folder / "records.jsonl", folder / "sent", folder / "total"
        self._since = 0.0  # when the server went away
        self._not_before = 0.0  # when it is asked again

    @property
    def pending(self) -> bool:
        """Whether there is something that was not sent."""
        return self._records.exists()

    @property
    def total(self) -> int:
        """How many records ever lay here."""
        return int(self._total.read_text()) if self._total.exists() else 0

    def write(self, record: Record, files: Path | None = None) -> None:
        """Send a record and everything in the folder ``files``, or keep both.

        Raises:
            ServerAway: if the spool is full and the server stays away.
        """
        if self.pending and time.monotonic() >= self._not_before:
            self._try(self.replay)
        if not self.pending and self._try(lambda: self._send(record, files)):
            return
        if self.pending and self._records.stat().st_size > self._limit:
            self.drain()
        self._keep(record, files)

    def replay(self) -> None:
        """Send what lies here, in order. What ``send`` raises comes through; what was sent is not sent again."""
        with self._locked():
            if not self.pending:
                return
            with self._records.open("rb") as file:
                file.seek(int(self._sent.read_text()) if self._sent.exists() else 0)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # its writer was killed in the middle, and never took it for written
                    record, name = json.loads(line)
                    self._send(record, self.folder / "files" / name if name else None)
                    _write_whole(self._sent, str(file.tell()))
            # Known to be sent from here on: the files first, or a kill in between would leave records without theirs.
            self._records.unlink()
            self._sent.unlink(missing_ok=True)
            shutil.rmtree(self.folder / "files", ignore_errors=True)
        self._since = 0.0

    def drain(self) -> None:
        """Wait until everything is sent.

        Raises:
            ServerAway: if the server stays away.
        """
        if self.pending:
            retry_while_unavailable(self.replay, self._away, self._patience, self._since)

    def _try(self, call: Callable[[], None]) -> bool:
        """Whether the server took it. One that lets us wait is asked rarely, so that the training does not."""
        began = time.monotonic()
        try:
            call()
        except Exception as error:
            if not self._away(error):
                raise
            now = time.monotonic()
            self._since = self._since or now
            self._not_before = now + 10 * (now - began) if now - began > 0.5 else 0.0
            return False
        self._since = 0.0
        return True

    def _keep(self, record: Record, files: Path | None) -> None:
        with self._locked():
            name = ""
            if files is not None:
                name = str(time.time_ns())
                shutil.copytree(files, self.folder / "files" / name)
            with self._records.open("a+b") as file:
                _cut_half_a_line(file)
                file.write(json.dumps([record, name]).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            _write_whole(self._total, str(self.total + 1))

    def _locked(self) -> FileLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / "lock")


def _cut_half_a_line(file: Any) -> None:
    """Leave out what a killed process wrote of its last line."""
    end = file.seek(0, os.SEEK_END)
    if not end:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


def _write_whole(path: Path, text: str) -> None:
    """Replace a small file; at no moment is there half of it."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
