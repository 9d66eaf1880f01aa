"""Checkpoints: directories ``{model.safetensors, state.pt, config.json}``, complete or not there at all.

A training keeps one, ``epoch-00012`` inside its folder, or ``epoch-00012-step-00345`` where it was stopped in the
middle of the epoch after. A new one is written under a temporary name, renamed, and only then the older one goes: a
process killed at any moment leaves a complete checkpoint behind. ``state.pt`` is read as tensors and plain values only,
never as code.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fgst.config import TrialConfig
from fgst.data.dataset import PREPARATIONS
from fgst.data.skeleton import NTU_25, NW_UCLA_20, Skeleton
from fgst.errors import InputError
from fgst.model import FGSTFormer

_NAME = re.compile(r"epoch-(\d{5,})(?:-step-(\d{5,}))?")


@dataclass(frozen=True)
class ModelCard:
    """What a network needs to be built again and used without its data set; the content of ``config.json``.

    ``preparation`` says how raw files become clips of its data set: see :attr:`fgst.data.dataset.ArrowDataset.preparation`.
    """

    config: TrialConfig
    skeleton: Skeleton
    classes: tuple[str, ...]
    max_persons: int
    dataset_name: str
    dataset_digest: str
    preparation: str = "array"

    def build(self) -> FGSTFormer:
        """The network with fresh weights."""
        assert self.config.data.frames is not None, "a card holds a resolved configuration"
        return FGSTFormer(self.config.model, self.skeleton, len(self.classes), frames=self.config.data.frames)

    def write(self, path: Path) -> None:
        content = {
            "config": self.config.flat(),
            "skeleton": self.skeleton.to_dict(),
            "classes": list(self.classes),
            "max_persons": self.max_persons,
            "dataset": {"name": self.dataset_name, "digest": self.dataset_digest},
            "preparation": self.preparation,
        }
        path.write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> ModelCard:
        """Raises :class:`InputError` if the file is missing or not a card."""
        try:
            content = json.loads(path.read_bytes())
            card = cls(
                config=TrialConfig.from_flat(content["config"]),
                skeleton=Skeleton.from_dict(content["skeleton"]),
                classes=tuple(map(str, content["classes"])),
                max_persons=int(content["max_persons"]),
                dataset_name=str(content["dataset"]["name"]),
                dataset_digest=str(content["dataset"]["digest"]),
                preparation=str(content.get("preparation") or _guess_preparation(content)),
            )
            if card.preparation not in PREPARATIONS:
                raise ValueError(f"it knows no preparation {card.preparation!r}")
            card.config.model.check_skeleton(card.skeleton)
            if card.config.data.frames is None or not card.classes:
                raise ValueError("it leaves data.frames open or has no classes")
        except (OSError, KeyError, AttributeError, TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: is not a model's config.json ({error})") from None
        return card


def _guess_preparation(content: Mapping[str, Any]) -> str:
    """Of a card from before it was written down. Generated motion has NTU's skeleton, too, but is made of arrays."""
    skeleton, dataset = content["skeleton"]["name"], content["dataset"]["name"]
    if skeleton == NW_UCLA_20.name:
        return "nw-ucla"
    return "ntu" if skeleton == NTU_25.name and dataset in ("ntu-60", "ntu-120") else "array"


def load_model(directory: Path) -> tuple[FGSTFormer, ModelCard]:
    """The network of a checkpoint, with its weights, in evaluation mode, on the CPU.

    Raises:
        InputError: if a file is missing, damaged or does not fit the other.
    """
    card = ModelCard.read(directory / "config.json")
    model = card.build()
    load_weights(directory, model)
    return model.eval(), card


def load_weights(directory: Path, model: FGSTFormer) -> None:
    """Put the weights of a checkpoint into a network.

    Raises:
        InputError: if the file is missing, damaged or of another network.
    """
    weights = directory / "model.safetensors"
    try:
        model.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{weights}: does not hold the weights of this network ({error})") from None


def save_checkpoint(
    folder: Path, epoch: int, model: FGSTFormer, card: ModelCard, state: Mapping[str, Any], step: int = 0
) -> Path:
    """Write a checkpoint into ``folder`` and remove older ones; returns its directory.

    Args:
        epoch, step: how many epochs are done, and steps of the next one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / (f"epoch-{epoch:05d}" + (f"-step-{step:05d}" if step else ""))
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    aside = temporary.with_suffix(".old.tmp")
    for leftover in (temporary, aside):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    try:
        save_file(model.state_dict(), temporary / "model.safetensors")
        torch.save(dict(state), temporary / "state.pt")
        card.write(temporary / "config.json")
        if final.exists():  # the same epoch once more: it steps aside, and comes back if the rename fails
            final.rename(aside)
        temporary.rename(final)
    except BaseException:
        if aside.exists():
            aside.rename(final)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for entry in folder.iterdir():
        if entry != final and (_NAME.fullmatch(entry.name) or entry.name.endswith(".tmp")):
            shutil.rmtree(entry, ignore_errors=True)
    return final


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in ``folder``, if there is one."""
    if not folder.is_dir():
        return None
    found = [entry for entry in folder.iterdir() if progress(entry.name) is not None]
    return max(found, key=lambda entry: progress(entry.name) or (0, 0), default=None)


def progress(name: str) -> tuple[int, int] | None:
    """Epochs and steps that a checkpoint's name tells; ``None`` if it is no checkpoint's."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def load_state(directory: Path) -> dict[str, Any]:
    """What ``save_checkpoint`` was given as ``state``.

    Raises:
        InputError: if the file is missing, damaged, or holds anything but tensors and plain values.
    """
    path = directory / "state.pt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling can fail in any way; the file is bad in each
        raise InputError(f"{path}: is damaged ({type(error).__name__}); remove {directory} to begin again") from None
