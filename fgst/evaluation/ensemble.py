"""Ensembles: fusing several networks' scores of the same clips (Tables 5 and 6 of the paper: the four modalities).

The paper fuses "results of four modalities" without saying how. Here the fused score is a weighted mean of
log-probabilities, which ranks classes like the weighted sums of scores that are common in the literature. The weights
and the sharpness (an inverse temperature) are fitted on validation clips, never on test clips.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from fgst.config import MODALITIES
from fgst.errors import InputError
from fgst.evaluation.metrics import Scores
from fgst.integrity import with_digest
from fgst.parsing import Name, Text, read_json

FUSION = "weighted sum of log-probabilities"
COMMON_WEIGHTS = {"joint": 0.6, "bone": 0.6, "joint_motion": 0.4, "bone_motion": 0.4}
"""Weights in public implementations, where they were chosen by test accuracy; reported for comparison only."""


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Log-probabilities of scores ``(n, classes)``, in float64."""
    values = scores.astype(np.float64)
    values = values - values.max(axis=1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities of scores ``(n, classes)``, in float64."""
    return np.exp(log_softmax(scores))


def align(members: Mapping[str, Scores]) -> dict[str, Scores]:
    """Reorder the members' scores so that all list their clips in the order of the first member.

    Raises:
        InputError: if the scores differ in clips, split, labels, number of classes or data set.
    """
    names = list(members)
    if not names:
        raise InputError("an ensemble needs at least one member")
    first = members[names[0]]
    if len(set(first.clip_ids)) != first.num_clips:
        raise InputError(f"the scores of {names[0]} contain a clip twice")
    order = {clip: row for row, clip in enumerate(first.clip_ids)}
    aligned = {}
    for name, scores in members.items():
        pair = f"the scores of {names[0]} and {name}"
        if scores.digest != first.digest:
            raise InputError(f"{pair} are of different data sets (digests {first.digest[:12]}…, {scores.digest[:12]}…)")
        if scores.split != first.split:
            raise InputError(f"{pair} are of different splits: {first.split or '?'} and {scores.split or '?'}")
        if scores.scores.shape[1] != first.scores.shape[1]:
            raise InputError(f"{pair} have {first.scores.shape[1]} and {scores.scores.shape[1]} classes")
        differing = set(scores.clip_ids) ^ set(first.clip_ids)
        if differing:
            raise InputError(f"{pair} are not of the same clips: {len(differing)} differ, e.g. {min(differing)}")
        if scores.num_clips != first.num_clips:
            raise InputError(f"{pair} are not of the same clips: those of {name} contain a clip twice")
        rows = np.argsort([order[clip] for clip in scores.clip_ids])
        moved = Scores(scores.clip_ids[rows], scores.labels[rows], scores.scores[rows], scores.split, scores.digest)
        mislabelled = np.flatnonzero(moved.labels != first.labels)
        if len(mislabelled):
            clip = moved.clip_ids[mislabelled[0]]
            raise InputError(f"{pair} disagree about the class of {len(mislabelled)} clips, e.g. {clip}")
        aligned[name] = moved
    return aligned


def pool(scores: Sequence[np.ndarray], weights: Sequence[float], sharpness: float = 1.0) -> np.ndarray:
    """Compute ``sharpness`` times the weighted mean of the members' log-probabilities.

    Args:
        scores: scores of each member, ``(n, classes)``.
        weights: weights of each member; only their ratios matter.
        sharpness: inverse temperature of the result.

    Returns:
        Fused scores ``(n, classes)`` before the softmax, in float64.

    Raises:
        InputError: if a weight is negative or not finite, or if all are 0.
    """
    total = sum(weights)
    if not 0 < total < float("inf") or any(not weight >= 0 for weight in weights):
        raise InputError(f"weights {list(weights)} must not be negative, and at least one must be positive")
    members = [w / total * log_softmax(s) for w, s in zip(weights, scores, strict=True) if w]
    return sharpness * np.sum(members, axis=0)


def fuse(members: Mapping[str, Scores], weights: Mapping[str, float], sharpness: float = 1.0) -> Scores:
    """Fuse the members' scores (see :func:`pool`).

    Args:
        members: scores by member.
        weights: weights by member; members without a weight are ignored.
        sharpness: inverse temperature of the result.

    Raises:
        InputError: if the scores do not match (see :func:`align`) or the weights are invalid.
    """
    aligned = align(members)
    first = next(iter(aligned.values()))
    pooled = pool([s.scores for s in aligned.values()], [weights.get(name, 0.0) for name in aligned], sharpness)
    return Scores(first.clip_ids, first.labels, pooled.astype(np.float32), first.split, first.digest)


def fit_weights(trainings: Sequence[Mapping[str, Scores]]) -> tuple[dict[str, float], float]:
    """Fit weights and sharpness by maximum likelihood of the true classes.

    Accuracy is piecewise constant and easily overfitted. The log-likelihood is smooth, and concave in the products of
    weight and sharpness, so it has a unique maximum. A Gaussian prior with mean 1 and variance 1 on each product is
    worth about one clip; it determines the result where the clips do not, e.g. if every member is always correct.

    Args:
        trainings: for each seed, the members' scores of the validation clips.

    Returns:
        The weights, which sum to 1, and the sharpness.
    """
    from scipy.optimize import minimize  # lazy: importing scipy.optimize takes a second

    names = list(trainings[0])
    blocks, labels = [], []
    for training in trainings:
        aligned = align({name: training[name] for name in names})
        blocks.append(np.stack([log_softmax(aligned[name].scores) for name in names]))
        labels.append(next(iter(aligned.values())).labels)
    log_probabilities, true = np.concatenate(blocks, axis=1), np.concatenate(labels)  # (members, n, classes), (n,)
    rows = np.arange(len(true))

    def negative_log_posterior(factors: np.ndarray) -> tuple[float, np.ndarray]:
        fused = log_softmax(np.tensordot(factors, log_probabilities, 1))
        expected = (np.exp(fused) * log_probabilities).sum(axis=2)  # (members, n)
        value = -fused[rows, true].sum() + 0.5 * np.square(factors - 1).sum()
        return float(value), (expected - log_probabilities[:, rows, true]).sum(axis=1) + factors - 1

    result = minimize(
        negative_log_posterior, np.ones(len(names)), jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(names),
        options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 1000},
    )  # fmt: skip
    factors = np.asarray(result.x)
    sharpness = float(factors.sum())
    if not sharpness > 0:  # all members are uninformative
        return equal_weights(names), 0.0
    return {name: float(factor / sharpness) for name, factor in zip(names, factors, strict=True)}, sharpness


def equal_weights(names: Sequence[str]) -> dict[str, float]:
    """Give each member the same weight; the weights sum to 1."""
    return {name: 1 / len(names) for name in names}


def subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield all non-empty subsets of the members, smallest first."""
    for size in range(1, len(names) + 1):
        yield from itertools.combinations(names, size)


@dataclass(frozen=True)
class Member:
    """A network of an ensemble: its modality, the run that trained it, and its weight."""

    modality: str
    run_id: Name
    weight: Annotated[float, msgspec.Meta(ge=0, le=1)]


@dataclass(frozen=True)
class EnsembleCard:
    """Description of an ensemble, stored as ``ensemble.json``.

    Attributes:
        members: the networks, in the order of the modalities.
        sharpness: inverse temperature of the fused scores (see :func:`pool`).
        fitted_by: run id of the ensemble whose weights are used; empty if they were fitted for this one.

    Raises:
        ValueError: if a modality is unknown or occurs twice, or all weights are 0.
    """

    members: tuple[Member, ...]
    sharpness: float = 1.0
    fitted_by: str = ""

    def __post_init__(self) -> None:
        names = [member.modality for member in self.members]
        if len(set(names)) != len(names) or not set(names) <= set(MODALITIES):
            raise ValueError(f"members are {', '.join(names)}; each must be a different one of {', '.join(MODALITIES)}")
        if not any(member.weight for member in self.members):
            raise ValueError("all weights are 0")

    @property
    def weights(self) -> dict[str, float]:
        """Weights by modality."""
        return {member.modality: member.weight for member in self.members}

    def write(self, path: Path) -> None:
        """Write the description as JSON."""
        content = {
            "members": [vars(member) for member in self.members],
            "sharpness": self.sharpness,
            "fitted_by": self.fitted_by,
            "fusion": FUSION,
        }
        path.write_text(json.dumps(with_digest(content), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> EnsembleCard:
        """Read a description written by :meth:`write`.

        Raises:
            InputError: if the file is missing or invalid.
        """
        return read_json(path, _Content, what="a valid ensemble.json").card()


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    """The content of ``ensemble.json``; earlier versions had no digest of the other entries."""

    members: Annotated[tuple[Member, ...], msgspec.Meta(min_length=1)]
    sharpness: Annotated[float, msgspec.Meta(ge=0, le=1e6)]
    fitted_by: Text = ""
    fusion: Text = FUSION
    sha256: str | None = None

    def __post_init__(self) -> None:
        self.card()  # checks the members

    def card(self) -> EnsembleCard:
        return EnsembleCard(self.members, self.sharpness, self.fitted_by)
