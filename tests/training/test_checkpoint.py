"""Checkpoints: complete or absent after failures and kills, and loaded without running code that they contain."""

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

from fgst import durable
from fgst.config import DataConfig, TrialConfig
from fgst.data.skeleton import NTU_25
from fgst.errors import InputError
from fgst.integrity import with_digest
from fgst.model import FGSTFormer
from fgst.model.card import ModelCard, load_model
from fgst.training import checkpoint as checkpoint_module
from fgst.training.checkpoint import latest_checkpoint, load_state, save_checkpoint
from tests.support.digests import adapt_digests, remove_digests
from tests.support.process import start_python
from tests.support.small import CLASSES, SKELETON, small_config

PARTS_BY_NAME = [["hip", "spine", "head", "foot"], ["left_hand", "right_hand"]]


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return ModelCard(small_config(Path("/sets/small")), SKELETON, CLASSES, 2, "small", "0" * 64)


@pytest.fixture
def model(card: ModelCard) -> FGSTFormer:
    torch.manual_seed(3)
    return card.build()


def classifier_bias(model: FGSTFormer) -> torch.Tensor:
    classifier = model.head[-1]
    assert isinstance(classifier, torch.nn.Linear)
    return classifier.bias


def save(folder: Path, epoch: int, model: FGSTFormer, card: ModelCard) -> Path:
    """Save a checkpoint in which every file contains the epoch."""
    with torch.no_grad():
        classifier_bias(model).fill_(epoch)
    state = {"epoch": epoch, "momentum": torch.full((1000,), float(epoch)), "metrics": {"lr": 0.1}}
    return save_checkpoint(folder, epoch, model, dataclasses.replace(card, dataset_digest=f"{epoch}"), state)


def epoch_of(directory: Path) -> int:
    """Return the epoch of a checkpoint, which all its files must contain."""
    model, card = load_model(directory)
    state = load_state(directory)
    epochs = {
        int(directory.name.removeprefix("epoch-")),
        int(card.dataset_digest),
        state["epoch"],
        *state["momentum"].int().tolist(),
        *classifier_bias(model).int().tolist(),
    }
    assert len(epochs) == 1, epochs
    return epochs.pop()


# Round trip


def test_checkpoint_round_trip(tmp_path: Path, model: FGSTFormer, card: ModelCard) -> None:
    clips = torch.randn(5, 2, 8, 6, 3)
    model(clips)  # updates the running statistics of the batch norms
    state: dict[str, Any] = {
        "epoch": 3,
        "tensors": [torch.randn(2, 3)],
        "values": {"a": 1.5, "b": None, "c": (1, "x", True)},
    }
    directory = save_checkpoint(tmp_path / "deep" / "folder", 3, model, card, state)

    assert directory == tmp_path / "deep" / "folder" / "epoch-00003"
    assert sorted(entry.name for entry in directory.iterdir()) == ["config.json", "model.safetensors", "state.pt"]
    loaded, loaded_card = load_model(directory)
    assert loaded_card == card
    assert not loaded.training
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    model.eval()
    assert torch.equal(loaded(clips), model(clips))
    loaded_state = load_state(directory)
    assert torch.equal(loaded_state["tensors"][0], state["tensors"][0])
    assert (loaded_state["epoch"], loaded_state["values"]) == (3, state["values"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"classes": ("ö", "b\n", '"c"')},
        {"max_persons": 1},
        {"skeleton": NTU_25, "config": TrialConfig(data=DataConfig(dataset="a/b", benchmark="x-view", frames=20))},
        {"config": small_config(Path("s"), model__parts=PARTS_BY_NAME)},
    ],
    ids=lambda changes: ",".join(changes) or "unchanged",
)
def test_card_round_trip(tmp_path: Path, card: ModelCard, changes: dict[str, Any]) -> None:
    card = dataclasses.replace(card, **changes)
    card.write(tmp_path / "config.json")
    assert ModelCard.read(tmp_path / "config.json") == card


def test_save_removes_older_checkpoints(tmp_path: Path, model: FGSTFormer, card: ModelCard) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "epoch-notes.txt").write_text("mine")
    (tmp_path / ".epoch-00009.1.tmp").mkdir()  # of a killed process
    for epoch in (1, 2, 10, 100_000):
        assert latest_checkpoint(tmp_path) != tmp_path / f"epoch-{epoch:05d}"
        directory = save(tmp_path, epoch, model, card)
        assert latest_checkpoint(tmp_path) == directory
        assert epoch_of(directory) == epoch
        assert {entry.name for entry in tmp_path.iterdir()} == {directory.name, "notes", "epoch-notes.txt"}


