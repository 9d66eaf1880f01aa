"""Inference on new clips: scores equal those of evaluation, ensembles, and invalid or malicious files."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fgst.data.dataset import ArrowDataset
from fgst.data.formats import read_clip
from fgst.data.loader import make_loaders
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import NTU_25, NW_UCLA_20
from fgst.errors import InputError
from fgst.evaluation.ensemble import EnsembleCard, Member, softmax
from fgst.evaluation.inference import Predictor
from fgst.evaluation.prediction import predict_files
from fgst.evaluation.scoring import score
from fgst.model.card import ModelCard, load_model
from tests.evaluation.helpers import npy_bytes
from tests.support import small
from tests.support.numerics import assert_close
from tests.support.small import save_untrained_network

CPU = torch.device("cpu")


@pytest.fixture
def predictor(checkpoint: Path) -> Predictor:
    return Predictor.load(checkpoint)


@pytest.mark.parametrize("modality", ["joint", "bone_motion"])
def test_scores_of_raw_arrays_equal_evaluation(dataset: ArrowDataset, tmp_path: Path, modality: str) -> None:
    predictor = Predictor.load(save_untrained_network(dataset, tmp_path, data__modality=modality))
    loader = make_loaders(dataset, predictor.card.config.data, CPU)["test"]
    expected = score(predictor.members[0].model, loader).scores
    clips = [predictor.read(npy_bytes(dataset.clip(row))) for row in loader.rows]
    assert_close(predictor.members[0].scores(clips, CPU), expected, terms=200, dtype=torch.float32)
    assert_close(predictor.probabilities(clips), softmax(expected), terms=200, dtype=torch.float32)
    for clip, row in zip(clips[:5], softmax(expected), strict=False):
        assert_close(predictor.probabilities([clip])[0], row, terms=200, dtype=torch.float32)


def test_scores_of_real_recordings_equal_evaluation(nw_ucla: ArrowDataset, nw_ucla_zip: Path, tmp_path: Path) -> None:
    predictor = Predictor.load(
        save_untrained_network(nw_ucla, tmp_path, model__focal_joints=10, model__parts=5, data__frames=16)
    )
    assert predictor.card.preparation == "nw-ucla"
    loader = make_loaders(nw_ucla, predictor.card.config.data, CPU)["test"]
    expected = score(predictor.members[0].model, loader).scores
    with zipfile.ZipFile(nw_ucla_zip) as archive:
        members = {Path(name).stem: name for name in archive.namelist() if name.endswith(".json")}
        clips = [predictor.read(archive.read(members[clip])) for clip in loader.clip_ids]
    assert_close(predictor.members[0].scores(clips, CPU), expected, terms=200, dtype=torch.float32)
    assert_close(predictor.probabilities(clips), softmax(expected), terms=200, dtype=torch.float32)


def test_ensemble_fuses_probabilities_of_networks(dataset: ArrowDataset, tmp_path: Path) -> None:
    clips = [dataset.clip(row) for row in range(6)]
    single = []
    for number, modality in enumerate(("joint", "bone")):
        checkpoint = save_untrained_network(dataset, tmp_path / f"{number}", seed=number, data__modality=modality)
        (tmp_path / "both").mkdir(exist_ok=True)
        checkpoint.rename(tmp_path / "both" / modality)
        single.append(Predictor.load(tmp_path / "both" / modality).probabilities(clips))
    EnsembleCard((Member("joint", "a" * 32, 0.7), Member("bone", "b" * 32, 0.3)), 1.4).write(
        tmp_path / "both" / "ensemble.json"
    )
    product = (single[0] ** 0.7 * single[1] ** 0.3) ** 1.4
    expected = product / product.sum(axis=1, keepdims=True)
    assert_close(Predictor.load(tmp_path / "both").probabilities(clips), expected, terms=200, dtype=torch.float32)


def test_top_ranks_classes_by_probability(predictor: Predictor, dataset: ArrowDataset) -> None:
    clip = dataset.clip(3)
    [ranking] = predictor.top([clip], 2)
    probabilities = predictor.probabilities([clip])[0]
    assert [entry["label"] for entry in ranking] == np.argsort(-probabilities)[:2].tolist()
    assert [entry["class"] for entry in ranking] == [dataset.classes[entry["label"]] for entry in ranking]
    assert [entry["probability"] for entry in ranking] == pytest.approx(
        sorted(probabilities, reverse=True)[:2], rel=1e-5
    )
    assert len(predictor.top([clip], 99)[0]) == 3


def test_ensemble_of_different_classes_is_rejected(dataset: ArrowDataset, tmp_path: Path) -> None:
    both = tmp_path / "both"
    both.mkdir()
    save_untrained_network(dataset, tmp_path / "0").rename(both / "joint")
    other = save_untrained_network(dataset, tmp_path / "1", data__modality="bone")
    card = dataclasses.replace(ModelCard.read(other / "config.json"), classes=("a", "b", "c"))
    card.write(other / "config.json")
    other.rename(both / "bone")
    EnsembleCard((Member("joint", "a" * 32, 0.7), Member("bone", "b" * 32, 0.3))).write(both / "ensemble.json")
    with pytest.raises(InputError, match="different skeletons, classes or preparations"):
        Predictor.load(both)


def test_exchanged_networks_of_ensemble_are_rejected(dataset: ArrowDataset, tmp_path: Path) -> None:
    for modality, folder in (("joint", "bone"), ("bone", "joint")):
        save_untrained_network(dataset, tmp_path / f"of-{modality}", data__modality=modality).rename(tmp_path / folder)
    EnsembleCard((Member("joint", "a" * 32, 0.7), Member("bone", "b" * 32, 0.3))).write(tmp_path / "ensemble.json")
    with pytest.raises(InputError, match="joint: is a network of modality bone"):
        Predictor.load(tmp_path)


# Files


def test_predict_files_reads_files_folders_and_zips_in_order(
    predictor: Predictor, dataset: ArrowDataset, tmp_path: Path
) -> None:
    folder = tmp_path / "clips" / "deep"
    folder.mkdir(parents=True)
    for row in range(3):
        (folder / f"{row}.npy").write_bytes(npy_bytes(dataset.clip(row)))
    (folder / "notes.txt").write_text("not a clip")
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.write(folder / "1.npy", "x/1.npy")
    files = [str(tmp_path / "bad.npy"), str(tmp_path / "clips") + "/", str(tmp_path / "some.zip")]
    rows = list(predict_files(predictor, files, 5, CPU))
    assert [Path(row["file"]).name for row in rows] == ["bad.npy", "0.npy", "1.npy", "2.npy", "1.npy"]
    assert "is not an array" in rows[0]["fault"]
    assert rows[2]["top"][0]["probability"] == pytest.approx(rows[4]["top"][0]["probability"], rel=1e-5)


INVALID_FILES = {
    "empty": b"",
    "a pickle": npy_bytes(np.zeros(3))[:6] + b"\x80\x04K\x01.",
    "objects": None,
    "truncated": npy_bytes(np.zeros((9, 6, 3)))[:-40],
    "other joints": npy_bytes(np.zeros((9, 7, 3))),
    "no frames": npy_bytes(np.zeros((0, 6, 3))),
    "text": npy_bytes(np.array(["a"])),
    "not finite": npy_bytes(np.full((9, 6, 3), np.inf)),
    "too big for float32": npy_bytes(np.full((9, 6, 3), 1e300)),
    "three persons": npy_bytes(np.zeros((3, 9, 6, 3))),
    "a huge shape": (
        npy_bytes(np.zeros((9, 6, 3))).replace(b"(9, 6, 3)", b"(9999999, 6, 3)").replace(b"      \n", b"\n")
    ),
    "an archive": None,
}


@pytest.mark.parametrize("name", INVALID_FILES)
def test_read_rejects_invalid_files_with_short_message(predictor: Predictor, name: str) -> None:
    content = INVALID_FILES[name]
    if content is None:
        file = io.BytesIO()
        if name == "objects":
            np.save(file, np.array([pytest.fail], dtype=object), allow_pickle=True)
        else:
            np.savez(file, clip=np.zeros((9, 6, 3)))
        content = file.getvalue()
    with pytest.raises(InputError) as error:
        predictor.read(content)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("preparation", ["nw-ucla", "ntu"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"{}", b"[" * 100_000, b"1\n1\n", b"\x00" * 99, b"1e9\n" * 50])
def test_read_clip_rejects_invalid_text_files(preparation: str, content: bytes, dataset: ArrowDataset) -> None:
    with pytest.raises(InputError):
        read_clip(content, preparation, dataset.skeleton)
    with pytest.raises(InputError, match="a clip has at most"):
        read_clip(b" " * (17 << 20), preparation, dataset.skeleton)


# The preparation of raw files in a model card


def test_unknown_preparation_is_rejected(checkpoint: Path, tmp_path: Path) -> None:
    content = json.loads((checkpoint / "config.json").read_text())
    del content["sha256"]
    (tmp_path / "config.json").write_text(json.dumps(content | {"preparation": "os"}))
    with pytest.raises(InputError, match="preparation 'os'"):
        ModelCard.read(tmp_path / "config.json")
    del content["preparation"]  # cards of earlier versions do not have it
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert ModelCard.read(tmp_path / "config.json").preparation == "array"


def test_network_without_final_norm_in_its_card_is_loaded(dataset: ArrowDataset, tmp_path: Path) -> None:
    """Cards of earlier versions do not have this field, and their networks no such norm."""
    folder = small.save_untrained_network(dataset, tmp_path, model__final_norm=False)
    expected, _ = load_model(folder)
    content = json.loads((folder / "config.json").read_text())
    del content["config"]["model.final_norm"], content["sha256"]
    (folder / "config.json").write_text(json.dumps(content))
    model, card = load_model(folder)
    assert not card.config.model.final_norm
    clips = torch.randn(2, 1, 8, 6, 3)
    assert torch.equal(model(clips), expected(clips))
    assert not any(name.startswith("final_norm") for name in model.state_dict())


@pytest.mark.parametrize(
    ("skeleton", "name", "preparation"),
    [
        (NW_UCLA_20, "nw-ucla", "nw-ucla"),
        (NTU_25, "ntu-60", "ntu"),
        (NTU_25, "ntu-120", "ntu"),
        (NTU_25, "demo", "array"),
    ],
)
def test_missing_preparation_is_inferred(skeleton: Skeleton, name: str, preparation: str, tmp_path: Path) -> None:
    config = small.small_config(tmp_path, model__parts=5)
    ModelCard(config, skeleton, ("a", "b"), 2, name, "d" * 64).write(tmp_path / "config.json")
    content = json.loads((tmp_path / "config.json").read_text())
    del content["preparation"], content["sha256"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert ModelCard.read(tmp_path / "config.json").preparation == preparation
