"""From bodies as the sensor tracked them to one or two persons: the cleaning that the field shares for NTU RGB+D.

The rules and thresholds are those of the lineage of public code that most figures on this data set come from. They
apply to clips with more than one body; a clip with one body is taken as it is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from fgst.data.formats.ntu_skeleton import JOINTS, Body, Recording
from fgst.data.sources import ClipError

SHORTEST = 12  # frames; a body seen in fewer is a ghost
WIDEST = 0.8  # x extent over y extent; a frame beyond it is noise: people are taller than wide
NOISIEST = 0.69754  # share of noise frames from which the whole body is noise
SPINE = 1  # joint 2, the middle of the spine


@dataclass(frozen=True)
class Cleaned:
    """A clip, and what was taken from it.

    Attributes:
        joints: ``(M, T, 25, 3)`` float32, M one or two, the spine of the first person's first frame at the origin. The
            person who moves most comes first; a frame in which somebody is not seen is zero for them.
        removed: what was left out, by reason: bodies ("ghost bodies", "noise bodies", "further bodies") and frames
            ("noise frames" of a body, "empty frames" of the clip), "joined fragments" that continue another body.
    """

    joints: np.ndarray
    removed: Counter[str] = field(default_factory=Counter)


def clean(recording: Recording) -> Cleaned:
    """Clean one recording.

    Raises:
        ClipError: if no usable body is left.
    """
    removed: Counter[str] = Counter()
    bodies = list(recording.bodies)
    if not bodies:
        raise ClipError("has no body in any frame")
    if len(bodies) > 1:
        bodies = _by_length(bodies, removed)
    if len(bodies) > 1:
        bodies = _by_spread(bodies, removed)
    if not bodies:
        raise ClipError("has no usable body: each is a ghost or noise")
    persons = _two_persons(bodies, recording.num_frames, removed)
    seen = np.stack([person.any(axis=(1, 2)) for person in persons])  # (M, T)
    kept = seen.any(axis=0)
    removed["empty frames"] += int((~kept).sum())
    persons, seen = [person[kept] for person in persons], seen[:, kept]
    if not kept.any():
        raise ClipError("has no usable body: all coordinates are zero")
    origin = persons[0][np.argmax(seen[0]), SPINE]
    joints = np.stack([np.where(there[:, None, None], p - origin, 0) for p, there in zip(persons, seen, strict=True)])
    return Cleaned(joints.astype(np.float32), +removed)


def _by_length(bodies: list[Body], removed: Counter[str]) -> list[Body]:
    kept = [body for body in bodies if len(body.frames) >= SHORTEST]
    removed["ghost bodies"] += len(bodies) - len(kept)
    return kept


def _by_spread(bodies: list[Body], removed: Counter[str]) -> list[Body]:
    """Leave out frames that are wider than people are, and bodies that are mostly such frames; not the last body."""
    kept = list(bodies)
    for body in bodies:
        if len(kept) == 1:
            break
        extent = np.ptp(body.joints[..., :2], axis=1)  # (F, 2)
        fine = extent[:, 0] <= WIDEST * extent[:, 1]
        place = next(i for i, other in enumerate(kept) if other is body)
        if (~fine).mean() >= NOISIEST:
            removed["noise bodies"] += 1
            del kept[place]
        elif not fine.all():
            removed["noise frames"] += int((~fine).sum())
            kept[place] = Body(body.number, body.frames[fine], body.joints[fine])
    return kept


def _motion(body: Body) -> float:
    """Variances of x, y and z over all joints and frames, summed."""
    return float(np.var(body.joints.reshape(-1, 3), axis=0).sum())


def _two_persons(bodies: list[Body], num_frames: int, removed: Counter[str]) -> list[np.ndarray]:
    """At most two tracks ``(T, 25, 3)``, those with most motion first.

    Each further body continues the first track that it shares no more than one frame with, at its end; one that
    overlaps both is left out.
    """
    ranked = sorted(bodies, key=_motion, reverse=True)  # a stable sort: among equals, the one seen first
    tracks: list[np.ndarray] = []
    spans: list[tuple[int, int]] = []
    for body in ranked:
        first, last = int(body.frames[0]), int(body.frames[-1])
        apart = [number for number, (begin, end) in enumerate(spans) if min(end, last) - max(begin, first) <= 0]
        if apart:
            number = apart[0]
            removed["joined fragments"] += 1
        elif len(tracks) < 2:
            number = len(tracks)
            tracks.append(np.zeros((num_frames, JOINTS, 3)))
            spans.append((first, last))
        else:
            removed["further bodies"] += 1
            continue
        tracks[number][body.frames] = body.joints
        spans[number] = min(first, spans[number][0]), max(last, spans[number][1])
    return tracks
