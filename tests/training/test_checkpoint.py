"""Checkpoints: complete or absent after failures and kills, and loaded without running code that they contain."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fgst import durable
from fgst.config import DataConfig, TrialConfig
from fgst.data.skeletons import NTU_25
from fgst.model import FGSTFormer
from fgst.model.card import ModelCard, load_model
from fgst.training import checkpoint as checkpoint_module
from fgst.training.checkpoint import latest_checkpoint, load_state, save_checkpoint
from tests.support.process import start_python
from tests.support.small import small_config
from tests.training.helpers import classifier_bias, save

PARTS_BY_NAME = [["hip", "spine", "head", "foot"], ["left_hand", "right_hand"]]


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
from tests.training.helpers import classifier_bias, save
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
