"""Cleaning of NTU RGB+D recordings: from the bodies that the sensor tracked to one or two persons.

The rules and thresholds are those of the public code that most results on this data set are based on. They apply to
recordings of several bodies; a single body is not changed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from fgst.data.skeletons import NTU_25
from fgst.data.sources import ClipError

MIN_FRAMES = 12  # a body tracked in fewer frames is a ghost
MAX_WIDTH_TO_HEIGHT = 0.8  # a frame is wide if its x extent exceeds this multiple of its y extent
MAX_WIDE_FRACTION = 0.69754  # a body with this fraction of wide frames, or a larger one, is noise


@dataclass(frozen=True)
class Body:
    """A tracked body.

    Attributes:
        body_id: the number assigned by the sensor.
        frames: the frames in which it was tracked, ``(F,)`` increasing integers from 0.
        joints: ``(F, 25, 3)`` float64, in metres.
    """

    body_id: int
    frames: np.ndarray
    joints: np.ndarray


@dataclass(frozen=True)
class Recording:
    """The bodies of a recording of ``num_frames`` frames, in order of first appearance."""

    num_frames: int
    bodies: tuple[Body, ...]


@dataclass(frozen=True)
class Cleaned:
    """A cleaned clip.

    Attributes:
        joints: ``(M, T, 25, 3)`` float32, M one or two, relative to the spine of the first person's first frame, unless
            they are not centred. The person with the higher rank comes first; a person's untracked frames are zero.
        removed: counts of what was removed, by reason: bodies ("ghost bodies", "noise bodies", "further bodies") and
            "empty frames" of the clip; and "joined fragments", bodies that were appended to another.
    """

    joints: np.ndarray
    removed: Counter[str] = field(default_factory=Counter)


def clean(recording: Recording, *, centred: bool = True) -> Cleaned:
    """Clean one recording.

    Args:
        recording: the bodies.
        centred: move the origin to the spine; otherwise the joints are where the sensor has them, in float64.

    Raises:
        ClipError: if no usable body is left.
    """
    removed: Counter[str] = Counter()
    bodies = list(recording.bodies)
    if not bodies:
        raise ClipError("has no body in any frame")
    if len(bodies) > 1:
        bodies = _drop_ghosts(bodies, removed)
    if len(bodies) > 1:
        bodies = _drop_noise(bodies, removed)
    if not bodies:
        raise ClipError("has no usable body: all are ghosts or noise")
    persons = _two_persons(bodies, recording.num_frames, removed)
    tracked = np.stack([person.any(axis=(1, 2)) for person in persons])  # (M, T)
    nonempty = tracked.any(axis=0)
    removed["empty frames"] += int((~nonempty).sum())
    persons, tracked = [person[nonempty] for person in persons], tracked[:, nonempty]
    if not nonempty.any():
        raise ClipError("has no usable body: all coordinates are zero")
    if not centred:
        return Cleaned(np.stack(persons), +removed)
    origin = persons[0][np.argmax(tracked[0]), NTU_25.centre]
    joints = np.stack(
        [np.where(mask[:, None, None], person - origin, 0) for person, mask in zip(persons, tracked, strict=True)]
    )
    return Cleaned(joints.astype(np.float32), +removed)


def _drop_ghosts(bodies: list[Body], removed: Counter[str]) -> list[Body]:
    """Remove bodies that are tracked in too few frames."""
    long_enough = [body for body in bodies if len(body.frames) >= MIN_FRAMES]
    removed["ghost bodies"] += len(bodies) - len(long_enough)
    return long_enough


def _drop_noise(bodies: list[Body], removed: Counter[str]) -> list[Body]:
    """Remove bodies that are too wide for a person in most frames. The last remaining body is never removed."""
    remaining = len(bodies)
    kept = []
    for body in bodies:
        if remaining > 1 and _is_wide(body).mean() >= MAX_WIDE_FRACTION:
            removed["noise bodies"] += 1
            remaining -= 1
        else:
            kept.append(body)
    return kept


def _is_wide(body: Body) -> np.ndarray:
    """Return for each frame whether the body is too wide for an upright person: ``(F,)``."""
    extent = np.ptp(body.joints[..., :2], axis=1)  # (F, 2)
    wide: np.ndarray = extent[:, 0] > MAX_WIDTH_TO_HEIGHT * extent[:, 1]
    return wide


def _motion(joints: np.ndarray) -> float:
    """Return the sum of the variances of x, y and z over all joints and frames, ``(F, 25, 3)``."""
    return float(np.var(joints.reshape(-1, 3), axis=0).sum())


def _rank(body: Body) -> float:
    """Return a body's motion with or without its wide frames, whichever is less.

    A person who bends down, falls or lies is wide too, so wide frames are never removed from a body.
    """
    motion, wide = _motion(body.joints), _is_wide(body)
    return motion if wide.all() else min(motion, _motion(body.joints[~wide]))


def _two_persons(bodies: list[Body], num_frames: int, removed: Counter[str]) -> list[np.ndarray]:
    """Combine bodies into at most two tracks ``(T, 25, 3)``, in order of decreasing rank.

    A body is appended to the first track that it shares at most one boundary frame with. A body that overlaps both
    tracks is removed.
    """
    ranked = sorted(bodies, key=_rank, reverse=True)  # a stable sort: ties keep the order of appearance
    tracks: list[np.ndarray] = []
    spans: list[tuple[int, int]] = []
    for body in ranked:
        first, last = int(body.frames[0]), int(body.frames[-1])
        disjoint = [i for i, (begin, end) in enumerate(spans) if min(end, last) - max(begin, first) <= 0]
        if disjoint:
            track = disjoint[0]
            removed["joined fragments"] += 1
        elif len(tracks) < 2:
            track = len(tracks)
            tracks.append(np.zeros((num_frames, NTU_25.num_joints, 3)))
            spans.append((first, last))
        else:
            removed["further bodies"] += 1
            continue
        tracks[track][body.frames] = body.joints
        spans[track] = min(first, spans[track][0]), max(last, spans[track][1])
    return tracks
