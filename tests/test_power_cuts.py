"""What is left after a power cut at any moment, with everything lost that was not synced, is complete and continues."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch

from fgst import durable
from fgst.data.dataset import ArrowDataset
from fgst.data.formats import ntu, ntu_plan
from fgst.evaluation.metrics import Scores
from fgst.tracking.spool import Spool
from fgst.tracking.store import TrackingStore
from fgst.training.checkpoint import latest_checkpoint, progress
from tests.support import small
from tests.support.ntu_corpus import corpus, write_folder
from tests.support.power_cut.recorder import Recording, compile_shim, record
from tests.support.workspace import ROOT, TINY, Workspace, metrics_by_trial
from tests.training.helpers import assert_same_result, run

pytestmark = pytest.mark.long

# Trees per cut: a sample in the quick tests, and all of up to ten pending changes of names in the slow ones.
EFFORT = [pytest.param(12, id="sample"), pytest.param(1024, id="exhaustive", marks=pytest.mark.slow)]
Run = Callable[..., Recording]


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder that is on the disk."""
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


def survivors(recording: Recording, limit: int) -> Iterator[tuple[tuple[str, ...], str]]:
    """Rebuild the folder after each possible cut; yield what must have survived, and the call at which power failed."""
    count = 0
    for tree, marks, call in recording.states(limit=limit):
        recording.rebuild(tree)
        count += 1
        yield marks, call
    assert count > 20


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# The model of a disk itself


REPLACE = """
import sys
from pathlib import Path
from fgst.durable import sync, write

root = Path(sys.argv[1])
new, file = root / "new", root / "file"
{statements}
mark("written")
"""
WAYS = {
    "renamed without sync": "new.write_text('second'); new.replace(file); sync(root)",
    "renamed without sync of the folder": "new.write_text('second'); sync(new); new.replace(file)",
    "written in place": "file.write_text('second'); sync(file)",
    "durable": "write(file, 'second')",
}


@pytest.mark.parametrize("way", WAYS)
def test_cuts_reveal_unsafe_writes(way: str, shim: Path, folder: Path) -> None:
    (folder / "file").write_text("first")
    recording = record(shim, folder, REPLACE.format(statements=WAYS[way]))
    lost = False
    for tree, marks, _ in recording.states(limit=64):
        lost |= tree.get("file") not in ((b"second",) if marks else (b"first", b"second"))
    assert lost == (way != "durable")


# Checkpoints

TRAIN = """
import sys
from pathlib import Path
import torch
from fgst.data.dataset import ArrowDataset
from fgst.errors import Preempted
from fgst.training.checkpoint import latest_checkpoint
from fgst.training.trainer import fit
from tests.support.small import small_config

torch.set_num_threads(1)
root, dataset = Path(sys.argv[1]), ArrowDataset(sys.argv[2])
config = small_config(dataset, train__epochs=3)
stop = False

def on_step(epoch, step, steps):
    global stop
    stop = epoch == 2 and step == 1

try:
    for result in fit(config, dataset=dataset, device="cpu", checkpoints=root / "deep" / "run", on_step=on_step,
                      should_stop=lambda: stop):
        mark(result.checkpoint.name)
except Preempted:
    mark(latest_checkpoint(root / "deep" / "run").name)
for result in fit(config, dataset=dataset, device="cpu", checkpoints=root / "deep" / "run"):
    mark(result.checkpoint.name)
"""


