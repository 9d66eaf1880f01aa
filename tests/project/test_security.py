"""Nothing that is loaded can run code, wherever somebody puts it; no name from outside leads out of its folder."""

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
from fgst.data.dataset import ArrowDataset, file_digest
from fgst.errors import InputError
from fgst.evaluation.ensemble import EnsembleCard, Member
from fgst.tracking.evaluation import evaluate
from fgst.tracking.store import TrackingStore
from fgst.training.checkpoint import latest_checkpoint
from fgst.training.trainer import fit
from tests.support import small

ROOT = Path(__file__).parents[2]
FOCAL_K = runpy.run_path(str(ROOT / "sweeps" / "focal_k.py"))["definition"]
SETTINGS = [
    *("--set", "model.channels=8,8,16,16", "--set", "model.stage1_layers=2", "--set", "model.stage2_layers=2"),
    *("--set", "model.parts=3", "--set", "data.frames=8", "--set", "train.batch_size=8", "--set", "train.repeat=1"),
]
SPRUNG = "sprung"


class Trap:
    """What an attacker would put into a file: an instruction, run by whoever unpickles it."""

    def __reduce__(self) -> Any:
        return (os.mkdir, (SPRUNG,))


def plain(path: Path) -> None:
    path.write_bytes(pickle.dumps(Trap(), protocol=2))


def zipped(path: Path) -> None:
    torch.save({"model": Trap()}, path)


def numpy_objects(path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.array([Trap()], dtype=object), allow_pickle=True)
    path.write_bytes(file.getvalue())


@dataclass
class Scene:
    """A data set, a run that was trained on it, an ensemble, a sweep and an interrupted training."""

    folder: Path
    store: TrackingStore
    sweep: str
    trial: str
    ensemble: str

    def artifact(self, run_id: str, path: str) -> Path:
        root = Path(self.store.run(run_id).info.artifact_uri.removeprefix("file://"))
        return root / path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("scene")
    dataset = small.write_small(folder / "data")
    store = TrackingStore(f"sqlite:///{folder}/mlflow.db")
    arguments = ["--local", "--dataset", "data", "--preset", "tiny", "--values", "4", "--epochs", "2", *SETTINGS]
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        sweep(FOCAL_K, argv=arguments)
    [run] = store.client.search_runs(["1"], "tags.`fgst.kind` = 'sweep'")
    [trial] = store.children(run.info.run_id)
    made = store.start("1", "ensemble", "an ensemble", {"fgst.kind": "ensemble"})
    (folder / "made").mkdir()
    EnsembleCard((Member("joint", trial.info.run_id, 1.0),)).write(folder / "made" / "ensemble.json")
    made.log_artifacts(folder / "made")
    next(iter(fit(small.small_config(dataset), checkpoints=folder / "going-on")))
    return Scene(folder, store, run.info.run_id, trial.info.run_id, made.run_id)


def open_data(scene: Scene) -> Any:
    return ArrowDataset(scene.folder / "data")


def go_on(scene: Scene) -> Any:
    config = small.small_config(scene.folder / "data")
    return list(fit(config, checkpoints=scene.folder / "going-on"))


def evaluate_trial(scene: Scene) -> Any:
    return evaluate(scene.trial, tracking_uri=scene.store.uri)


def evaluate_ensemble(scene: Scene) -> Any:
    return evaluate(scene.ensemble, tracking_uri=scene.store.uri)


def read_scores(scene: Scene) -> Any:
    return scene.store.scores(scene.trial, "test")


def resume(scene: Scene) -> Any:
    return sweep(FOCAL_K, argv=["--local", "--resume", scene.sweep, "--tracking-uri", scene.store.uri])


def begin_from(scene: Scene) -> Any:
    return sweep(FOCAL_K, argv=["--local", "--from-run", scene.trial, "--tracking-uri", scene.store.uri])


def shard(scene: Scene) -> Path:
    return next((scene.folder / "data").glob("*.arrow"))


