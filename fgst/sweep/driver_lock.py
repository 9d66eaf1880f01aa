"""The lock that keeps a second process from running the same sweep.

The process that runs a sweep records itself in a tag of the sweep's MLflow run and in its Optuna study, with a counter
that it increases every ten seconds. Another process takes over only if the recorded one is certainly gone: it ran on
this machine and has ended, this machine was rebooted since, or its counter stood still for a minute. If two processes
take over at the same moment, or a suspended process wakes up after it was replaced, the record shows whose lock it is.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import psutil

from fgst.errors import InputError
from fgst.parsing import decode_json

INTERVAL = 10.0  # seconds between two increments of the counter
PATIENCE = 60.0  # seconds without an increment after which a process on another machine counts as gone
SETTLING = 0.5  # seconds after which a taken lock is read again, in case two processes took it


_held: set[str] = set()  # tokens of the locks that this process holds


@dataclass(frozen=True)
class LockEntry:
    """Where a lock is recorded: functions that read and write a short text; any other text than a record means free."""

    read: Callable[[], str]
    write: Callable[[str], None]


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Attributes:
        host, machine, boot, namespace: host name; ids of the machine, of its current boot, and of the process
            namespace, "" where the system has none.
        pid, started: the process and its start time, see :func:`_start_time`.
        since: local time at which it took the lock.
        token: identifies the lock's holder among all.
        count: increases while the process is alive.
    """

    host: str
    machine: str
    boot: str
    namespace: str
    pid: int
    started: str
    since: str
    token: str
    count: int = 0

    @classmethod
    def this_process(cls) -> Owner:
        return cls(
            host=socket.gethostname(),
            machine=_read("/etc/machine-id"),
            boot=_read("/proc/sys/kernel/random/boot_id"),
            namespace=_link("/proc/self/ns/pid"),
            pid=os.getpid(),
            started=_start_time(os.getpid()) or "",
            since=time.strftime("%Y-%m-%d %H:%M"),
            token=secrets.token_hex(8),
        )

    @classmethod
    def from_json(cls, text: str) -> Owner | None:
        """The recorded owner; ``None`` if there is none, or if the record is not valid."""
        try:
            return decode_json(text.encode(), cls)
        except ValueError:
            return None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @property
    def description(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def state(self) -> Literal["alive", "gone", "unknown"]:
        """Whether the process still exists, as far as this machine can tell."""
        here = Owner.this_process()
        if self.boot and (self.host, self.boot, self.namespace) == (here.host, here.boot, here.namespace):
            if self.pid == here.pid and self.token not in _held:
                return "gone"  # released by this process, which could not remove the record
            return "alive" if _start_time(self.pid) == self.started else "gone"
        rebooted = self.machine and (self.host, self.machine) == (here.host, here.machine) and self.boot != here.boot
        return "gone" if rebooted else "unknown"


class DriverLock:
    """Context manager that holds the lock of a sweep.

    Args:
        entries: where it is recorded; each is checked.
        sweep_id: run id of the sweep, for messages.
        on_lost: called from another thread if another process has taken the lock.

    Raises:
        InputError: on entering, if another process holds the lock.
    """

    def __init__(
        self,
        entries: Sequence[LockEntry],
        sweep_id: str,
        on_lost: Callable[[], Any] = lambda: None,
        *,
        interval: float = INTERVAL,
        patience: float = PATIENCE,
    ) -> None:
        self._entries, self._sweep_id, self._on_lost = list(entries), sweep_id, on_lost
        self._interval, self._patience = interval, patience
        self._owner = Owner.this_process()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="driver lock", daemon=True)
        self.lost_to: Owner | None = None

    def __enter__(self) -> Self:
        found = [self._require_free(entry) for entry in self._entries]
        _held.add(self._owner.token)
        for entry in self._entries:
            entry.write(self._owner.to_json())
        if any(found):  # otherwise no other process knows this sweep
            time.sleep(SETTLING)
            for entry in self._entries:
                self._require_own(entry)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._thread.join()
        _held.discard(self._owner.token)
        for entry in self._entries:
            with suppress(Exception):  # the store is unreachable, or the run was deleted
                if self._holder(entry) is None:
                    entry.write("released")

    def extend(self, entry: LockEntry) -> None:
        """Record the held lock in another entry, which no other process knows yet."""
        entry.write(self._owner.to_json())
        self._entries.append(entry)

    @property
    def lost_message(self) -> str:
        """Who has taken the lock; "" while it is held."""
        return "" if self.lost_to is None else f"sweep {self._sweep_id} is run by {self.lost_to.description}"

    def _require_free(self, entry: LockEntry) -> bool:
        """Wait until it is certain whether another process holds the lock; returns whether there was a record.

        Raises:
            InputError: if one does.
        """
        text = entry.read()
        owner = Owner.from_json(text)
        state = "gone" if owner is None else owner.state()
        if owner is not None and state == "unknown":
            print(
                f"sweep {self._sweep_id} was last run by {owner.description}; "
                f"checking for up to {self._patience:.0f} seconds whether it still is",
                file=sys.stderr,
                flush=True,
            )
            end = time.monotonic() + self._patience
            while state == "unknown" and time.monotonic() < end:
                time.sleep(min(1.0, self._interval))
                current = Owner.from_json(entry.read())
                if current is None:
                    state = "gone"
                elif current != owner:
                    owner, state = current, "alive"
        if owner is not None and state == "alive":
            raise InputError(
                f"sweep {self._sweep_id} is being run by {owner.description}; stop that process first, or wait for it"
            )
        return bool(text)

    def _holder(self, entry: LockEntry) -> Owner | None:
        """The other process that holds the lock, if any."""
        owner = Owner.from_json(entry.read())
        return None if owner is None or owner.token == self._owner.token else owner

    def _require_own(self, entry: LockEntry) -> None:
        if (other := self._holder(entry)) is not None:
            raise InputError(f"sweep {self._sweep_id} is being run by {other.description}, which started just now")

    def _keep(self) -> None:
        count = 0
        while not self._released.wait(self._interval):
            count += 1
            record = dataclasses.replace(self._owner, count=count).to_json()
            for entry in tuple(self._entries):
                with suppress(Exception):  # the store is unreachable: try again later
                    self.lost_to = self._holder(entry)
                    if self.lost_to is not None:
                        self._on_lost()
                        return
                    entry.write(record)


def _start_time(pid: int) -> str | None:
    """When a process started, as text that identifies it together with its id; ``None`` if it has ended.

    On Linux in ticks since the boot, because adjusting the clock shifts the times that are computed from it.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except FileNotFoundError:
        pass
    try:
        return f"{psutil.Process(pid).create_time():.0f}"
    except psutil.NoSuchProcess:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