@pytest.mark.parametrize("limit", EFFORT)
def test_training_continues_with_same_bits(
    limit: int, shim: Path, folder: Path, tmp_path: Path, dataset: ArrowDataset
) -> None:
    config = small.small_config(dataset, train__epochs=3)
    torch.set_num_threads(1)
    expected = run(config, tmp_path / "expected", dataset=dataset)
    recording = record(shim, folder, TRAIN, dataset.path)
    assert recording.cuts[-1].marks[:3] == ("epoch-00001", "epoch-00001-step-00001", "epoch-00001-step-00001")
    continued: set[tuple[tuple[int, int], str]] = set()
    folder = folder / "deep" / "run"
    for marks, call in survivors(recording, limit):
        checkpoint = latest_checkpoint(folder)
        reached = max((progress(mark) or (0, 0) for mark in marks), default=(0, 0))
        found = (progress(checkpoint.name) or (0, 0)) if checkpoint is not None else (0, 0)
        assert found >= reached, call
        content = files(checkpoint) if checkpoint is not None else {}
        state = (found, hashlib.sha256(repr(sorted(content.items())).encode()).hexdigest())
        if state in continued:  # equal files continue with equal bits
            continue
        continued.add(state)
        results = run(config, folder, dataset=dataset)
        if found == (3, 0):  # nothing was saved since, so an earlier checkpoint may remain
            for entry in folder.iterdir():
                if entry != checkpoint:
                    shutil.rmtree(entry)
        assert [entry.name for entry in folder.iterdir()] == ["epoch-00003"]
        assert_same_result(folder, [*expected[: found[0]], *results], tmp_path / "expected", expected)
    assert {found for found, _ in continued} == {(0, 0), (1, 0), (1, 1), (2, 0), (3, 0)}


# Data sets

WRITE = """
import sys
from pathlib import Path
from tests.support.small import motion_clips, write_small

out = Path(sys.argv[1], "deep", "set")
write_small(out, shard_bytes=40_000)
mark("first")
write_small(out, motion_clips(seed=1), shard_bytes=40_000, overwrite=True)
mark("second")
"""


@pytest.mark.parametrize("limit", EFFORT)
def test_data_set_is_complete_or_as_before(limit: int, shim: Path, folder: Path, tmp_path: Path) -> None:
    first = small.write_small(tmp_path / "first", shard_bytes=40_000).digest
    second = small.write_small(tmp_path / "second", small.motion_clips(seed=1), shard_bytes=40_000).digest
    recording = record(shim, folder, WRITE)
    possible: dict[tuple[str, ...], set[str]] = {
        (): {"", first},
        ("first",): {first, second},
        ("first", "second"): {second},
    }
    seen: dict[tuple[str, ...], set[str]] = {}
    for marks, _ in survivors(recording, limit):
        out = folder / "deep" / "set"
        seen.setdefault(marks, set()).add(ArrowDataset(out).digest if out.exists() else "")
    assert seen == possible


PREPARE = """
import sys
from fgst.data.formats import ntu, ntu_plan
from pathlib import Path

ntu.CLIPS_PER_SHARD = ntu_plan.CLIPS_PER_SHARD = 5
ntu.prepare([sys.argv[2]], Path(sys.argv[1], "ntu"), edition="60")
mark("prepared")
"""


