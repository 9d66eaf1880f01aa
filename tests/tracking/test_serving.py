"""The registered champion, served by ``mlflow models serve`` from code and safetensors files."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pytest
import torch

from fgst.data.dataset import ArrowDataset
from fgst.errors import InputError
from fgst.evaluation.ensemble import EnsembleCard, Member
from fgst.evaluation.inference import Predictor
from fgst.tracking import registry
from fgst.tracking.store import TrackingStore
from tests.evaluation.helpers import npy_bytes
from tests.support import small
from tests.support.small import save_untrained_network

TIMEOUT = 180


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    torch.set_num_threads(1)
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture(scope="module")
def champion(dataset: ArrowDataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrackingStore, str, Path]:
    """A store with an ensemble of two networks as champion, the model's name, and a folder with the networks."""
    folder = tmp_path_factory.mktemp("champion")
    store = TrackingStore(f"sqlite:///{folder}/mlflow.db")
    experiment, members = store.experiment("small x-sub"), []
    for number, modality in enumerate(("joint", "bone")):
        checkpoint = save_untrained_network(dataset, folder / modality, seed=number, data__modality=modality)
        (checkpoint / "state.pt").unlink()
        checkpoint.rename(folder / modality / "checkpoint")
        run = store.start(experiment, modality, modality, {"fgst.kind": "trial"})
        run.log_artifacts(folder / modality)
        members.append(Member(modality, run.run_id, 0.5))
    ensemble = store.start(experiment, "ensemble", "an ensemble", {"fgst.kind": "ensemble"})
    (folder / "ensemble").mkdir()
    EnsembleCard(tuple(members), 1.5).write(folder / "ensemble" / "ensemble.json")
    ensemble.log_artifacts(folder / "ensemble")
    assert "version 1" in registry.promote_if_better(store, ensemble.run_id, "small x-sub", 80.0, "a split")
    (folder / "networks").mkdir()
    registry.download_networks(store, ensemble.run_id, folder / "networks")
    return store, registry.model_name("small x-sub"), folder / "networks"


def records(dataset: ArrowDataset, *rows: int) -> list[dict[str, str]]:
    """Clips of a data set as rows of a request."""
    return [
        {"name": f"{row}.npy", "content": base64.b64encode(npy_bytes(dataset.clip(row))).decode()} for row in rows
    ]  # fmt: skip


def test_model_contains_no_pickle_and_documents_its_input(champion: tuple[TrackingStore, str, Path]) -> None:
    store, name, _ = champion
    with store.artifacts(registry.resolve_model(store, f"{name}@champion"), registry.MODEL) as folder:
        names = [path.name for path in folder.rglob("*") if path.is_file()]
        assert not [n for n in names if n.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"))]
        assert names.count("model.safetensors") == 2
        description = (folder / "MLmodel").read_text()
        assert "input_example" in description
        assert '"name": "content"' in description
        example = json.loads((folder / "serving_input_example.json").read_text())
    assert set(example["dataframe_split"]["columns"]) == {"name", "content"}


@pytest.mark.parametrize("file", ["ensemble.json", "bone/config.json", "joint/model.safetensors"])
def test_damaged_model_is_not_loaded(champion: tuple[TrackingStore, str, Path], file: str) -> None:
    store, name, _ = champion
    with store.artifacts(registry.resolve_model(store, f"{name}@champion"), registry.MODEL) as folder:
        [damaged] = folder.rglob(file)
        content = damaged.read_bytes()
        damaged.write_bytes(
            content.replace(b"0.5", b"0.4") if file == "ensemble.json" else content[:-9] + b"1" + content[-8:]
        )
        with pytest.raises(InputError, match=f"{file}: .*"):
            mlflow.pyfunc.load_model(str(folder))
        damaged.write_bytes(content)
        mlflow.pyfunc.load_model(str(folder))


def test_resolve_model_accepts_names_aliases_and_versions(champion: tuple[TrackingStore, str, Path]) -> None:
    store, name, _ = champion
    run_id = registry.resolve_model(store, "champion")
    for model in (name, f"{name}@champion", f"{name}/1"):
        assert registry.resolve_model(store, model) == run_id
    for model in ("unknown", f"{name}/7", f"{name}@king"):
        with pytest.raises(InputError, match=f"--model {model}: "):
            registry.resolve_model(store, model)


@pytest.fixture
def server(champion: tuple[TrackingStore, str, Path]) -> Iterator[str]:
    store, name, _ = champion
    """The address of a server that serves the champion."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "MLFLOW_TRACKING_URI": store.uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    process = subprocess.Popen(
        [*command, "-m", f"models:/{name}@champion", "-h", "127.0.0.1", "-p", str(port)],
        env=os.environ | environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + TIMEOUT
        while True:
            try:
                urllib.request.urlopen(f"{url}/ping", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, process.stdout and process.stdout.read()
                assert time.monotonic() < end
                time.sleep(0.3)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def predict(url: str, rows: Any) -> Any:
    body = json.dumps({"dataframe_records": rows}).encode()
    request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:

        def reject(word: str) -> Any:
            raise AssertionError(f"{word} is not valid JSON")

        return json.loads(response.read(), parse_constant=reject)["predictions"]


@pytest.mark.slow
def test_served_model_predicts_and_reports_invalid_clips(
    champion: tuple[TrackingStore, str, Path], server: str, dataset: ArrowDataset
) -> None:
    predictor = Predictor.load(champion[2])
    rows = predict(server, [*records(dataset, 0, 7), {"name": "bad.npy", "content": "?"}])
    for prediction, row in zip(rows, (0, 7), strict=False):
        probabilities = predictor.probabilities([dataset.clip(row)])[0]
        assert prediction["name"] == f"{row}.npy"
        assert prediction["class"] == dataset.classes[int(np.argmax(probabilities))]
        top = {entry["class"]: entry["probability"] for entry in prediction["top"]}
        assert top == pytest.approx(dict(zip(dataset.classes, probabilities.tolist(), strict=True)), rel=1e-4)
    assert "base64" in rows[2]["fault"]
    with pytest.raises(urllib.error.HTTPError) as error:
        predict(server, [{"file": "x"}])
    assert error.value.code == 400
    assert len(predict(server, records(dataset, 1))) == 1  # the server still responds
