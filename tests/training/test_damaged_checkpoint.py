"""Damaged, foreign and hostile checkpoints are reported with the name of the file, and run no code."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fgst.errors import InputError
from fgst.integrity import with_digest
from fgst.model import FGSTFormer
from fgst.model.card import ModelCard, load_model
from fgst.training.checkpoint import load_state
from tests.support.digests import adapt_digests, remove_digests
from tests.support.small import CLASSES, SKELETON, small_config
from tests.training.helpers import save


@pytest.fixture
def directory(tmp_path: Path, model: FGSTFormer, card: ModelCard) -> Path:
    return save(tmp_path / "run", 1, model, card)


class Payload:
    """The content of a malicious pickle: unpickling it creates a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("container", ["plain pickle", "torch, zipped", "torch, old format"])
def test_state_with_code_is_rejected_without_running_it(tmp_path: Path, directory: Path, container: str) -> None:
    trap = tmp_path / "trap"
    content = {"epoch": 1, "optimizer": Payload(trap)}
    if container == "plain pickle":
        (directory / "state.pt").write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, directory / "state.pt", _use_new_zipfile_serialization="zipped" in container)
    with pytest.raises(InputError, match=r"epoch-00001/state\.pt: was modified"):
        load_state(directory)
    adapt_digests(directory)
    with pytest.raises(InputError, match=r"epoch-00001/state\.pt: is damaged \(UnpicklingError"):
        load_state(directory)
    assert not trap.exists()
    if "torch" in container:
        torch.load(directory / "state.pt", weights_only=False)
    else:
        pickle.loads((directory / "state.pt").read_bytes())
    assert trap.exists()  # unpickling runs the code


@pytest.mark.parametrize("size", [0, 10, 0.5, -1, None])
def test_damaged_state_is_rejected_with_file_name(directory: Path, size: float | None) -> None:
    file = directory / "state.pt"
    content = file.read_bytes()
    file.write_bytes(b"garbage" if size is None else content[: int(size * len(content)) if size == 0.5 else int(size)])
    with pytest.raises(InputError, match=r"epoch-00001/state\.pt: was modified"):
        load_state(directory)
    adapt_digests(directory)
    with pytest.raises(InputError, match=r"epoch-00001/state\.pt: is damaged"):
        load_state(directory)


def test_missing_state_is_rejected_with_file_name(directory: Path) -> None:
    (directory / "state.pt").unlink()
    with pytest.raises(InputError, match=r"epoch-00001/state\.pt: "):
        load_state(directory)


@pytest.mark.parametrize("size", [0, 4, 100, 0.5, -1, None])
def test_damaged_weights_are_rejected_with_file_name(directory: Path, size: float | None) -> None:
    file = directory / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(
        b"garbage" * 9 if size is None else content[: int(size * len(content)) if size == 0.5 else int(size)]
    )
    with pytest.raises(InputError, match=r"epoch-00001/model\.safetensors: (was modified|does not contain)"):
        load_model(directory)
    adapt_digests(directory)
    with pytest.raises(InputError, match=r"epoch-00001/model\.safetensors: does not contain the weights"):
        load_model(directory)


def test_missing_weights_are_rejected_with_file_name(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"epoch-00001/model\.safetensors: "):
        load_model(directory)


@pytest.mark.parametrize(
    "foreign", ["wider", "other classes", "missing tensor", "extra tensor", "other type", "another network"]
)
def test_weights_of_another_network_are_rejected_with_file_name(directory: Path, card: ModelCard, foreign: str) -> None:
    weights = load_file(directory / "model.safetensors")
    if foreign == "wider":
        weights = small_card(card, model__channels=[16, 16, 32, 32]).build().state_dict()
    elif foreign == "other classes":
        weights = dataclasses.replace(card, classes=(*CLASSES, "fourth")).build().state_dict()
    elif foreign == "missing tensor":
        del weights["embedding.weight"]
    elif foreign == "extra tensor":
        weights["extra"] = torch.zeros(1)
    elif foreign == "other type":  # PyTorch would convert them, and lose digits
        weights = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    else:
        weights = torch.nn.Linear(3, 3).state_dict()
    save_file(weights, directory / "model.safetensors")
    adapt_digests(directory)
    with pytest.raises(InputError, match=r"epoch-00001/model\.safetensors: does not contain the weights"):
        load_model(directory)