@pytest.mark.parametrize(
    "every", [pytest.param(25, id="sample"), pytest.param(1, id="exhaustive", marks=pytest.mark.slow)]
)
def test_resumed_preparation_gives_identical_files(
    every: int,
    shim: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_folder(tmp_path / "raw", corpus(18, seed=5))
    for module in (ntu, ntu_plan):
        monkeypatch.setattr(module, "CLIPS_PER_SHARD", 5)
    ntu.prepare([source], tmp_path / "expected", edition="60")
    expected = files(tmp_path / "expected")
    recording = record(shim, folder, PREPARE, source)
    for number, (marks, call) in enumerate(survivors(recording, 8 if every == 1 else 4)):
        out = folder / "ntu"
        if "prepared" in marks:
            assert out.is_dir(), call
        if not out.exists() and number % every == 0:
            ntu.prepare([source], out, edition="60")
        if out.exists():
            assert files(out) == expected, call
    assert "resuming" in capsys.readouterr().err


# Records for the tracking server, and the embedded tracking store

SPOOL = """
import sys
from pathlib import Path
from fgst.tracking.spool import Spool

available = False
def send(record, files):
    if not available:
        raise ConnectionError
    mark(f"sent {record['n']}")

def write(n, files=None):
    spool.write({"n": n, "text": "x" * 9000 if n == 1 else ""}, files)
    mark(f"written {n}")

files = Path(sys.argv[2])
spool = Spool(Path(sys.argv[1], "spool", "run"), send, lambda error: isinstance(error, ConnectionError))
write(0)
write(1)
write(2, files)
available = True
spool.replay()
available = False
write(3)
write(4, files)
"""


@pytest.mark.parametrize("limit", EFFORT)
def test_buffered_records_survive(limit: int, shim: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "files" / "deep").mkdir(parents=True)
    (tmp_path / "files" / "deep" / "a.txt").write_text("content")
    (folder / "spool" / "run").mkdir(parents=True)
    (folder / "spool" / "run" / "sent").write_text("20")  # left by a process that was killed after a replay
    recording = record(shim, folder, SPOOL, tmp_path / "files")
    received: list[int] = []

    def send(record: dict[str, Any], attached: Path | None) -> None:
        received.append(record["n"])
        if record["n"] in (2, 4):
            assert attached is not None
            assert files(attached) == {"deep/a.txt": b"content"}
        assert record["n"] != 1 or record["text"] == "x" * 9000

    def refuse(record: dict[str, Any], attached: Path | None) -> None:
        raise ConnectionError

    for marks, call in survivors(recording, limit):
        received.clear()
        for sender in (refuse, send):
            spool = Spool(folder / "spool" / "run", sender, lambda error: isinstance(error, ConnectionError))
            if sender is refuse:
                spool.write({"n": 99})  # after what is left of an incomplete record
            else:
                spool.drain()
        sent = {int(mark.split()[1]) for mark in marks if mark.startswith("sent")}
        written = {int(mark.split()[1]) for mark in marks if mark.startswith("written")}
        assert written <= sent | set(received), call
        assert received == sorted(received), call
        assert received[-1] == 99
        assert set(range(received[0], min(4, max([-1, *received[:-1]])) + 1)) <= set(received) | sent


STORE = """
import sys
from pathlib import Path
from fgst.tracking.store import TrackingStore

root, upload = Path(sys.argv[1]), Path(sys.argv[2])
store = TrackingStore(f"sqlite:///{root}/mlflow.db")
run = store.start(store.experiment("power cuts"), "trial", "a run", {})
print(run.run_id)
mark("started")
run.log_metrics({"val/top1": 50.0}, 1)
mark("logged")
run.log_artifacts(upload / "first")
mark("first")
run.finish()
mark("finished")
run.log_artifacts(upload / "second")
mark("second")
"""


@pytest.mark.parametrize("limit", EFFORT)
def test_tracking_store_keeps_what_was_logged(
    limit: int, shim: Path, folder: Path, tmp_path: Path, empty_database: Path, dataset: ArrowDataset
) -> None:
    """Scores, weights and ``sweep.json`` are artifacts; one that is logged again replaces the earlier one at once."""
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    scores = Scores(dataset.clip_ids, dataset.columns["label"].astype("int64"), torch.randn(len(dataset), 3).numpy())
    for name in ("first", "second"):
        (tmp_path / name / "scores").mkdir(parents=True)
        scores.save(tmp_path / name / "scores" / "test.arrow")
        (tmp_path / name / "sweep.json").write_text(json.dumps({"name": name * 3000}))
        small.save_untrained_network(dataset, tmp_path / name / "checkpoint", seed=len(name))
    versions = {name: files(tmp_path / name) for name in ("first", "second")}
    recording = record(shim, folder, STORE, tmp_path)
    run_id = recording.output.strip()
    for marks, call in survivors(recording, limit):
        with sqlite3.connect(folder / "mlflow.db") as database:
            assert database.execute("pragma integrity_check").fetchall() == [("ok",)], call
            status = database.execute("select status from runs where run_uuid = ?", [run_id]).fetchall()
            metrics = database.execute("select value from metrics").fetchall()
        database.close()
        assert "started" not in marks or status, call
        assert "logged" not in marks or metrics == [(50.0,)], call
        assert "finished" not in marks or status == [("FINISHED",)], call
        found = {
            path.partition("/artifacts/")[2]: content
            for path, content in files(folder).items()
            if "/artifacts/" in path and durable.TEMPORARY not in path
        }
        for path, content in found.items():
            assert content in (versions["first"][path], versions["second"][path]), (path, call)
        for name in ("first", "second"):
            if name in marks or status == [("FINISHED",)]:
                assert found.keys() == versions[name].keys(), call
        if "second" in marks:
            assert found == versions["second"], call
    store = TrackingStore(f"sqlite:///{folder}/mlflow.db")
    assert store.scores(run_id, "test").scores.tobytes() == scores.scores.tobytes()


STUDY = """
import sys
from pathlib import Path
from fgst.data.dataset import ArrowDataset
from tests.support.definitions import FOCAL_K
from tests.sweep.test_search import accuracy, make_search

search = make_search(ArrowDataset(sys.argv[2]), f"sqlite:///{sys.argv[1]}/optuna.db", definition=FOCAL_K, seeds=2)
for _ in range(3):
    trial = search.ask()
    mark(f"asked {trial.trial_id}")
    search.tell(trial.trial_id, "finished", {"val/top1": accuracy(trial)}, trial)
    mark(f"ended {trial.trial_id}")
"""


@pytest.mark.parametrize("limit", EFFORT)
def test_study_keeps_starts_and_ends_of_trials(limit: int, shim: Path, folder: Path, dataset: ArrowDataset) -> None:
    optuna.create_study(storage=f"sqlite:///{folder}/optuna.db")  # its tables
    recording = record(shim, folder, STUDY, dataset.path)
    for marks, call in survivors(recording, limit):
        with sqlite3.connect(folder / "optuna.db") as database:
            assert database.execute("pragma integrity_check").fetchall() == [("ok",)], call
            trials = database.execute(
                "select a.value_json, t.state from trials t join trial_user_attributes a using (trial_id) "
                "where a.key = 'key'"
            ).fetchall()
        database.close()
        states = {json.loads(trial_id): state for trial_id, state in trials}
        for mark in marks:
            kind, trial_id = mark.split()
            assert trial_id in states, call
            assert kind == "asked" or states[trial_id] == "COMPLETE", call


SWEEP = """
import os, runpy, sys
os.chdir(sys.argv[1])
script = sys.argv[2]
sys.argv = sys.argv[2:]
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.slow
def test_sweep_resumes_with_same_metrics(
    shim: Path, folder: Path, tmp_path: Path, empty_database: Path, dataset: ArrowDataset
) -> None:
    """A whole sweep, with its study, spool, checkpoints and tracking store, resumes after any cut."""
    grid = ["--dataset", dataset.path, "--preset", "tiny", "--values", "2,4", "--epochs", "2", *TINY, "--local"]
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    recording = record(shim, folder, SWEEP, ROOT / "sweeps" / "focal_k.py", *grid, every=101)
    uninterrupted = Workspace(folder)
    (sweep,) = uninterrupted.sweeps()
    expected = metrics_by_trial(uninterrupted.store.children(sweep.info.run_id))
    assert len(expected) == 2
    rng, resumed = np.random.default_rng(0), 0
    for cut in recording.cuts:
        trees = list(cut.trees(rng, limit=8))
        recording.rebuild(trees[int(rng.integers(len(trees)))])
        workspace = Workspace(folder)
        started = [run.info.run_id for run in workspace.sweeps() if list(folder.rglob("sweep.json"))]
        options = ["--resume", *started, "--local"] if started else [*map(str, grid)]
        result = workspace.sweep(*options)
        assert result.returncode == 0, (cut.call, result.stderr)
        trials = workspace.store.children(workspace.sweeps()[0].info.run_id)
        assert metrics_by_trial(trials) == expected, cut.call
        assert [run.info.status for run in trials] == ["FINISHED"] * 2, cut.call
        resumed += bool(started)
    assert resumed > 5
