"""Raw files → classes: prepared as the data set was, scored as evaluation does, faults named, nothing unpickled."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fgst.cli.predict import main, predict
from fgst.data.dataset import ArrowDataset
from fgst.data.formats import read_clip
from fgst.data.loader import make_loaders
from fgst.data.skeleton import NTU_25, NW_UCLA_20, Skeleton
from fgst.errors import InputError
from fgst.evaluation.ensemble import EnsembleCard, Member, softmax
from fgst.evaluation.inference import Predictor
from fgst.evaluation.scoring import score
from fgst.model.card import ModelCard
from tests.support import small
from tests.support.small import network

CPU = torch.device("cpu")


def as_file(joints: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, joints)
    return file.getvalue()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    torch.set_num_threads(1)
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture(scope="module")
def folder(dataset: ArrowDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network(dataset, tmp_path_factory.mktemp("network"))


@pytest.fixture
def networks(folder: Path) -> Predictor:
    return Predictor.load(folder)


@pytest.mark.parametrize("modality", ["joint", "bone_motion"])
def test_a_clip_is_scored_as_evaluation_scores_it(dataset: ArrowDataset, tmp_path: Path, modality: str) -> None:
    networks = Predictor.load(network(dataset, tmp_path, data__modality=modality))
    store = make_loaders(dataset, networks.card.config.data, CPU)["test"]
    scores = score(networks.members[0].model, store).scores
    clips = [networks.read(as_file(dataset.clip(row))) for row in store.rows]
    np.testing.assert_array_equal(networks.members[0].scores(clips, CPU), scores)  # the same batch, the same bits
    np.testing.assert_allclose(networks.probabilities(clips), softmax(scores), rtol=1e-12)
    for clip, row in zip(clips[:5], softmax(scores), strict=False):
        np.testing.assert_allclose(networks.probabilities([clip])[0], row, atol=1e-5)


def test_real_recordings_are_scored_as_evaluation_scores_them(
    nw_ucla: ArrowDataset, nw_ucla_zip: Path, tmp_path: Path
) -> None:
    networks = Predictor.load(network(nw_ucla, tmp_path, model__focal_joints=10, model__parts=5, data__frames=16))
    assert networks.card.preparation == "nw-ucla"
    store = make_loaders(nw_ucla, networks.card.config.data, CPU)["test"]
    expected = score(networks.members[0].model, store).scores
    with zipfile.ZipFile(nw_ucla_zip) as archive:
        members = {Path(name).stem: name for name in archive.namelist() if name.endswith(".json")}
        clips = [networks.read(archive.read(members[clip])) for clip in store.clip_ids]
    np.testing.assert_array_equal(networks.members[0].scores(clips, CPU), expected)
    np.testing.assert_allclose(networks.probabilities(clips), softmax(expected), rtol=1e-12)


def test_an_ensemble_pools_its_networks(dataset: ArrowDataset, tmp_path: Path) -> None:
    clips = [dataset.clip(row) for row in range(6)]
    parts = []
    for number, modality in enumerate(("joint", "bone")):
        made = network(dataset, tmp_path / f"{number}", seed=number, data__modality=modality)
        (tmp_path / "both").mkdir(exist_ok=True)
        made.rename(tmp_path / "both" / modality)
        parts.append(Predictor.load(tmp_path / "both" / modality).probabilities(clips))
    EnsembleCard((Member("joint", "a" * 32, 0.7), Member("bone", "b" * 32, 0.3)), 1.4).write(
        tmp_path / "both" / "ensemble.json"
    )
    product = (parts[0] ** 0.7 * parts[1] ** 0.3) ** 1.4
    expected = product / product.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(Predictor.load(tmp_path / "both").probabilities(clips), expected, rtol=1e-5)


def test_the_likeliest_come_first(networks: Predictor, dataset: ArrowDataset) -> None:
    clip = dataset.clip(3)
    [best] = networks.top([clip], 2)
    row = networks.probabilities([clip])[0]
    assert [b["label"] for b in best] == np.argsort(-row)[:2].tolist()
    assert [b["class"] for b in best] == [dataset.classes[b["label"]] for b in best]
    assert [b["probability"] for b in best] == pytest.approx(sorted(row, reverse=True)[:2])
    assert len(networks.top([clip], 99)[0]) == 3


def test_folders_zips_and_files_in_order(networks: Predictor, dataset: ArrowDataset, tmp_path: Path) -> None:
    inside = tmp_path / "clips" / "deep"
    inside.mkdir(parents=True)
    for row in range(3):
        (inside / f"{row}.npy").write_bytes(as_file(dataset.clip(row)))
    (inside / "notes.txt").write_text("no clip")
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.write(inside / "1.npy", "x/1.npy")
    files = [str(tmp_path / "bad.npy"), str(tmp_path / "clips") + "/", str(tmp_path / "some.zip")]
    found = list(predict(networks, files, 5, CPU))
    assert [Path(row["file"]).name for row in found] == ["bad.npy", "0.npy", "1.npy", "2.npy", "1.npy"]
    assert "is not an array" in found[0]["fault"]
    assert found[2]["top"][0]["probability"] == pytest.approx(found[4]["top"][0]["probability"])


HOSTILE = {
    "empty": b"",
    "a pickle": as_file(np.zeros(3))[:6] + b"\x80\x04K\x01.",
    "objects": None,
    "truncated": as_file(np.zeros((9, 6, 3)))[:-40],
    "other joints": as_file(np.zeros((9, 7, 3))),
    "no frames": as_file(np.zeros((0, 6, 3))),
    "text": as_file(np.array(["a"])),
    "not finite": as_file(np.full((9, 6, 3), np.inf)),
    "too big for float32": as_file(np.full((9, 6, 3), 1e300)),
    "three persons": as_file(np.zeros((3, 9, 6, 3))),
    "a huge shape": as_file(np.zeros((9, 6, 3))).replace(b"(9, 6, 3)", b"(9999999, 6, 3)").replace(b"      \n", b"\n"),
    "an archive": None,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_clip_is_a_named_fault(networks: Predictor, name: str) -> None:
    content = HOSTILE[name]
    if content is None:
        file = io.BytesIO()
        if name == "objects":
            np.save(file, np.array([pytest.fail], dtype=object), allow_pickle=True)
        else:
            np.savez(file, clip=np.zeros((9, 6, 3)))
        content = file.getvalue()
    with pytest.raises(InputError) as fault:
        networks.read(content)
    assert len(str(fault.value)) < 200


@pytest.mark.parametrize("preparation", ["nw-ucla", "ntu"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"{}", b"[" * 100_000, b"1\n1\n", b"\x00" * 99, b"1e9\n" * 50])
def test_raw_files_of_either_kind_are_named_faults_too(preparation: str, content: bytes, dataset: ArrowDataset) -> None:
    with pytest.raises(InputError):
        read_clip(content, preparation, dataset.skeleton)
    with pytest.raises(InputError, match="no clip is longer"):
        read_clip(b" " * (17 << 20), preparation, dataset.skeleton)


def test_a_card_of_an_unknown_preparation_is_refused(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"preparation": "os"}))
    with pytest.raises(InputError, match="knows no preparation"):
        ModelCard.read(tmp_path / "config.json")
    del content["preparation"]  # of a network from before it was written down
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert ModelCard.read(tmp_path / "config.json").preparation == "array"


@pytest.mark.parametrize(
    ("skeleton", "name", "preparation"),
    [
        (NW_UCLA_20, "nw-ucla", "nw-ucla"),
        (NTU_25, "ntu-60", "ntu"),
        (NTU_25, "ntu-120", "ntu"),
        (NTU_25, "demo", "array"),
    ],
)
def test_a_card_from_before_preparations_were_named(
    skeleton: Skeleton, name: str, preparation: str, tmp_path: Path
) -> None:
    config = small.small_config(tmp_path, model__parts=5)
    ModelCard(config, skeleton, ("a", "b"), 2, name, "d" * 64).write(tmp_path / "config.json")
    content = json.loads((tmp_path / "config.json").read_text())
    del content["preparation"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert ModelCard.read(tmp_path / "config.json").preparation == preparation


@pytest.fixture
def run_id(dataset: ArrowDataset, folder: Path, tracking_uri: str, tmp_path: Path) -> str:
    from fgst.tracking.store import TrackingStore

    store = TrackingStore(tracking_uri)
    run = store.start(store.experiment("small x-sub"), "key", "a trial", {"fgst.kind": "trial"})
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "run" / "checkpoint" / name).write_bytes((folder / name).read_bytes())
    run.log_artifacts(tmp_path / "run")
    return run.run_id


def test_command_prints_one_json_object(
    run_id: str, tracking_uri: str, dataset: ArrowDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.npy").write_bytes(as_file(dataset.clip(0)))
    main(["--run-id", run_id, str(tmp_path / "one.npy"), "--json", "--tracking-uri", tracking_uri])
    report = json.loads(capsys.readouterr().out)
    assert report["run_id"] == run_id
    [row] = report["files"]
    assert sum(best["probability"] for best in row["top"]) == pytest.approx(1, abs=1e-5)
    main(["--run-id", run_id, str(tmp_path / "one.npy"), "--top", "1", "--tracking-uri", tracking_uri])
    assert row["top"][0]["class"] in capsys.readouterr().out


def test_command_reads_stdin(
    run_id: str, tracking_uri: str, dataset: ArrowDataset, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(as_file(dataset.clip(0))))
    monkeypatch.setattr("sys.stdin", stdin)
    main(["--run-id", run_id, "-", "--json", "--tracking-uri", tracking_uri])
    assert json.loads(capsys.readouterr().out)["files"][0]["file"] == "stdin"


def test_exit_codes_tell_how_many_failed(
    run_id: str, tracking_uri: str, dataset: ArrowDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.npy").write_bytes(as_file(dataset.clip(0)))
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    arguments = ["--run-id", run_id, "--tracking-uri", tracking_uri, str(tmp_path / "bad.npy")]
    with pytest.raises(SystemExit) as some:
        main([*arguments, str(tmp_path / "one.npy")])
    assert some.value.code == 1
    assert "no clip:" in capsys.readouterr().out
    with pytest.raises(InputError, match="none of the 1 files is a clip"):
        main(arguments)
    with pytest.raises(InputError, match="no such file"):
        main([*arguments, str(tmp_path / "nowhere.npy")])


def test_networks_that_do_not_belong_together_are_refused(dataset: ArrowDataset, tmp_path: Path) -> None:
    both = tmp_path / "both"
    both.mkdir()
    network(dataset, tmp_path / "0").rename(both / "joint")
    other = network(dataset, tmp_path / "1", data__modality="bone")
    card = dataclasses.replace(ModelCard.read(other / "config.json"), classes=("a", "b", "c"))
    card.write(other / "config.json")
    other.rename(both / "bone")
    EnsembleCard((Member("joint", "a" * 32, 0.7), Member("bone", "b" * 32, 0.3))).write(both / "ensemble.json")
    with pytest.raises(InputError, match="different skeletons or classes"):
        Predictor.load(both)
