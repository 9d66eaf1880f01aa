"""Persons over time: matching of detections between frames, and the order of persons."""

from __future__ import annotations

import itertools

import numpy as np

MAX_MATCHED = 4  # persons; all permutations are compared, so more would be slow


def motion(joints: np.ndarray, seen: np.ndarray) -> float:
    """Return how much a person moves: the sum of the variances of the coordinates of all seen joints.

    Args:
        joints: ``(T, N, 3)``.
        seen: ``(T, N)``.
    """
    return float(np.var(joints[seen], axis=0).sum()) if seen.any() else 0.0


def match_persons(joints: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, int]:
    """Match persons between frames: each is the nearest to where that person was seen last.

    Args:
        joints: ``(M, T, N, 3)``.
        seen: ``(M, T, N)``.

    Returns:
        ``(M, T)``, the index that person m has in frame t of ``joints``; and the number of frames in which the order
        changes.
    """
    M, T = joints.shape[:2]
    order = np.tile(np.arange(M)[:, None], (1, T))
    if not 1 < M <= MAX_MATCHED:
        return order, 0
    last, was_seen = joints[:, 0].copy(), seen[:, 0].copy()
    permutations = [np.array(p) for p in itertools.permutations(range(M))]
    absence = _extent(joints, seen)
    current = permutations[0]
    swapped = 0
    for t in range(1, T):
        costs = [_distance(last, was_seen, joints[p, t], seen[p, t], absence) for p in permutations]
        best = min(range(len(permutations)), key=lambda i: (costs[i], not np.array_equal(permutations[i], current)))
        swapped += not np.array_equal(permutations[best], current)
        current = permutations[best]
        order[:, t] = current
        here = seen[current, t]
        last[here] = joints[current, t][here]
        was_seen |= here
    return order, swapped


def _extent(joints: np.ndarray, seen: np.ndarray) -> float:
    """Return the median over persons and frames of the largest extent of a person's seen joints."""
    low = np.where(seen[..., None], joints, np.inf).min(axis=2)
    high = np.where(seen[..., None], joints, -np.inf).max(axis=2)
    extents = (high - low).max(axis=-1)
    return float(np.median(extents[seen.any(axis=2)])) if seen.any() else 0.0


def _distance(last: np.ndarray, was_seen: np.ndarray, joints: np.ndarray, seen: np.ndarray, absence: float) -> float:
    """Return the sum over persons of the mean distance of the joints seen both before and now.

    A person who appears or disappears counts as ``absence``, so that a track continues under another index rather
    than ending where another one begins.
    """
    both = was_seen & seen  # (M, N)
    comparable = both.any(axis=1)
    distances = np.where(both, np.linalg.norm(joints - last, axis=-1), 0).sum(axis=1) / np.maximum(both.sum(axis=1), 1)
    changed = was_seen.any(axis=1) != seen.any(axis=1)
    return float(distances[comparable].sum() + absence * changed.sum())
