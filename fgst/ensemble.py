"""Several networks as one: their scores of the same clips, fused (Tables 5 and 6 of the paper: the four modalities).

The paper fuses "results of four modalities" and does not say how. Here the probabilities are averaged, not the scores
before the softmax: no network counts more only because its scores are larger. The weights are fitted on validation
clips, never on test clips.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fgst.errors import InputError
from fgst.metrics import Scores
from fgst.modality import MODALITIES

# What public code multiplies the scores of the four with, chosen there by the test accuracy; here for comparison.
PEERS = {"joint": 0.6, "bone": 0.6, "joint_motion": 0.4, "bone_motion": 0.4}
_MOST_STEPS, _STEP = 10_000, 1e-9


def softmax(scores: np.ndarray) -> np.ndarray:
    """``(n, classes)`` scores → probabilities, float64."""
    values = scores.astype(np.float64)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def align(members: Mapping[str, Scores]) -> dict[str, Scores]:
    """The members' scores with their clips in the first one's order.

    Raises:
        InputError: if they are not of the same clips, split, labels, classes and data.
    """
    names = list(members)
    if not names:
        raise InputError("an ensemble needs at least one member")
    first = members[names[0]]
    if len(set(first.clip_ids)) != first.num_clips:
        raise InputError(f"the scores of {names[0]} name a clip twice")
    order = {clip: row for row, clip in enumerate(first.clip_ids)}
    aligned = {}
    for name, scores in members.items():
        pair = f"the scores of {names[0]} and {name}"
        if scores.digest != first.digest:
            raise InputError(f"{pair} are of different data (digests {first.digest[:12]}…, {scores.digest[:12]}…)")
        if scores.split != first.split:
            raise InputError(f"{pair} are of different splits: {first.split or '?'} and {scores.split or '?'}")
        if scores.scores.shape[1] != first.scores.shape[1]:
            raise InputError(f"{pair} know {first.scores.shape[1]} and {scores.scores.shape[1]} classes")
        only = set(scores.clip_ids) ^ set(first.clip_ids)
        if only or scores.num_clips != first.num_clips:
            raise InputError(
                f"{pair} are not of the same clips: {len(only) or 'some'} differ, e.g. {min(only, default='twice')}"
            )
        rows = np.argsort([order[clip] for clip in scores.clip_ids])
        moved = Scores(scores.clip_ids[rows], scores.labels[rows], scores.scores[rows], scores.split, scores.digest)
        wrong = np.flatnonzero(moved.labels != first.labels)
        if len(wrong):
            clip = moved.clip_ids[wrong[0]]
            raise InputError(f"{pair} disagree about the class of {len(wrong)} clips, e.g. {clip}")
        aligned[name] = moved
    return aligned


def fuse(members: Mapping[str, Scores], weights: Mapping[str, float]) -> Scores:
    """The weighted mean of the members' probabilities, as scores: their logarithm.

    Args:
        weights: by member, none negative; only their ratios count. A member without one is left out.

    Raises:
        InputError: if the scores do not belong together (see :func:`align`), or no weight is above 0.
    """
    total = sum(weights.get(name, 0.0) for name in members)
    if not total > 0 or any(not weights.get(name, 0.0) >= 0 for name in members):
        raise InputError(f"weights {dict(weights)} must not be negative, nor all 0")
    aligned = align(members)
    first = next(iter(aligned.values()))
    shares = {name: weights.get(name, 0.0) / total for name in aligned}
    mixed = sum(share * softmax(aligned[name].scores) for name, share in shares.items() if share)
    with np.errstate(divide="ignore"):
        scores = np.log(mixed).astype(np.float32)
    lowest = np.finfo(
        np.float32
    ).min  # a probability of 0 is -inf as a logarithm: a score that no figure can be made of
    return Scores(first.clip_ids, first.labels, np.maximum(scores, lowest), first.split, first.digest)


def fit_weights(trainings: Sequence[Mapping[str, Scores]]) -> dict[str, float]:
    """Weights, summing to 1, under which the fused probabilities of the true classes are the most likely.

    The likelihood is concave in the weights, so there is one best value, and expectation-maximisation from equal
    weights goes up to it step by step, the same on every machine. Accuracy itself moves in jumps of a clip, and is
    fitted by chance.

    Args:
        trainings: of each seed, the members' scores of the validation clips.
    """
    names = list(trainings[0])
    likely = []  # of each member, the probability that it gave to the true class, over all clips of all seeds
    for training in trainings:
        aligned = align({name: training[name] for name in names})
        labels = next(iter(aligned.values())).labels
        rows = np.arange(len(labels))
        likely.append(np.stack([softmax(aligned[name].scores)[rows, labels] for name in names]))
    chance = np.maximum(np.concatenate(likely, axis=1), np.finfo(np.float64).tiny)  # (members, clips)
    weights = np.full(len(names), 1 / len(names))
    for _ in range(_MOST_STEPS):
        shares = weights[:, None] * chance
        better = (shares / shares.sum(axis=0)).mean(axis=1)
        step, weights = np.abs(better - weights).max(), better
        if step < _STEP:
            break
    return {name: float(weight) for name, weight in zip(names, weights, strict=True)}


def equal_weights(names: Sequence[str]) -> dict[str, float]:
    return {name: 1 / len(names) for name in names}


def subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every choice of one or more members, the small ones first."""
    for size in range(1, len(names) + 1):
        yield from itertools.combinations(names, size)


@dataclass(frozen=True)
class Member:
    """A network of an ensemble: the run that it comes from, and what it counts."""

    modality: str
    run_id: str
    weight: float


@dataclass(frozen=True)
class EnsembleCard:
    """What an ensemble is; the content of its ``ensemble.json``.

    Attributes:
        members: in the order of the modalities.
        fitted_by: run id of the ensemble on whose validation clips the weights were fitted; "" if it is this one.
    """

    members: tuple[Member, ...]
    fitted_by: str = ""

    @property
    def weights(self) -> dict[str, float]:
        return {member.modality: member.weight for member in self.members}

    def write(self, path: Path) -> None:
        content = {
            "members": [vars(member) for member in self.members],
            "fitted_by": self.fitted_by,
            "fusion": "weighted mean of probabilities",
        }
        path.write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> EnsembleCard:
        """Raises :class:`InputError` if the file is missing or not that."""
        try:
            content = json.loads(path.read_bytes())
            members = tuple(
                Member(str(m["modality"]), str(m["run_id"]), float(m["weight"])) for m in content["members"]
            )
            names = [member.modality for member in members]
            if not members or len(set(names)) != len(names) or not set(names) <= set(MODALITIES):
                raise ValueError(f"its members are {names}")
            if not all(0 <= member.weight <= 1 for member in members):
                raise ValueError("a weight is not between 0 and 1")
            return cls(members, str(content["fitted_by"]))
        except (OSError, KeyError, AttributeError, TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: is not an ensemble.json ({error})") from None
