"""Durable write-ahead buffer for tracking records, and retries while a tracking server is unavailable.

A record is a JSON-serializable dictionary whose meaning is up to the sender. As long as the server responds, records
are sent at once and nothing is written to disk. After the first failure, all records are appended to ``records.jsonl``
and their files copied to ``files/``; they are sent in the same order once the server responds. Sending must be
idempotent, because a request that timed out may have been processed.

No record is ever dropped, and a buffered one is on the disk when :meth:`Spool.write` returns. A writer that exceeds the
size limit blocks until the server responds. If the server stays unavailable for longer than ``patience``,
:class:`StoreUnavailable` is raised, and the folder remains for the next process that opens it.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from filelock import FileLock

from fgst import durable
from fgst.errors import InputError, StoreUnavailable
from fgst.network import redact

Result = TypeVar("Result")
Record = dict[str, Any]

SIZE_LIMIT = 64 * 2**20
"""Size in bytes at which writers start to block: tens of thousands of epochs."""
PATIENCE = 600.0
"""Seconds to wait for an unavailable server before giving up."""
RETRY_PAUSES = (0.5, 15.0)
"""Shortest and longest pause between two attempts, in seconds."""


def retry_while_unavailable(
    call: Callable[[], Result],
    is_unavailable: Callable[[BaseException], bool],
    patience: float = PATIENCE,
    since: float = 0.0,
    what: str = "the tracking store",
) -> Result:
    """Call a function, and retry it with growing pauses while a server or database is unavailable.

    The first failure is reported on stderr.

    Args:
        call: the function.
        is_unavailable: whether an error means that the server is unavailable. All other errors are raised.
        patience: how long to retry, in seconds.
        since: time (:func:`time.monotonic`) at which the server became unavailable, if known.
        what: name of the server or database in messages.

    Returns:
        The function's result.

    Raises:
        StoreUnavailable: if the server stays unavailable for longer than ``patience``.
    """
    pause, reported = RETRY_PAUSES[0], False
    while True:
        try:
            return call()
        except Exception as error:
            if not is_unavailable(error):
                raise
            now = time.monotonic()
            since = since or now
            if now - since >= patience:
                raise StoreUnavailable(
                    f"{what} has not responded for {patience / 60:.0f} minutes ({_first_line(error)})"
                ) from error
            if not reported:
                reported = True
                print(
                    f"{what} does not respond ({_first_line(error)[:160]}); "
                    f"retrying for up to {patience / 60:.0f} minutes",
                    file=sys.stderr,
                    flush=True,
                )
            time.sleep(min(pause, max(0.0, since + patience - now)))
            pause = min(2 * pause, RETRY_PAUSES[1])


class RetryingClient:
    """Wrap a client so that each method call is retried while the server is unavailable.

    Args:
        client: the client to wrap.
        is_unavailable: whether an error means that the server is unavailable.
    """

    def __init__(self, client: Any, is_unavailable: Callable[[BaseException], bool]) -> None:
        self._client, self._is_unavailable = client, is_unavailable

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        if not callable(attribute):
            return attribute
        return lambda *args, **kwargs: retry_while_unavailable(lambda: attribute(*args, **kwargs), self._is_unavailable)


class Spool:
    """Send records, and buffer on disk those that cannot be sent.

    Args:
        folder: the buffer's own folder, created when it is needed. Records left there by an earlier process are sent
            first.
        send: sends a record and, if given, the folder with its files.
        is_unavailable: whether an error of ``send`` means that the server is unavailable. All other errors are raised.
        size_limit: size of the buffered records, in bytes, at which writers start to block.
        patience: how long a blocked writer waits for the server, in seconds.
    """

    def __init__(
        self,
        folder: Path,
        send: Callable[[Record, Path | None], None],
        is_unavailable: Callable[[BaseException], bool],
        size_limit: int = SIZE_LIMIT,
        patience: float = PATIENCE,
    ) -> None:
        self.folder, self._send, self._is_unavailable = folder, send, is_unavailable
        self._size_limit, self._patience = size_limit, patience
        self._records, self._offset, self._total = folder / "records.jsonl", folder / "sent", folder / "total"
        self._unavailable_since = 0.0
        self._next_attempt = 0.0

    @property
    def pending(self) -> bool:
        """Whether any record has not been sent yet."""
        return self._records.exists()

    @property
    def total(self) -> int:
        """The number of records that were ever buffered here."""
        return int(self._total.read_text()) if self._total.exists() else 0

    def write(self, record: Record, files: Path | None = None) -> None:
        """Send a record and the contents of the folder ``files``, or buffer both.

        Raises:
            StoreUnavailable: if the buffer is full and the server stays unavailable.
        """
        if self.pending and time.monotonic() >= self._next_attempt:
            self._try(self.replay)
        if not self.pending and self._try(lambda: self._send(record, files)):
            return
        if self.pending and self._records.stat().st_size > self._size_limit:
            self.drain()
        self._append(record, files)

    def replay(self) -> None:
        """Send the buffered records in order.

        Errors of ``send`` are raised; the next call continues after the last record that was sent.

        Raises:
            InputError: if a record is damaged.
        """
        with self._lock():
            if not self.pending:
                return
            with self._records.open("rb") as file:
                file.seek(int(self._offset.read_text()) if self._offset.exists() else 0)
                for line in file:
                    if not _is_record(line):
                        if file.read(1):
                            raise InputError(f"{self._records}: is damaged; restore it, or remove {self.folder}")
                        break  # the writing process was killed, or the power failed, before its write() returned
                    record, name = json.loads(line)
                    self._send(record, self.folder / "files" / name if name else None)
                    durable.write(self._offset, str(file.tell()))
            # All records are sent. Files are removed last: records must not remain without their files.
            self._records.unlink()
            self._offset.unlink(missing_ok=True)
            durable.sync(self.folder)
            shutil.rmtree(self.folder / "files", ignore_errors=True)
        self._unavailable_since = 0.0

    def drain(self) -> None:
        """Block until all records are sent.

        Raises:
            StoreUnavailable: if the server stays unavailable.
        """
        if self.pending:
            retry_while_unavailable(self.replay, self._is_unavailable, self._patience, self._unavailable_since)

    def _try(self, call: Callable[[], None]) -> bool:
        """Attempt to send; return whether the server was available.

        After an attempt that was slow to fail, the next one is delayed tenfold, so that timeouts do not slow training.
        """
        start = time.monotonic()
        try:
            call()
        except Exception as error:
            if not self._is_unavailable(error):
                raise
            now = time.monotonic()
            self._unavailable_since = self._unavailable_since or now
            self._next_attempt = now + 10 * (now - start) if now - start > 0.5 else 0.0
            return False
        self._unavailable_since = 0.0
        return True

    def _append(self, record: Record, files: Path | None) -> None:
        with self._lock():
            if not self.pending:  # replay() may have been killed after it removed the records, but not the offset
                self._offset.unlink(missing_ok=True)
            name = ""
            if files is not None:
                name = str(time.time_ns())
                durable.copy_tree(files, self.folder / "files" / name)
            with self._records.open("a+b") as file:
                _remove_partial_line(file)
                file.write(json.dumps([record, name]).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            durable.write(self._total, str(self.total + 1))  # also syncs the changes of names above

    def _lock(self) -> FileLock:
        durable.make_folder(self.folder)
        return FileLock(self.folder / "lock")


def _remove_partial_line(file: BinaryIO) -> None:
    """Remove an incomplete last line, left by a process that was killed while writing, or by a power cut.

    After a power cut, parts of the line may be zeros, and the line may still have its end.
    """
    if not file.seek(0, os.SEEK_END):
        return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.rfind(b"\n", 0, len(content) - 1) + 1
        complete = _is_record(content[start:])
    if not complete:
        file.truncate(start)


def _is_record(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n")


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:  # libraries wrap the errors of database drivers in long explanations
        error = error.__cause__
    return redact((str(error).splitlines() or [type(error).__name__])[0])
