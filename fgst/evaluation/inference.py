"""Trained networks without their data set: a folder of checkpoints → probabilities for clips that nobody has seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fgst.data.formats import read_clip
from fgst.data.loader import ClipLoader
from fgst.data.skeleton import Skeleton
from fgst.errors import InputError
from fgst.evaluation.ensemble import EnsembleCard, pool, softmax
from fgst.model import FGSTFormer
from fgst.model.card import ModelCard, load_model
from fgst.training.trainer import score


class Clips:
    """Clips in memory, in the place of an open data set."""

    digest = ""

    def __init__(self, clips: Sequence[np.ndarray], card: ModelCard) -> None:
        """``clips``: each ``(M, T, N, 3)`` float32, as a data set holds them.

        Raises:
            InputError: if a clip has another shape, or more persons than the network was trained with.
        """
        N = card.skeleton.num_joints
        for number, clip in enumerate(clips):
            if clip.ndim != 4 or clip.shape[2:] != (N, 3) or not clip.shape[0] or not clip.shape[1]:
                raise InputError(f"clip {number} has shape {clip.shape}; it must be (persons, frames, {N}, 3)")
            if clip.shape[0] > card.max_persons:
                raise InputError(f"clip {number} has {clip.shape[0]} persons, the network knows {card.max_persons}")
        self._clips = clips
        self.skeleton: Skeleton = card.skeleton
        self.recipe = str(card.config.data.recipe)
        self.max_persons = card.max_persons
        self.clip_ids = np.array([str(number) for number in range(len(clips))], dtype=object)
        self.columns = {
            "label": np.zeros(len(clips), np.int32),
            "num_persons": np.array([clip.shape[0] for clip in clips], np.int32),
            "num_frames": np.array([clip.shape[1] for clip in clips], np.int32),
        }

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The frames of some clips one after another: ``(sum of M·T, N, 3)``."""
        return np.concatenate([self._clips[row].reshape(-1, *self._clips[row].shape[2:]) for row in rows])


@dataclass(frozen=True)
class Network:
    """A network with its weight in the ensemble that it is part of, or 1."""

    model: FGSTFormer
    card: ModelCard
    weight: float

    def scores(self, clips: Sequence[np.ndarray], device: torch.device) -> np.ndarray:
        """``(n, classes)`` before the softmax, of clips ``(M, T, N, 3)``."""
        config = dataclasses.replace(self.card.config.data, dataset="")
        store = ClipLoader(Clips(clips, self.card), np.arange(len(clips)), config, device)
        return score(self.model.to(device), store).scores


@dataclass(frozen=True)
class Predictor:
    """One network, or an ensemble with its sharpness (see :func:`fgst.evaluation.ensemble.pool`)."""

    members: tuple[Network, ...]
    sharpness: float = 1.0

    @classmethod
    def load(cls, folder: Path) -> Predictor:
        """From a checkpoint, or a folder with ``ensemble.json`` and a checkpoint by modality.

        Raises:
            InputError: if anything in it is missing, damaged or does not fit together.
        """
        if not (folder / "ensemble.json").exists():
            return cls((Network(*load_model(folder), 1.0),))
        ensemble = EnsembleCard.read(folder / "ensemble.json")
        networks = tuple(Network(*load_model(folder / m.modality), m.weight) for m in ensemble.members)
        first = networks[0].card
        for network in networks[1:]:
            if (network.card.skeleton, network.card.classes) != (first.skeleton, first.classes):
                raise InputError(f"{folder}: its networks have different skeletons or classes")
        return cls(networks, ensemble.sharpness)

    @property
    def card(self) -> ModelCard:
        """Of the first: skeleton, classes and preparation are the same in all."""
        return self.members[0].card

    def probabilities(self, clips: Sequence[np.ndarray], device: torch.device | None = None) -> np.ndarray:
        """``(n, classes)`` of clips ``(M, T, N, 3)``, by all networks together.

        Raises:
            InputError: if a clip does not fit the networks.
        """
        where = device or torch.device("cpu")
        used = [member for member in self.members if member.weight > 0]
        scores = [member.scores(clips, where) for member in used]
        return softmax(pool(scores, [member.weight for member in used], self.sharpness))

    def read(self, content: bytes) -> np.ndarray:
        """The clip of a raw file, ``(M, T, N, 3)``, prepared as these networks' data set was.

        Raises:
            InputError: saying why it is no clip for them.
        """
        clip = read_clip(content, self.card.preparation, self.card.skeleton)
        Clips([clip], self.card)
        return clip

    def top(
        self, clips: Sequence[np.ndarray], k: int, device: torch.device | None = None
    ) -> list[list[dict[str, Any]]]:
        """Of each clip the ``k`` likeliest classes, the likeliest first: ``class``, ``label``, ``probability``."""
        classes = self.card.classes
        answers = []
        for row in self.probabilities(clips, device):
            best = np.argsort(-row, kind="stable")[:k]
            answers.append([{"class": classes[c], "label": int(c), "probability": float(row[c])} for c in best])
        return answers
