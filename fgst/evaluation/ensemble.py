"""Several networks as one: their scores of the same clips, fused (Tables 5 and 6 of the paper: the four modalities).

The paper fuses "results of four modalities" and does not say how. Here the logarithms of the probabilities are added up
by weights, which ranks classes as the field's weighted sums of scores do: each network adds its evidence. The weights,
and how sure the sum is, are fitted on validation clips, never on test clips.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fgst.config import MODALITIES
from fgst.errors import InputError
from fgst.evaluation.metrics import Scores

# What public code multiplies the scores of the four with, chosen there by the test accuracy; here for comparison.
FUSION = "weighted sum of log-probabilities"
PEERS = {"joint": 0.6, "bone": 0.6, "joint_motion": 0.4, "bone_motion": 0.4}


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """``(n, classes)`` scores → logarithms of probabilities, float64."""
    values = scores.astype(np.float64)
    values = values - values.max(axis=1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


def softmax(scores: np.ndarray) -> np.ndarray:
    """``(n, classes)`` scores → probabilities, float64."""
    return np.exp(log_softmax(scores))


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


def pool(scores: Sequence[np.ndarray], weights: Sequence[float], sharpness: float = 1.0) -> np.ndarray:
    """``sharpness`` times the weighted mean of the log-probabilities of each ``(n, classes)``, the same, float64.

    Only the ratios of the weights count, and of the result only the differences between the classes of a clip.

    Raises:
        InputError: if a weight is negative or no number, or all are 0.
    """
    total = sum(weights)
    if not 0 < total < float("inf") or any(not weight >= 0 for weight in weights):
        raise InputError(f"weights {list(weights)} must not be negative, nor all 0")
    members = [w / total * log_softmax(s) for w, s in zip(weights, scores, strict=True) if w]
    return sharpness * np.sum(members, axis=0)


def fuse(members: Mapping[str, Scores], weights: Mapping[str, float], sharpness: float = 1.0) -> Scores:
    """The members as one: see :func:`pool`.

    Args:
        weights: by member. A member without one is left out.

    Raises:
        InputError: if the scores do not belong together (see :func:`align`), or the weights mean nothing.
    """
    aligned = align(members)
    first = next(iter(aligned.values()))
    pooled = pool([s.scores for s in aligned.values()], [weights.get(name, 0.0) for name in aligned], sharpness)
    return Scores(first.clip_ids, first.labels, pooled.astype(np.float32), first.split, first.digest)


def fit_weights(trainings: Sequence[Mapping[str, Scores]]) -> tuple[dict[str, float], float]:
    """Weights, summing to 1, and a sharpness, under which the true classes are the most likely.

    Accuracy moves in jumps of a clip, and is fitted by chance; the likelihood is smooth and, in the products of weight
    and sharpness, concave, so that there is one best value. A prior draws each product to 1, with the force of about
    one clip: it decides where the clips do not, e.g. where every member is always right.

    Args:
        trainings: of each seed, the members' scores of the validation clips.
    """
    from scipy.optimize import minimize

    names = list(trainings[0])
    evidence, labels = [], []
    for training in trainings:
        aligned = align({name: training[name] for name in names})
        evidence.append(np.stack([log_softmax(aligned[name].scores) for name in names]))
        labels.append(next(iter(aligned.values())).labels)
    given, true = np.concatenate(evidence, axis=1), np.concatenate(labels)  # (members, clips, classes), (clips,)
    rows = np.arange(len(true))

    def unlikely(factors: np.ndarray) -> tuple[float, np.ndarray]:
        fused = log_softmax(np.tensordot(factors, given, 1))
        expected = (np.exp(fused) * given).sum(axis=2)  # (members, clips)
        value = -fused[rows, true].sum() + 0.5 * np.square(factors - 1).sum()
        return float(value), (expected - given[:, rows, true]).sum(axis=1) + factors - 1

    found = minimize(
        unlikely, np.ones(len(names)), jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(names),
        options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 1000},
    )  # fmt: skip
    factors = np.asarray(found.x)
    sharpness = float(factors.sum())
    if not sharpness > 0:  # no member knows anything: none is better than another
        return equal_weights(names), 0.0
    return {name: float(factor / sharpness) for name, factor in zip(names, factors, strict=True)}, sharpness


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
        sharpness: how sure the weighted mean is: see :func:`pool`.
        fitted_by: run id of the ensemble on whose validation clips these were fitted; "" if it is this one.
    """

    members: tuple[Member, ...]
    sharpness: float = 1.0
    fitted_by: str = ""

    @property
    def weights(self) -> dict[str, float]:
        return {member.modality: member.weight for member in self.members}

    def write(self, path: Path) -> None:
        content = {
            "members": [vars(member) for member in self.members],
            "sharpness": self.sharpness,
            "fitted_by": self.fitted_by,
            "fusion": FUSION,
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
            sharpness = float(content["sharpness"])
            if not 0 <= sharpness < float("inf"):
                raise ValueError(f"its sharpness is {sharpness}")
            return cls(members, sharpness, str(content["fitted_by"]))
        except (OSError, KeyError, AttributeError, TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: is not an ensemble.json ({error})") from None
