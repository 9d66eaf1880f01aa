"""Inference with trained networks, without their data set: class probabilities for new clips."""

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
from fgst.evaluation.metrics import NotFiniteError
from fgst.evaluation.scoring import NOT_FINITE, check_weights, compute_scores
from fgst.model import FGSTFormer
from fgst.model.card import ModelCard, load_model


class InMemoryClips:
    """Clips in memory, as a :class:`fgst.data.loader.ClipSource`.

    Args:
        clips: each ``(M, T, N, 3)``, float32, as in a data set.
        card: description of the network that will process them.

    Raises:
        InputError: if a clip has the wrong shape, or more persons than the network supports.
    """

    digest = ""

    def __init__(self, clips: Sequence[np.ndarray], card: ModelCard) -> None:
        N = card.skeleton.num_joints
        for number, clip in enumerate(clips):
            if clip.ndim != 4 or clip.shape[2:] != (N, 3) or not clip.shape[0] or not clip.shape[1]:
                raise InputError(f"clip {number} has shape {clip.shape}; expected (persons, frames, {N}, 3)")
            if clip.shape[0] > card.max_persons:
                raise InputError(
                    f"clip {number} has {clip.shape[0]} persons; the network supports at most {card.max_persons}"
                )
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
        """Concatenate the frames of all persons of some clips: ``(sum of M·T, N, 3)``."""
        return np.concatenate([self._clips[row].reshape(-1, *self._clips[row].shape[2:]) for row in rows])


@dataclass(frozen=True)
class Network:
    """A trained network with its weight in an ensemble."""

    model: FGSTFormer
    card: ModelCard
    weight: float = 1.0

    def scores(self, clips: Sequence[np.ndarray], device: torch.device) -> np.ndarray:
        """Compute scores before the softmax, ``(n, classes)``, for clips ``(M, T, N, 3)``.

        The scores of a clip with huge coordinates may not be finite.

        Raises:
            NotFiniteError: if scores are not finite because of the network's weights.
        """
        config = dataclasses.replace(self.card.config.data, dataset="")
        loader = ClipLoader(InMemoryClips(clips, self.card), np.arange(len(clips)), config, device)
        scores = compute_scores(self.model.to(device), loader)
        if not np.isfinite(scores).all():
            check_weights(self.model)
        return scores


def _input_of(card: ModelCard) -> tuple[Any, ...]:
    """Return what the networks of an ensemble must have in common."""
    return card.skeleton, card.classes, card.preparation, card.normalization


@dataclass(frozen=True)
class Predictor:
    """A single network or an ensemble, for inference on new clips.

    Attributes:
        members: the networks; all have the same skeleton, classes and preparation of raw clips.
        sharpness: inverse temperature of an ensemble (see :func:`fgst.evaluation.ensemble.pool`).
    """

    members: tuple[Network, ...]
    sharpness: float = 1.0

    @classmethod
    def load(cls, folder: Path) -> Predictor:
        """Load a checkpoint, or an ensemble: ``ensemble.json`` and a checkpoint folder per modality.

        Raises:
            InputError: if a file is missing or damaged, or if the networks do not fit together.
        """
        if not (folder / "ensemble.json").exists():
            return cls((Network(*load_model(folder)),))
        ensemble = EnsembleCard.read(folder / "ensemble.json")
        networks = tuple(Network(*load_model(folder / m.modality), m.weight) for m in ensemble.members)
        first = networks[0].card
        for network in networks[1:]:
            if _input_of(network.card) != _input_of(first):
                raise InputError(
                    f"{folder}: the networks have different skeletons, classes or preparations of raw clips"
                )
        for network, member in zip(networks, ensemble.members, strict=True):
            if network.card.config.data.modality != member.modality:
                raise InputError(
                    f"{folder / member.modality}: is a network of modality {network.card.config.data.modality}"
                )
        return cls(networks, ensemble.sharpness)

    @property
    def card(self) -> ModelCard:
        """Description of the first network; skeleton, classes and preparation are the same for all."""
        return self.members[0].card

    def read(self, content: bytes) -> np.ndarray:
        """Read a raw file, and prepare it like the clips of the networks' data set.

        Args:
            content: the whole file.

        Returns:
            The clip, ``(M, T, N, 3)``.

        Raises:
            InputError: if it is not a valid clip for these networks.
        """
        clip = read_clip(content, self.card.preparation, self.card.skeleton, self.card.normalization)
        InMemoryClips([clip], self.card)  # checks its shape
        return clip

    def probabilities(self, clips: Sequence[np.ndarray], device: torch.device | None = None) -> np.ndarray:
        """Compute class probabilities.

        Args:
            clips: each ``(M, T, N, 3)``.
            device: the device; by default the CPU.

        Returns:
            ``(n, classes)``, float64.

        Raises:
            InputError: if a clip does not fit the networks, or a network's scores of it are not finite.
        """
        probabilities, finite = self._probabilities(clips, device)
        if not finite.all():
            raise NotFiniteError(f"clip {finite.argmin()}: {NOT_FINITE}")
        return probabilities

    def _probabilities(self, clips: Sequence[np.ndarray], device: torch.device | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the class probabilities ``(n, classes)``, and for which clips all scores are finite ``(n,)``."""
        device = device or torch.device("cpu")
        members = [member for member in self.members if member.weight > 0]
        scores = [member.scores(clips, device) for member in members]
        finite = np.logical_and.reduce([np.isfinite(of_member).all(axis=1) for of_member in scores])
        # The scores of other clips do not matter, but must not cause warnings.
        scores = [np.where(finite[:, None], of_member, 0) for of_member in scores]
        return softmax(pool(scores, [member.weight for member in members], self.sharpness)), finite

    def top(
        self, clips: Sequence[np.ndarray], k: int, device: torch.device | None = None
    ) -> list[list[dict[str, Any]]]:
        """Find the ``k`` most likely classes of each clip.

        Args:
            clips: each ``(M, T, N, 3)``.
            k: number of classes.
            device: the device; by default the CPU.

        Returns:
            For each clip, rows with ``class``, ``label`` and ``probability``, most likely first; no rows for a clip of
            which the scores are not finite.

        Raises:
            InputError: if a clip does not fit the networks, or their weights are not finite.
        """
        classes = self.card.classes
        rankings = []
        for row, finite in zip(*self._probabilities(clips, device), strict=True):
            order = np.argsort(-row, kind="stable")[: k if finite else 0]
            rankings.append([{"class": classes[c], "label": int(c), "probability": float(row[c])} for c in order])
        return rankings
