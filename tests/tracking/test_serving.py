"""The champion behind HTTP: `mlflow models serve` answers requests of raw clips, from code and safetensors alone."""

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

import numpy as np
import pytest
import torch

from fgst.data.dataset import ArrowDataset
from fgst.evaluation.ensemble import EnsembleCard, Member
from fgst.evaluation.inference import Predictor
from fgst.tracking import registry
from fgst.tracking.store import TrackingStore
from tests.cli.test_predict import as_file
from tests.support import small
from tests.support.small import network

TIMEOUT = 180


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    torch.set_num_threads(1)
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture(scope="module")
def champion(dataset: ArrowDataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrackingStore, str, Path]:
    """A store with an ensemble of two networks as its champion; the name of the model; its networks in a folder."""
    folder = tmp_path_factory.mktemp("champion")
    store = TrackingStore(f"sqlite:///{folder}/mlflow.db")
    experiment, members = store.experiment("small x-sub"), []
    for number, modality in enumerate(("joint", "bone")):
        made = network(dataset, folder / modality, seed=number, data__modality=modality)
        (made / "state.pt").unlink()
        made.rename(folder / modality / "checkpoint")
        run = store.start(experiment, modality, modality, {"fgst.kind": "trial"})
        run.log_artifacts(folder / modality)
        members.append(Member(modality, run.run_id, 0.5))
    ensemble = store.start(experiment, "ensemble", "an ensemble", {"fgst.kind": "ensemble"})
    (folder / "ensemble").mkdir()
    EnsembleCard(tuple(members), 1.5).write(folder / "ensemble" / "ensemble.json")
    ensemble.log_artifacts(folder / "ensemble")
    assert "version 1" in registry.promote_if_better(store, ensemble.run_id, "small x-sub", 80.0, "a split")
    (folder / "networks").mkdir()
    registry.collect(store, ensemble.run_id, folder / "networks")
    return store, registry.model_name("small x-sub"), folder / "networks"


def request(dataset: ArrowDataset, *rows: int) -> list[dict[str, str]]:
    return [
        {"name": f"{row}.npy", "content": base64.b64encode(as_file(dataset.clip(row))).decode()} for row in rows
    ]  # fmt: skip


def test_model_holds_no_pickle_and_says_what_it_takes(champion: tuple[TrackingStore, str, Path]) -> None:
    store, name, _ = champion
    with store.artifacts(registry.run_of(store, f"{name}@champion"), registry.MODEL) as folder:
        names = [path.name for path in folder.rglob("*") if path.is_file()]
        assert not [n for n in names if n.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"))]
        assert names.count("model.safetensors") == 2
        described = (folder / "MLmodel").read_text()
        assert "input_example" in described
        assert '"name": "content"' in described
        example = json.loads((folder / "serving_input_example.json").read_text())
    assert set(example["dataframe_split"]["columns"]) == {"name", "content"}


@pytest.fixture
def server(champion: tuple[TrackingStore, str, Path]) -> Iterator[str]:
    store, name, _ = champion
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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


def ask(url: str, records: Any) -> Any:
    body = json.dumps({"dataframe_records": records}).encode()
    wanted = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(wanted, timeout=60) as answer:

        def refuse(word: str) -> Any:
            raise AssertionError(f"{word} is not JSON")

        return json.loads(answer.read(), parse_constant=refuse)["predictions"]


@pytest.mark.slow
def test_requests_over_http(champion: tuple[TrackingStore, str, Path], server: str, dataset: ArrowDataset) -> None:
    networks = Predictor.load(champion[2])
    answers = ask(server, [*request(dataset, 0, 7), {"name": "bad.npy", "content": "?"}])
    expected = networks.probabilities([dataset.clip(0)])[0], networks.probabilities([dataset.clip(7)])[0]
    for answer, row, probabilities in zip(answers, (0, 7), expected, strict=False):
        assert answer["name"] == f"{row}.npy"
        assert answer["class"] == dataset.classes[int(np.argmax(probabilities))]
        found = {best["class"]: best["probability"] for best in answer["top"]}
        assert found == pytest.approx(dict(zip(dataset.classes, probabilities.tolist(), strict=True)), rel=1e-4)
    assert "base64" in answers[2]["fault"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(server, [{"file": "x"}])
    assert refused.value.code == 400
    assert len(ask(server, request(dataset, 1))) == 1  # it still answers