def small_card(card: ModelCard, **values: Any) -> ModelCard:
    """Return the card with other settings of the small configuration."""
    return dataclasses.replace(card, config=small_config(Path("/sets/small"), **values))


def edited(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content | changes


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda content: {name: value for name, value in content.items() if name != key}


def with_setting(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content | {"config": content["config"] | {name: value}}


INVALID_CARDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{f"no {key}": without(key) for key in ("config", "skeleton", "classes", "max_persons", "dataset")},
    "a list": lambda content: [content],
    "null": lambda content: None,
    "config is a list": edited(config=[]),
    "config is text": edited(config="tiny"),
    "unknown setting": with_setting("model.unknown", 1),
    "invalid setting": with_setting("model.kernel_size", 4),
    "setting of wrong type": with_setting("train.lr", "fast"),
    "more focal joints than joints": with_setting("model.focal_joints", 7),
    "unknown partition": with_setting("model.parts", 4),
    "unresolved frames": with_setting("data.frames", None),
    "skeleton is text": edited(skeleton="stick-6"),
    "skeleton is invalid": edited(skeleton=SKELETON.to_dict() | {"parents": [0]}),
    "no classes": edited(classes=[]),
    "classes is a number": edited(classes=3),
    "unknown entry": edited(sha257=""),
    "max_persons is text": edited(max_persons="two"),
    "dataset is text": edited(dataset="small"),
}


@pytest.mark.parametrize("kind", INVALID_CARDS)
def test_invalid_card_is_rejected_with_file_name(directory: Path, kind: str) -> None:
    file = directory / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(INVALID_CARDS[kind](content)))
    with pytest.raises(InputError, match=r"epoch-00001/config\.json: "):
        load_model(directory)
    del content["sha256"]
    changed = INVALID_CARDS[kind](content)
    file.write_text(json.dumps(with_digest(changed) if isinstance(changed, dict) else changed))
    with pytest.raises(InputError, match=r"epoch-00001/config\.json: (?!.*was modified)"):
        load_model(directory)


@pytest.mark.parametrize(
    "change",
    [
        edited(classes=[CLASSES[1], CLASSES[0], CLASSES[2]]),
        edited(max_persons=3),
        edited(preparation="ntu"),
        edited(files={}),
        edited(sha256=None),
        edited(dataset={"name": "other", "digest": "1"}),
        with_setting("data.modality", "bone"),
        with_setting("model.focal_order", "score"),
    ],
)
def test_changed_card_is_rejected_with_file_name(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Each of these would be a valid card, of a network that computes something else with the same weights."""
    file = directory / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(InputError, match=r"epoch-00001/config\.json: .*was modified"):
        load_model(directory)


def test_checkpoint_of_earlier_version_is_read_with_a_warning(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, card = load_model(directory)
    assert not caplog.records
    remove_digests(directory)
    model, earlier_card = load_model(directory)
    assert earlier_card == card
    assert model.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())
    assert ["has no digests" in record.getMessage() for record in caplog.records] == [True]
    assert load_state(directory)["epoch"] == 1


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, None])
def test_card_that_is_not_json_is_rejected_with_file_name(directory: Path, content: bytes | None) -> None:
    (directory / "config.json").unlink()
    if content is not None:
        (directory / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"epoch-00001/config\.json: "):
        load_model(directory)


def test_folder_without_checkpoint_is_rejected_with_file_name(tmp_path: Path, directory: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere/config\.json: "):
        load_model(tmp_path / "nowhere")
    shutil.rmtree(directory)
    with pytest.raises(InputError, match=r"epoch-00001/config\.json: "):
        load_model(directory)
