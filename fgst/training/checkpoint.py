"""Checkpoints: directories ``{model.safetensors, state.pt, config.json}``, complete or not there at all.

A training keeps one, ``epoch-00012`` inside its folder, or ``epoch-00012-step-00345`` where it was stopped in the
middle of the epoch after. A new one is written under a temporary name, renamed, and only then the older one goes: a
process killed at any moment leaves a complete checkpoint behind. ``state.pt`` is read as tensors and plain values only,
never as code.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fgst.errors import InputError
from fgst.model.card import ModelCard
from fgst.model.fgstformer import FGSTFormer

_NAME = re.compile(r"epoch-(\d{5,})(?:-step-(\d{5,}))?")


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
