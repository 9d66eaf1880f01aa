"""Checkpoints: directories ``{model.safetensors, state.pt, config.json}`` that are either complete or absent.

A training has one checkpoint in its folder: ``epoch-00012`` after epoch 12, or ``epoch-00012-step-00345`` if it was
stopped 345 steps into the next epoch. A new checkpoint is written under a temporary name, synced and renamed, and only
then is the previous one removed: a complete checkpoint remains after a kill or a power cut at any moment.
``config.json`` contains the digests of all files, which are checked when they are read. ``state.pt`` is read as tensors
and plain values only, never as code.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fgst import durable
from fgst.data.layout import file_digest
from fgst.integrity import DamagedFileError
from fgst.model.card import CARD, WEIGHTS, ModelCard, read_checked
from fgst.model.fgstformer import FGSTFormer

STATE = "state.pt"
_NAME = re.compile(r"epoch-(\d{5,})(?:-step-(\d{5,}))?")


def save_checkpoint(
    folder: Path, epoch: int, model: FGSTFormer, card: ModelCard, state: Mapping[str, Any], step: int = 0
) -> Path:
    """Write a checkpoint into ``folder`` and remove the previous ones.

    Args:
        folder: the training's folder; created if it does not exist.
        epoch: number of completed epochs.
        model: the network whose weights are saved.
        card: the network's description.
        state: everything else that resuming needs, as tensors and plain values.
        step: completed steps of the next epoch.

    Returns:
        The checkpoint's directory.
    """
    durable.make_folder(folder)
    final = folder / (f"epoch-{epoch:05d}" + (f"-step-{step:05d}" if step else ""))
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        save_file(model.state_dict(), temporary / WEIGHTS)
        torch.save(dict(state), temporary / STATE)
        digests = {name: file_digest(temporary / name) for name in (WEIGHTS, STATE)}
        dataclasses.replace(card, files=digests).write(temporary / CARD)
        durable.publish(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for entry in folder.iterdir():
        if entry != final and (_NAME.fullmatch(entry.name) or entry.name.endswith(".tmp")):
            shutil.rmtree(entry, ignore_errors=True)
    return final


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in ``folder``, or ``None`` if there is none."""
    return next(iter(find_checkpoints(folder)), None)


def find_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in ``folder``, the newest first.

    There are several if a process was killed before it removed the previous one.
    """
    if not folder.is_dir():
        return []
    checkpoints = [entry for entry in folder.iterdir() if progress(entry.name) is not None]
    return sorted(checkpoints, key=lambda entry: progress(entry.name) or (0, 0), reverse=True)


def progress(name: str) -> tuple[int, int] | None:
    """Parse a checkpoint's name into (completed epochs, steps of the next one); ``None`` for any other name."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def load_state(directory: Path) -> dict[str, Any]:
    """Read the ``state`` that :func:`save_checkpoint` wrote, on the CPU.

    Raises:
        DamagedFileError: if the file is missing, damaged, or contains anything but tensors and plain values.
    """
    content = read_checked(directory, ModelCard.read(directory / CARD), STATE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles; the message is one line
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a damaged file can raise any exception
        raise DamagedFileError(f"{directory / STATE}: is damaged ({type(error).__name__})") from None
    if not isinstance(state, dict):
        raise DamagedFileError(f"{directory / STATE}: is not the state of a training")
    return state


def check_checkpoint(directory: Path) -> None:
    """Compare the files of a checkpoint with their digests.

    Raises:
        DamagedFileError: if one is missing or damaged.
    """
    card = ModelCard.read(directory / CARD)
    for name in (WEIGHTS, STATE):
        read_checked(directory, card, name)
