"""A literal application of the documented rules for NTU RGB+D: lists and loops, independent of the code under test."""

from __future__ import annotations

import math

import numpy as np

Joint = tuple[float, float, float]


def clip_of(content: bytes) -> np.ndarray:
    """Parse a ``.skeleton`` file and clean it; returns ``(M, T, 25, 3)``."""
    num_frames, bodies = _parse(content)
    if len(bodies) > 1:
        bodies = [body for body in bodies if len(body) >= 12]
    for body in list(bodies):
        if len(bodies) > 1 and sum(map(_wide, body.values())) / len(body) >= 0.69754:
            bodies.remove(body)
    bodies.sort(key=_rank, reverse=True)
    tracks: list[dict[int, list[Joint]]] = []
    for body in bodies:
        for track in tracks:
            if min(max(track), max(body)) <= max(min(track), min(body)):  # they share at most one frame
                track.update(body)
                break
        else:
            if len(tracks) < 2:
                tracks.append(dict(body))
    frames = sorted(set().union(*tracks))
    origin = tracks[0][min(tracks[0])][1]
    absent = [origin] * 25
    assert frames[-1] < num_frames
    return np.array([[track.get(frame, absent) for frame in frames] for track in tracks]) - origin


def _parse(content: bytes) -> tuple[int, list[dict[int, list[Joint]]]]:
    """Return the number of frames, and for each body its joints by frame, in order of first appearance."""
    lines = iter(content.decode().splitlines())
    num_frames = int(next(lines))
    bodies: dict[str, dict[int, list[Joint]]] = {}
    for frame in range(num_frames):
        for _ in range(int(next(lines))):
            body = bodies.setdefault(next(lines).split()[0], {})
            body[frame] = []
            for _ in range(int(next(lines))):
                x, y, z = next(lines).split()[:3]
                body[frame].append((float(x), float(y), float(z)))
    return num_frames, list(bodies.values())


def _wide(joints: list[Joint]) -> bool:
    xs, ys = [joint[0] for joint in joints], [joint[1] for joint in joints]
    return max(xs) - min(xs) > 0.8 * (max(ys) - min(ys))


def _rank(body: dict[int, list[Joint]]) -> float:
    """The motion of all frames, or that of the frames which are not wide if it is less."""
    upright = [joints for joints in body.values() if not _wide(joints)]
    return min(_motion(list(body.values())), _motion(upright) if upright else math.inf)


def _motion(frames: list[list[Joint]]) -> float:
    total = 0.0
    for axis in range(3):
        values = [joint[axis] for joints in frames for joint in joints]
        mean = math.fsum(values) / len(values)
        total += math.fsum((value - mean) ** 2 for value in values) / len(values)
    return total
