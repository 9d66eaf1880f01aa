"""Loading a file executes no code from it, and run ids from outside cannot refer to paths outside the artifacts."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import runpy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fgst.cli.sweep import sweep
from fgst.data.clip_source import SourceOptions
from fgst.data.dataset import ArrowDataset, file_digest
from fgst.data.formats import SOURCE_FORMATS, read_clip
from fgst.data.skeletons import NTU_25
from fgst.errors import InputError
from fgst.evaluation.ensemble import EnsembleCard, Member
from fgst.integrity import with_digest
from fgst.tracking.evaluation import evaluate
from fgst.tracking.store import TrackingStore
from fgst.training.checkpoint import latest_checkpoint
from fgst.training.trainer import fit
from tests.support import small
from tests.support.digests import adapt_digests

ROOT = Path(__file__).parents[2]
FOCAL_K = runpy.run_path(str(ROOT / "sweeps" / "focal_k.py"))["definition"]
SETTINGS = [
    *("--set", "model.channels=8,8,16,16", "--set", "model.stage1_layers=2", "--set", "model.stage2_layers=2"),
    *("--set", "model.parts=3", "--set", "data.frames=8", "--set", "train.batch_size=8", "--set", "train.repeat=1"),
]
MARKER = "code-was-executed"


class Trap:
    """The content of a malicious pickle: unpickling it creates the directory :data:`MARKER`."""

    def __reduce__(self) -> Any:
        return (os.mkdir, (MARKER,))


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Trap(), protocol=2))


def torch_archive(path: Path) -> None:
    torch.save({"model": Trap()}, path)


def numpy_object_array(path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.array([Trap()], dtype=object), allow_pickle=True)
    path.write_bytes(file.getvalue())


@dataclass
class Artifacts:
    """A data set, a sweep with one trial on it, an ensemble, and the checkpoints of an interrupted training."""

    folder: Path
    store: TrackingStore
    sweep: str
    trial: str
    ensemble: str

    def artifact(self, run_id: str, path: str) -> Path:
        """Return the path of an artifact in the local store."""
        root = Path(self.store.run(run_id).info.artifact_uri.removeprefix("file://"))
        return root / path


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("artifacts")
    dataset = small.write_small(folder / "data")
    store = TrackingStore(f"sqlite:///{folder}/mlflow.db")
    arguments = ["--local", "--dataset", "data", "--preset", "tiny", "--values", "4", "--epochs", "2", *SETTINGS]
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        sweep(FOCAL_K, argv=arguments)
    [run] = store.client.search_runs(["1"], "tags.`fgst.kind` = 'sweep'")
    [trial] = store.children(run.info.run_id)
    ensemble = store.start("1", "ensemble", "an ensemble", {"fgst.kind": "ensemble"})
    (folder / "ensemble").mkdir()
    EnsembleCard((Member("joint", trial.info.run_id, 1.0),)).write(folder / "ensemble" / "ensemble.json")
    ensemble.log_artifacts(folder / "ensemble")
    next(iter(fit(small.small_config(dataset), checkpoints=folder / "interrupted")))
    return Artifacts(folder, store, run.info.run_id, trial.info.run_id, ensemble.run_id)


def open_data(artifacts: Artifacts) -> Any:
    return ArrowDataset(artifacts.folder / "data")


def resume_training(artifacts: Artifacts) -> Any:
    config = small.small_config(artifacts.folder / "data")
    return list(fit(config, checkpoints=artifacts.folder / "interrupted"))


def evaluate_trial(artifacts: Artifacts) -> Any:
    return evaluate(artifacts.trial, tracking_uri=artifacts.store.uri)


def evaluate_ensemble(artifacts: Artifacts) -> Any:
    return evaluate(artifacts.ensemble, tracking_uri=artifacts.store.uri)


def read_scores(artifacts: Artifacts) -> Any:
    return artifacts.store.scores(artifacts.trial, "test")


def resume_sweep(artifacts: Artifacts) -> Any:
    return sweep(FOCAL_K, argv=["--local", "--resume", artifacts.sweep, "--tracking-uri", artifacts.store.uri])


def sweep_from_run(artifacts: Artifacts) -> Any:
    return sweep(FOCAL_K, argv=["--local", "--from-run", artifacts.trial, "--tracking-uri", artifacts.store.uri])


def shard(artifacts: Artifacts) -> Path:
    return next((artifacts.folder / "data").glob("*.arrow"))


def checkpoint_file(name: str) -> Callable[[Artifacts], Path]:
    def find(artifacts: Artifacts) -> Path:
        checkpoint = latest_checkpoint(artifacts.folder / "interrupted")
        assert checkpoint is not None
        return checkpoint / name

    return find


FILES: dict[str, tuple[Callable[[Artifacts], Path], Callable[[Artifacts], Any]]] = {
    "data set, description": (lambda s: s.folder / "data" / "dataset.json", open_data),
    "data set, clips": (shard, open_data),
    "checkpoint, weights": (checkpoint_file("model.safetensors"), resume_training),
    "checkpoint, settings": (checkpoint_file("config.json"), resume_training),
    "checkpoint, state": (checkpoint_file("state.pt"), resume_training),
    "artifact, weights": (lambda s: s.artifact(s.trial, "checkpoint/model.safetensors"), evaluate_trial),
    "artifact, settings": (lambda s: s.artifact(s.trial, "checkpoint/config.json"), evaluate_trial),
    "artifact, settings that a sweep starts from": (
        lambda s: s.artifact(s.trial, "checkpoint/config.json"),
        sweep_from_run,
    ),
    "artifact, weights of a member": (lambda s: s.artifact(s.trial, "checkpoint/model.safetensors"), evaluate_ensemble),
    "artifact, members": (lambda s: s.artifact(s.ensemble, "ensemble.json"), evaluate_ensemble),
    "artifact, scores": (lambda s: s.artifact(s.trial, "scores/test.arrow"), read_scores),
    "artifact, sweep": (lambda s: s.artifact(s.sweep, "sweep.json"), resume_sweep),
}


@contextlib.contextmanager
def restored(*paths: Path) -> Iterator[None]:
    """Restore the content of files at the end of the block."""
    contents = [path.read_bytes() for path in paths]
    yield
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)


@pytest.fixture
def isolated_artifacts(artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifacts:
    """The artifacts, with a working directory in which a trap would create its directory."""
    monkeypatch.chdir(tmp_path)
    return artifacts


@pytest.mark.parametrize("trap", [plain_pickle, torch_archive, numpy_object_array])
@pytest.mark.parametrize("file", FILES)
def test_loading_a_file_executes_no_code(
    isolated_artifacts: Artifacts, file: str, trap: Callable[[Path], None], tmp_path: Path
) -> None:
    locate, use = FILES[file]
    path = locate(isolated_artifacts)
    others = {path.parent / "config.json", isolated_artifacts.folder / "data" / "dataset.json"} - {path}
    with restored(path, *filter(Path.exists, others)):
        plant(path, file, trap)
        with pytest.raises(InputError, match=path.name.replace(".", r"\.") + "|dataset|specification"):
            use(isolated_artifacts)
    assert not (tmp_path / MARKER).exists()


def plant(path: Path, file: str, trap: Callable[[Path], None]) -> None:
    """Replace a file by a trap, and adapt its digest, as an attacker would."""
    trap(path)
    if path.name in ("model.safetensors", "state.pt"):
        adapt_digests(path.parent)
    if file == "data set, clips":
        description = json.loads((path.parent / "dataset.json").read_text())
        description["files"][0] |= {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        del description["sha256"]
        (path.parent / "dataset.json").write_text(json.dumps(with_digest(description)))


def test_traps_execute_code_when_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cases: list[tuple[Callable[[Path], None], Callable[[Path], Any]]] = [
        (plain_pickle, lambda path: pickle.loads(path.read_bytes())),
        (torch_archive, lambda path: torch.load(path, weights_only=False)),
        (numpy_object_array, lambda path: np.load(path, allow_pickle=True)),
    ]
    for trap, unpickle in cases:
        trap(tmp_path / "trap")
        unpickle(tmp_path / "trap")
        (tmp_path / MARKER).rmdir()


@pytest.mark.parametrize("run_id", ["../../etc", "a/b", "..", "%2e%2e", "A" * 32, "0" * 31, ""])
def test_run_id_must_be_hexadecimal(artifacts: Artifacts, run_id: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"32 hexadecimal|no run whose id begins with"):
        evaluate(run_id, tracking_uri=artifacts.store.uri)
    content = {"members": [{"modality": "joint", "run_id": run_id, "weight": 1.0}], "sharpness": 1, "fitted_by": ""}
    (tmp_path / "ensemble.json").write_text(json.dumps(content))
    ensemble = artifacts.store.start("1", f"ensemble {run_id}", "an ensemble", {"fgst.kind": "ensemble"})
    ensemble.log_artifacts(tmp_path)
    with pytest.raises(InputError, match=r"32 hexadecimal|members\[0\]\.run_id"):
        evaluate(ensemble.run_id, tracking_uri=artifacts.store.uri)


def test_data_sets_in_pickles_execute_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for side in ("train", "val"):
        np.save(tmp_path / "data" / f"{side}_data.npy", np.zeros((1, 3, 4, 25, 2), np.float32))
        plain_pickle(tmp_path / "data" / f"{side}_label.pkl")
    plain_pickle(tmp_path / "annotations.pkl")
    np.savez(tmp_path / "clips.npz", x_train=np.array([Trap()]), y_train=0, x_test=0, y_test=0)
    for source in ("data", "annotations.pkl", "clips.npz"):
        [source_format] = [f for f in SOURCE_FORMATS if f.recognizes(tmp_path / source)]
        with pytest.raises(InputError), source_format.open(tmp_path / source, SourceOptions()):
            pass
    with pytest.raises(InputError):
        read_clip((tmp_path / "annotations.pkl").read_bytes(), "pyskl", NTU_25)
    assert not (tmp_path / MARKER).exists()
