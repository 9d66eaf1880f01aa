"""Persons from detections: a pose estimator finds any number of people in each frame, in no particular order.

Axes: D detections in a frame, N joints, C coordinates, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

MAX_DETECTIONS = 50  # per frame; of more, the most confident are used
MAX_PERSONS = 2
MAX_STEP = 2.0  # body sizes that a person may move between two detections


@dataclass
class Frame:
    """The detections of one frame.

    Attributes:
        joints: ``(D, N, C)``.
        scores: ``(D, N)`` confidences; 0 means "not seen".
    """

    joints: np.ndarray
    scores: np.ndarray


@dataclass
class Track:
    """A person over time.

    Attributes:
        last: ``(N, C)``, the last known position of each joint.
        was_seen: ``(N,)``, whether there is one.
        detections: frames, and the index of the detection in each.
        score: sum of the confidences.
    """

    last: np.ndarray
    was_seen: np.ndarray
    detections: list[tuple[int, int]] = field(default_factory=list)
    score: float = 0.0

    @property
    def frames(self) -> list[int]:
        return [t for t, _ in self.detections]


def most_confident(frames: Sequence[Frame]) -> tuple[np.ndarray, np.ndarray]:
    """Link detections to persons, and keep the most confident two.

    Each detection continues the track whose last position is nearest, if that is at most two body sizes away. Tracks
    are taken in the order of their summed confidence; one that shares no frame with a person taken before is that
    person again, so an interrupted track is not another person.

    Args:
        frames: one per frame of the clip, all with the same N and C; they may have no detection.

    Returns:
        joints ``(M, T, N, C)`` and scores ``(M, T, N)``, M from 0 to 2, the most confident person first; zero in frames
        without the person.
    """
    if not frames:
        return np.zeros((0, 0, 0, 0)), np.zeros((0, 0, 0))
    frames = [_limited(frame) for frame in frames]
    persons: list[Track] = []
    for track in sorted(link(frames), key=lambda track: -track.score):
        own = set(track.frames)
        earlier = next((person for person in persons if own.isdisjoint(person.frames)), None)
        if earlier is not None:
            earlier.detections += track.detections
            earlier.score += track.score
        elif len(persons) < MAX_PERSONS:
            persons.append(track)
    persons.sort(key=lambda person: -person.score)
    joints = np.zeros((len(persons), len(frames), *frames[0].joints.shape[1:]))
    scores = np.zeros(joints.shape[:3])
    for number, person in enumerate(persons):
        for t, index in person.detections:
            joints[number, t], scores[number, t] = frames[t].joints[index], frames[t].scores[index]
    return joints, scores


def _limited(frame: Frame) -> Frame:
    """Return the most confident detections, in their order."""
    if len(frame.joints) <= MAX_DETECTIONS:
        return frame
    best = np.sort(np.argsort(-frame.scores.sum(axis=1), kind="stable")[:MAX_DETECTIONS])
    return Frame(frame.joints[best], frame.scores[best])


def link(frames: Sequence[Frame]) -> list[Track]:
    """Link detections to tracks, in the order in which they begin; see :func:`most_confident`."""
    # lazy: scipy.optimize takes a while to import, and most formats do not need it
    from scipy.optimize import linear_sum_assignment

    step = MAX_STEP * _body_size(frames) if frames else 0.0
    tracks: list[Track] = []
    for t, frame in enumerate(frames):
        seen = frame.scores > 0
        present = np.flatnonzero(seen.any(axis=1))
        costs = _distances(tracks, frame.joints[present], seen[present])
        rows, columns = linear_sum_assignment(np.minimum(costs, 2 * step + 1))
        follows = {
            int(column): tracks[row] for row, column in zip(rows, columns, strict=True) if costs[row, column] <= step
        }
        for column, index in enumerate(present):
            track = follows.get(column)
            if track is None:
                track = Track(frame.joints[index].copy(), seen[index].copy())
                tracks.append(track)
            here = seen[index]
            track.last[here] = frame.joints[index][here]
            track.was_seen |= here
            track.detections.append((t, int(index)))
            track.score += float(frame.scores[index].sum())
    return tracks


def _body_size(frames: Sequence[Frame]) -> float:
    """Return the median over all detections of the largest extent of the seen joints."""
    joints, scores = (np.concatenate(parts) for parts in zip(*((f.joints, f.scores) for f in frames), strict=True))
    present = (scores > 0).any(axis=1)
    if not present.any():
        return 0.0
    joints, seen = joints[present], (scores[present] > 0)[..., None]
    extents = np.where(seen, joints, -np.inf).max(axis=1) - np.where(seen, joints, np.inf).min(axis=1)
    return float(np.median(extents.max(axis=1)))


def _distances(tracks: Sequence[Track], joints: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return the mean distance of the joints seen both last and now, ``(tracks, D)``.

    Without any such joint, it is the distance of the means of the seen joints.
    """
    if not tracks or not len(joints):
        return np.zeros((len(tracks), len(joints)))
    last, was_seen = np.stack([track.last for track in tracks]), np.stack([track.was_seen for track in tracks])
    both = was_seen[:, None] & seen
    count = both.sum(axis=-1)
    apart = np.linalg.norm(last[:, None] - joints, axis=-1)
    mean = np.where(both, apart, 0).sum(axis=-1) / np.maximum(count, 1)
    if count.all():
        return np.asarray(mean)
    centres = np.linalg.norm(_centre(last, was_seen)[:, None] - _centre(joints, seen), axis=-1)
    return np.where(count > 0, mean, centres)


def _centre(joints: np.ndarray, seen: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(seen[..., None], joints, 0).sum(axis=1) / seen.sum(axis=1)[:, None])
