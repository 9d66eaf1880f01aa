"""One process per sweep: who holds the lock, when it is taken over, and what the other process reports."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from fgst.errors import InputError
from fgst.sweep.driver_lock import DriverLock, LockEntry, Owner
from tests.support.workspace import TINY, Workspace

OWN_RECORD = "from fgst.sweep.driver_lock import Owner; print(Owner.this_process().to_json(), flush=True)"


class Record:
    """An entry in memory; ``on_read`` is called before each reading."""

    def __init__(self, text: str = "", on_read: Callable[[Record], None] = lambda record: None) -> None:
        self.text, self.on_read = text, on_read

    def entry(self) -> LockEntry:
        return LockEntry(self._read, lambda text: setattr(self, "text", text))

    def _read(self) -> str:
        self.on_read(self)
        return self.text


def lock(*records: Record, on_lost: Callable[[], None] = lambda: None, interval: float = 0.05) -> DriverLock:
    return DriverLock([record.entry() for record in records], "a" * 32, on_lost, interval=interval, patience=0.5)


def test_second_process_is_refused_until_the_first_releases_the_lock() -> None:
    record = Record()
    with lock(record):
        held = Owner.from_json(record.text)
        assert held is not None
        with pytest.raises(InputError, match=rf"is being run by process {held.pid} on {held.host}, since"):
            lock(record).__enter__()
        assert Owner.from_json(record.text) is not None
    assert Owner.from_json(record.text) is None
    with lock(record):
        pass


@pytest.mark.parametrize("reaped", [True, False])
def test_lock_of_a_killed_process_is_taken_over_at_once(reaped: bool) -> None:
    code = f"{OWN_RECORD}\nimport time; time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    record = Record(process.stdout.readline())
    with pytest.raises(InputError, match=f"process {process.pid}"):
        lock(record).__enter__()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # leaves a zombie
    if reaped:
        process.wait()
    with lock(record):
        owner = Owner.from_json(record.text)
        assert owner is not None
        assert owner.pid != process.pid
    process.communicate()


def test_reused_process_id_does_not_count_as_the_owner() -> None:
    owner = dataclasses.replace(Owner.this_process(), started="1")
    with lock(Record(owner.to_json())):
        pass


def test_reboot_of_this_machine_frees_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    here = dataclasses.replace(Owner.this_process(), machine="f" * 32)
    monkeypatch.setattr(Owner, "this_process", classmethod(lambda cls: here))
    assert dataclasses.replace(here, boot="before").state() == "gone"
    assert dataclasses.replace(here, boot="before", machine="another").state() == "unknown"
    assert dataclasses.replace(here, namespace="another container").state() == "unknown"


def test_process_on_another_host_is_alive_while_its_counter_moves(capsys: pytest.CaptureFixture[str]) -> None:
    other = dataclasses.replace(Owner.this_process(), host="node-7", boot="another")
    reads = 0

    def count(record: Record) -> None:
        nonlocal reads
        reads += 1
        record.text = dataclasses.replace(other, count=reads // 4).to_json()

    with pytest.raises(InputError, match="on node-7"):
        lock(Record(other.to_json(), count)).__enter__()
    assert "checking for up to" in capsys.readouterr().err
    still = Record(other.to_json())
    with lock(still):
        owner = Owner.from_json(still.text)
        assert owner is not None
        assert owner.host != "node-7"


def test_two_processes_that_take_over_at_once_do_not_both_win() -> None:
    winner = dataclasses.replace(Owner.this_process(), token="another")

    def overwrite(record: Record) -> None:
        owner = Owner.from_json(record.text)
        if owner is not None and owner.token != "another":
            record.text = winner.to_json()

    record = Record("released", overwrite)
    with pytest.raises(InputError, match="started just now"):
        lock(record).__enter__()
    assert record.text == winner.to_json()


def test_process_that_was_replaced_is_notified_and_leaves_the_record() -> None:
    record, lost = Record(), threading.Event()
    with lock(record, on_lost=lost.set) as held:
        successor = dataclasses.replace(Owner.this_process(), host="node-7").to_json()
        record.text = successor
        assert lost.wait(20)
        assert "is run by process" in held.lost_message
        assert "on node-7" in held.lost_message
    assert record.text == successor


def test_unreachable_store_does_not_end_the_lock() -> None:
    failures = 0

    def fail(record: Record) -> None:
        nonlocal failures
        if Owner.from_json(record.text) is not None and failures < 3:
            failures += 1
            raise ConnectionError

    record = Record("", fail)
    with lock(record):
        while (owner := Owner.from_json(record.text)) is None or owner.count < 5:
            pass
    assert failures == 3


@pytest.mark.parametrize("text", ["", "released", "{}", "[]", "null", '{"pid": 1}', "[" * 100_000])
def test_anything_but_a_record_is_free(text: str) -> None:
    with lock(Record(text)):
        pass


def test_every_entry_is_checked() -> None:
    free, held = Record(), Record()
    with lock(held), pytest.raises(InputError):
        lock(free, held).__enter__()
    assert free.text == ""


@pytest.mark.slow
def test_running_sweep_is_not_resumed_by_a_second_process(workspace: Workspace) -> None:
    """Neither through its tracking store nor through a copy of it that uses the same study."""
    study = f"sqlite:///{workspace.folder}/study.db"
    options = ["--dataset", "data", "--study-storage", study, "--local", "--cpus-per-trial", "1", "--values", "2,4"]
    first = workspace.start(*options, "--epochs", "40", *TINY)
    sweep = workspace.wait_for_first_epoch(first)
    before = {run.info.run_id: run.info.status for run in workspace.store.children(sweep)}
    second = workspace.sweep("--resume", sweep, "--local")
    assert second.returncode == 2
    assert f"sweep {sweep} is being run by process {first.pid} on" in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1
    after = {run.info.run_id: run.info.status for run in workspace.store.children(sweep)}
    assert {run_id: after[run_id] for run_id in before} == before
    copy = Workspace(workspace.folder / "copy")
    shutil.copytree(workspace.folder / "mlruns", copy.folder / "mlruns")
    shutil.copy(workspace.folder / "mlflow.db", copy.folder)
    store = copy.store
    store.client.delete_tag(sweep, "fgst.driver")
    third = copy.sweep("--resume", sweep, "--local", "--study-storage", study)
    assert third.returncode == 2
    assert f"is being run by process {first.pid} on" in third.stderr
    first.send_signal(signal.SIGKILL)
    first.wait()
    resumed = workspace.sweep("--resume", sweep, "--local", "--max-trials", "1")
    assert resumed.returncode == 0, resumed.stderr
    assert "finished" in {run.data.tags.get("fgst.ending") for run in workspace.store.children(sweep)}