def going_on(name: str) -> Callable[[Scene], Path]:
    def find(scene: Scene) -> Path:
        found = latest_checkpoint(scene.folder / "going-on")
        assert found is not None
        return found / name

    return find


PLACES: dict[str, tuple[Callable[[Scene], Path], Callable[[Scene], Any]]] = {
    "data set, description": (lambda s: s.folder / "data" / "dataset.json", open_data),
    "data set, clips": (shard, open_data),
    "checkpoint, weights": (going_on("model.safetensors"), go_on),
    "checkpoint, settings": (going_on("config.json"), go_on),
    "checkpoint, state": (going_on("state.pt"), go_on),
    "artifact, weights": (lambda s: s.artifact(s.trial, "checkpoint/model.safetensors"), evaluate_trial),
    "artifact, settings": (lambda s: s.artifact(s.trial, "checkpoint/config.json"), evaluate_trial),
    "artifact, settings of a sweep's base": (lambda s: s.artifact(s.trial, "checkpoint/config.json"), begin_from),
    "artifact, weights of a member": (lambda s: s.artifact(s.trial, "checkpoint/model.safetensors"), evaluate_ensemble),
    "artifact, members": (lambda s: s.artifact(s.ensemble, "ensemble.json"), evaluate_ensemble),
    "artifact, scores": (lambda s: s.artifact(s.trial, "scores/test.arrow"), read_scores),
    "artifact, sweep": (lambda s: s.artifact(s.sweep, "sweep.json"), resume),
}


@contextlib.contextmanager
def put_back(*paths: Path) -> Iterator[None]:
    before = [path.read_bytes() for path in paths]
    yield
    for path, content in zip(paths, before, strict=True):
        path.write_bytes(content)


@pytest.fixture
def scene(whole: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.chdir(tmp_path)  # where a trap would spring
    return whole


@pytest.mark.parametrize("trap", [plain, zipped, numpy_objects])
@pytest.mark.parametrize("place", PLACES)
def test_no_file_runs_code(scene: Scene, place: str, trap: Callable[[Path], None], tmp_path: Path) -> None:
    where, use = PLACES[place]
    path = where(scene)
    with put_back(path, scene.folder / "data" / "dataset.json"):
        _plant(path, place, trap)
        with pytest.raises(InputError, match=path.name.replace(".", r"\.") + "|dataset|specification"):
            use(scene)
    assert not (tmp_path / SPRUNG).exists()


def _plant(path: Path, place: str, trap: Callable[[Path], None]) -> None:
    trap(path)
    if place == "data set, clips":  # with the digest that belongs to it: an attacker would see to that
        description = json.loads((path.parent / "dataset.json").read_text())
        description["files"][0] |= {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        (path.parent / "dataset.json").write_text(json.dumps(description))


def test_the_traps_would_spring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for trap, spring in (
        (plain, lambda path: pickle.loads(path.read_bytes())),
        (zipped, lambda path: torch.load(path, weights_only=False)),
        (numpy_objects, lambda path: np.load(path, allow_pickle=True)),
    ):
        trap(tmp_path / "trap")
        spring(tmp_path / "trap")
        (tmp_path / SPRUNG).rmdir()


@pytest.mark.parametrize("run_id", ["../../etc", "a/b", "..", "%2e%2e", "A" * 32, "0" * 31, ""])
def test_a_run_id_is_nothing_but_an_id(whole: Scene, run_id: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="32 hexadecimal"):
        evaluate(run_id, tracking_uri=whole.store.uri)
    content = {"members": [{"modality": "joint", "run_id": run_id, "weight": 1.0}], "sharpness": 1, "fitted_by": ""}
    (tmp_path / "ensemble.json").write_text(json.dumps(content))
    made = whole.store.start("1", f"ensemble {run_id}", "an ensemble", {"fgst.kind": "ensemble"})
    made.log_artifacts(tmp_path)
    with pytest.raises(InputError, match="32 hexadecimal"):
        evaluate(made.run_id, tracking_uri=whole.store.uri)