def test_latest_checkpoint_is_numerically_largest(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is None
    assert latest_checkpoint(tmp_path) is None
    for name in ("epoch-00009", "epoch-100000", "epoch-99999", ".epoch-200000.7.tmp", "epoch-x", "other"):
        (tmp_path / name).mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "epoch-100000"


# Failures and kills during a save


def fail_in(monkeypatch: pytest.MonkeyPatch, stage: str, error: BaseException) -> None:
    """Make one stage of saving fail after it has written part of a file."""

    def failing(*arguments: Any, **options: Any) -> None:
        path = next(argument for argument in arguments if isinstance(argument, Path))
        if not path.exists():
            path.write_bytes(b"part")
        raise error

    def failing_rename(self: Path, target: Path) -> Path:
        if Path(target).name.startswith("epoch-"):
            monkeypatch.undo()  # only the first attempt fails
            raise error
        return rename(self, target)

    rename = Path.rename
    targets: dict[str, tuple[Any, str, Callable[..., Any]]] = {
        "weights": (checkpoint_module, "save_file", failing),
        "state": (torch, "save", failing),
        "card": (ModelCard, "write", failing),
        "rename": (Path, "rename", failing_rename),
    }
    monkeypatch.setattr(*targets[stage])


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("stage", ["weights", "state", "card", "rename"])
def test_failed_save_preserves_previous_checkpoint(
    tmp_path: Path,
    model: FGSTFormer,
    card: ModelCard,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    error: BaseException,
) -> None:
    save(tmp_path, 1, model, card)
    with monkeypatch.context() as patch:
        fail_in(patch, stage, error)
        with pytest.raises(type(error)):
            save(tmp_path, 2, model, card)
    assert [entry.name for entry in tmp_path.iterdir()] == ["epoch-00001"]
    assert epoch_of(tmp_path / "epoch-00001") == 1
    assert epoch_of(save(tmp_path, 2, model, card)) == 2


def test_saving_epoch_twice_replaces_checkpoint(tmp_path: Path, model: FGSTFormer, card: ModelCard) -> None:
    save_checkpoint(tmp_path, 1, model, card, {"epoch": "first"})
    save_checkpoint(tmp_path, 1, model, card, {"epoch": "second"})
    assert load_state(tmp_path / "epoch-00001")["epoch"] == "second"
    assert [entry.name for entry in tmp_path.iterdir()] == ["epoch-00001"]


def test_failed_replacement_restores_checkpoint(
    tmp_path: Path, model: FGSTFormer, card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, model, card)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "_exchange", lambda first, second: False)  # as on a network file system
        fail_in(patch, "rename", OSError("disk full"))
        with pytest.raises(OSError, match="disk full"):
            save(tmp_path, 1, model, card)
    assert epoch_of(tmp_path / "epoch-00001") == 1


SAVE_UNTIL_KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from fgst.model.card import ModelCard
from tests.support.small import CLASSES, SKELETON, small_config
from tests.training.test_checkpoint import save

torch.set_num_threads(1)
card = ModelCard(small_config(Path("/sets/small")), SKELETON, CLASSES, 2, "small", "")
model = card.build()
random.seed(0)
for number in range(20):
    folder = Path(sys.argv[1], str(number))
    child = os.fork()
    if child == 0:
        epoch = 0
        while True:
            epoch += 1
            save(folder, epoch, model, card)
    while not list(folder.glob("epoch-*")):
        time.sleep(0.0005)
    time.sleep(random.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_kill_during_save_leaves_complete_checkpoint(tmp_path: Path, model: FGSTFormer, card: ModelCard) -> None:
    process = start_python(SAVE_UNTIL_KILLED, tmp_path)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    folders = list(tmp_path.iterdir())
    assert len(folders) == 20
    folders_with_leftovers = 0
    for folder in folders:
        latest = latest_checkpoint(folder)
        assert latest is not None
        epoch = epoch_of(latest)
        folders_with_leftovers += len(list(folder.iterdir())) > 1
        assert epoch_of(save(folder, epoch + 1, model, card)) == epoch + 1
        assert len(list(folder.iterdir())) == 1  # leftovers of the killed process are removed
    assert folders_with_leftovers > 0  # some processes were killed during a save


# Damaged and malicious files


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
