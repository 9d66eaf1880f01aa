"""Normalization of raw clips: which persons and frames are used, units, the up axis, and the origin.

A data set records its normalization, and so does every network trained on it: clips to be classified are normalized
the same way. Axes: M persons, T frames, N joints, C coordinates.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from fgst.data.persons import match_persons, motion
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import names_of
from fgst.data.sources import ClipError
from fgst.parsing import convert_json

Scaling = Literal["constant", "image", "torso"]
UpAxis = Literal["x", "y", "z", "-x", "-y", "-z"]
UP_AXES: tuple[UpAxis, ...] = get_args(UpAxis)

MAX_PERSONS = 10  # a first axis longer than this is more likely to be the frames
MIN_PIXELS = 20  # the largest coordinate in pixels is not smaller
TORSO = 0.5  # length in metres that torsos are scaled to
MIN_REPEATED = 4  # frames that repeat earlier ones, for a clip to count as repeated
# Rotations that turn an up axis to y: source axis and sign of the new x, y and z.
_UPRIGHT: dict[UpAxis, tuple[tuple[int, int], ...]] = {
    "y": ((0, 1), (1, 1), (2, 1)),
    "-y": ((0, 1), (1, -1), (2, -1)),
    "z": ((0, 1), (2, 1), (1, -1)),
    "-z": ((0, 1), (2, -1), (1, 1)),
    "x": ((1, -1), (0, 1), (2, 1)),
    "-x": ((1, 1), (0, -1), (2, 1)),
}


@dataclass(frozen=True)
class RawClip:
    """A clip as its source has it.

    Attributes:
        joints: ``(M, T, N, 3)``, or ``(M, T, N, 2)`` for a recording in the plane; a fourth number is a confidence. A
            joint that was not seen is zero or NaN.
        scores: ``(M, T, N)`` confidences; a joint with confidence 0 was not seen. ``None`` if there are none.
        image: width and height of the image in pixels, if the coordinates are pixels and the size is known.
        remark: what is unusual about the clip; conversion counts clips by it.
    """

    joints: np.ndarray = field(repr=False)
    scores: np.ndarray | None = field(default=None, repr=False)
    image: tuple[int, int] | None = None
    remark: str = ""


@dataclass(frozen=True)
class Normalization:
    """How coordinates of raw clips become those of a data set.

    Attributes:
        scale: factor of all coordinates, e.g. 0.001 from millimetres to metres.
        scaling: "constant" applies ``scale`` alone; "torso" scales each clip to a torso of 0.5 on average; "image"
            divides by half the height of the image, or scales by the torso if the clip's image size is not known.
        up: the axis that points up in raw clips; it becomes y. Pixels count downwards, i.e. "-y".
        centred: move the first person's centre joint, in the first frame where it was seen, to the origin.
        persons: order persons by their motion, and match them between frames by their distance.
        has_confidence: the third of three numbers of a joint is a confidence instead of z.
        trimmed: remove unseen persons and frames without any person, and cut a clip that was repeated to fill a window
            to its period.
    """

    scale: float = 1.0
    scaling: Scaling = "constant"
    up: UpAxis = "y"
    centred: bool = True
    persons: bool = True
    has_confidence: bool = False
    trimmed: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return dataclasses.asdict(self)

    def apply(self, raw: RawClip, skeleton: Skeleton) -> tuple[np.ndarray, Counter[str]]:
        """Normalize a clip.

        Returns:
            ``(M, T, N, 3)`` float32, in which joints that were not seen are zero; and counts of what was removed.

        Raises:
            ClipError: if nothing is left, or a coordinate is not finite.
        """
        joints, seen = to_space(raw, has_confidence=self.has_confidence, centre=skeleton.centre)
        removed: Counter[str] = Counter()
        if self.trimmed:
            joints, seen = _trim(joints, seen, removed)
        if self.persons and len(joints) > 1:
            joints, seen = _order_persons(joints, seen, removed)
        scale = self.scale * self._clip_scale(raw, joints, seen, skeleton)
        joints = np.stack([joints[..., axis] * (sign * scale) for axis, sign in _UPRIGHT[self.up]], axis=-1)
        if self.centred:
            joints = joints - _origin(joints[0], seen[0], skeleton.centre)
        joints = np.where(seen[..., None], joints, 0).astype(np.float32)
        return joints, removed

    def _clip_scale(self, raw: RawClip, joints: np.ndarray, seen: np.ndarray, skeleton: Skeleton) -> float:
        """Return the factor of a single clip; 1 for a constant scale."""
        if self.scaling == "constant":
            return 1.0
        if self.scaling == "image" and raw.image is not None:
            return 2 / raw.image[1]
        size = body_size(joints, seen, skeleton)
        return TORSO / size if size > 0 else 1.0


UNCHANGED = Normalization(centred=False, persons=False, trimmed=False)
"""For clips that are already those of a data set."""


def read_normalization(value: Any) -> Normalization | None:
    """Read the JSON values of :meth:`Normalization.to_dict`; ``None`` stays ``None``.

    Raises:
        ValueError: if they are not valid; the message names the field.
    """
    return None if value is None else convert_json(value, Normalization)


def check_shape(shape: Sequence[int], skeleton: Skeleton) -> None:
    """Check the shape of raw joints, ``(M, T, N, C)`` with C = 2, 3, or 4 with a confidence.

    Raises:
        ClipError: if it is another one, or its axes are probably in another order.
    """
    N = skeleton.num_joints
    expected = f"(persons, frames, {N} joints, 3 or 2 coordinates)"
    if len(shape) != 4 or shape[2] != N or shape[3] not in (2, 3, 4) or 0 in shape:
        hint = f"; {N} is the length of another axis: transpose the array" if N in shape and shape[-2] != N else ""
        if not hint and len(shape) == 4 and (known := names_of(shape[2])):
            hint = f"; --skeleton {' or '.join(known)} has {shape[2]} joints"
        raise ClipError(f"has shape {tuple(shape)}, not {expected}{hint}")
    M, T = shape[:2]
    if M > MAX_PERSONS or (M > T and M > 2):
        raise ClipError(
            f"has shape {tuple(shape)}, which would be {M} persons in {T} frames: persons and frames are probably "
            f"swapped; write {expected}"
        )
    if M == 3 and shape[3] == 2:
        raise ClipError(
            f"has shape {tuple(shape)}, which would be 3 persons in the plane: coordinates and persons are probably "
            f"swapped; write {expected}, or add confidences as a third number if these are persons"
        )


def to_space(raw: RawClip, *, has_confidence: bool = False, centre: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Separate coordinates from confidences.

    Args:
        raw: the clip.
        has_confidence: the third of three numbers is a confidence.
        centre: a joint that may be at (0, 0, 0) because the clip is centred already: it was seen there, unless its
            confidence is 0.

    Returns:
        Joints ``(M, T, N, 3)`` float64, with z = 0 where there is none and all zero where they were not seen; and which
        were seen, ``(M, T, N)``.

    Raises:
        ClipError: if a coordinate of a seen joint is not finite, or persons and coordinates are probably swapped.
    """
    joints = np.asarray(raw.joints, np.float64)
    coordinates = 2 if has_confidence and joints.shape[-1] == 3 else min(joints.shape[-1], 3)
    scores = joints[..., -1] if joints.shape[-1] > coordinates else raw.scores
    joints = joints[..., :coordinates]
    missing = np.asarray(np.isnan(joints).all(axis=-1))
    if scores is not None:
        missing = missing | (np.asarray(scores) <= 0)
    seen = np.asarray(~missing & joints.any(axis=-1))
    joints = np.where(seen[..., None], joints, 0)
    if not np.isfinite(joints).all():
        raise ClipError("a coordinate is not a finite number")
    if joints.shape[-1] == 2:
        if len(joints) > 1 and joints[..., 0].any() and not joints[..., 1].any():
            # The last axis of (C, T, N, M) is that of the persons, and the second person is absent.
            raise ClipError(
                f"has shape {raw.joints.shape}, and the last coordinate is zero everywhere: the first axis is probably "
                "that of the coordinates and the last one that of the persons; write (persons, frames, joints, "
                "coordinates)"
            )
        joints = np.concatenate([joints, np.zeros_like(joints[..., :1])], axis=-1)
    if centre is not None:
        seen[..., centre] |= ~missing[..., centre] & _at_origin(joints, seen)
    return joints, seen


def _at_origin(joints: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return in which frames a body surrounds the origin, ``(M, T)``.

    There, a centre joint at (0, 0, 0) was seen: the clip is centred already. Elsewhere the origin is the camera or a
    corner of the image, and the joint was not seen.
    """
    low = np.where(seen[..., None], joints, np.inf).min(axis=2)
    high = np.where(seen[..., None], joints, -np.inf).max(axis=2)
    return np.asarray(((low <= 0) & (high >= 0)).all(axis=-1))


def _trim(joints: np.ndarray, seen: np.ndarray, removed: Counter[str]) -> tuple[np.ndarray, np.ndarray]:
    """Remove persons and frames without any seen joint, and repetitions."""
    persons = seen.any(axis=(1, 2))
    if not persons.any():
        raise ClipError("no joint of any person is seen in any frame (all coordinates are zero)")
    removed["absent persons"] += int((~persons).sum())
    joints, seen = joints[persons], seen[persons]
    frames = seen.any(axis=(0, 2))
    removed["empty frames"] += int((~frames).sum())
    joints, seen = joints[:, frames], seen[:, frames]
    periods = [_period(person) for person in joints]
    if any(periods):
        # Further persons of clips that are centred in each frame do not repeat exactly: the first person decides.
        length = max(periods) if periods[0] else joints.shape[1]
        removed["repeated frames"] += joints.shape[1] - length
        joints, seen = joints[:, :length], seen[:, :length].copy()
        for person, period in enumerate(periods):
            if period:
                seen[person, period:] = False
        joints = np.where(seen[..., None], joints, 0)
    return joints, seen


def _period(person: np.ndarray) -> int:
    """Return after how many frames a person's joints, ``(T, N, 3)``, repeat exactly to the end; 0 if they do not.

    A person who does not move at all has no period.
    """
    last = len(person) - MIN_REPEATED
    flat = person.reshape(len(person), -1)
    candidates = np.flatnonzero((flat[1 : last + 1] == flat[0]).all(axis=1)) + 1
    for period in candidates:
        if (flat[period:] == flat[:-period]).all():
            return 0 if (flat[:period] == flat[0]).all() else int(period)
    return 0


def _order_persons(joints: np.ndarray, seen: np.ndarray, removed: Counter[str]) -> tuple[np.ndarray, np.ndarray]:
    """Let each person have one index in all frames, the one with the most motion the first."""
    order, swapped = match_persons(joints, seen)
    removed["frames with persons in another order"] += swapped
    index = np.arange(joints.shape[1])
    joints, seen = joints[order, index], seen[order, index]
    ranking = sorted(range(len(joints)), key=lambda person: -motion(joints[person], seen[person]))
    return joints[ranking], seen[ranking]


def _origin(person: np.ndarray, seen: np.ndarray, centre: int) -> np.ndarray:
    """Return the centre joint ``(3,)`` in the first frame where it was seen.

    If it was never seen, it is the mean of the joints that were, in the first frame with any.
    """
    frames = np.flatnonzero(seen[:, centre])
    if len(frames):
        return np.asarray(person[frames[0], centre])
    first = int(np.argmax(seen.any(axis=1)))
    return np.asarray(person[first][seen[first]].mean(axis=0))


def torso(skeleton: Skeleton) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return the joints (left shoulder, right shoulder), (left hip, right hip); ``None`` if a joint is missing."""
    index = {name: joint for joint, name in enumerate(skeleton.joints)}
    names = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
    if not all(name in index for name in names):
        return None
    a, b, c, d = (index[name] for name in names)
    return (a, b), (c, d)


def body_size(joints: np.ndarray, seen: np.ndarray, skeleton: Skeleton) -> float:
    """Return a clip's body size: the median distance between shoulders and hips, or twice the mean bone length of a
    skeleton without them (a torso is about twice the mean bone of a body); 0 if it cannot be measured.

    Args:
        joints: ``(M, T, N, 3)``.
        seen: ``(M, T, N)``.
        skeleton: the skeleton.
    """
    ends = torso(skeleton)
    if ends is not None:
        visible = seen[..., [*ends[0], *ends[1]]].all(axis=-1)
        if visible.any():
            top, bottom = (joints[:, :, list(pair)].mean(axis=2)[visible] for pair in ends)
            return float(np.median(np.linalg.norm(top - bottom, axis=-1)))
    parents = np.array(skeleton.parents)
    children = np.flatnonzero(parents != np.arange(len(parents)))
    both = seen[..., children] & seen[..., parents[children]]
    lengths = np.linalg.norm(joints[..., children, :] - joints[..., parents[children], :], axis=-1)[both]
    return 2 * float(lengths.mean()) if len(lengths) else 0.0


def up_axis(clips: Sequence[tuple[np.ndarray, np.ndarray]], skeleton: Skeleton) -> UpAxis | None:
    """Return the axis along which the shoulders are above the hips in most clips; ``None`` if there is none.

    Args:
        clips: pairs of joints ``(M, T, N, 3)`` and seen ``(M, T, N)``.
        skeleton: the skeleton.
    """
    ends = torso(skeleton)
    if ends is None:
        return None
    directions = []
    for joints, seen in clips:
        visible = seen[..., [*ends[0], *ends[1]]].all(axis=-1)
        if visible.any():
            top, bottom = (joints[:, :, list(pair)].mean(axis=2)[visible] for pair in ends)
            mean = (top - bottom).mean(axis=0)
            if (norm := float(np.linalg.norm(mean))) > 0:
                directions.append(mean / norm)
    if not directions:
        return None
    direction = np.mean(directions, axis=0)
    axis = int(np.abs(direction).argmax())
    if abs(direction[axis]) < 0.7:
        return None
    axes: tuple[UpAxis, ...] = ("x", "y", "z") if direction[axis] > 0 else ("-x", "-y", "-z")
    return axes[axis]


def measure(clips: Sequence[RawClip], skeleton: Skeleton) -> tuple[Normalization, list[str]]:
    """Choose the normalization of a source by some of its clips.

    Returns:
        The normalization, and remarks about what was noticed.
    """
    has_confidence = _third_is_confidence(clips)
    spaces = []
    for clip in clips:
        with contextlib.suppress(ClipError):  # reported when the clip is normalized
            joints, seen = to_space(clip, has_confidence=has_confidence)
            if seen.any():
                spaces.append((joints, seen))
    if not spaces:
        return Normalization(), []
    size = float(np.median([body_size(joints, seen, skeleton) for joints, seen in spaces]))
    up = up_axis(spaces, skeleton)
    flat = all(not joints[..., 2].any() for joints, _ in spaces)
    what = "the torso" if torso(skeleton) else "twice the mean bone"
    if flat:
        normalization, notes = _measure_plane(size, up, has_image=any(clip.image for clip in clips), what=what)
        if has_confidence:
            notes.insert(0, "the third number of each joint is between 0 and 1: taken for a confidence, not for z")
        return dataclasses.replace(normalization, has_confidence=has_confidence), notes
    scale, unit = _unit(size, is_body=torso(skeleton) is not None)
    notes = [f"{what} measures {size:.4g}: taken for {unit} and converted to metres"] if scale != 1 else []
    if up not in (None, "y"):
        notes.append(f"bodies stand along {up}, but recipes assume that y points up; pass --up={up} to turn the clips")
    return Normalization(scale=scale), notes


def _third_is_confidence(clips: Sequence[RawClip]) -> bool:
    """Return whether the third of three numbers is between 0 and 1 in all clips, while the first two are far larger."""
    if not clips or any(clip.joints.shape[-1] != 3 or clip.scores is not None for clip in clips):
        return False
    joints = [np.nan_to_num(clip.joints) for clip in clips]
    third = [clip[..., 2] for clip in joints]
    plane = max(float(np.abs(clip[..., :2]).max()) for clip in joints)
    return all(z.min() >= 0 and z.max() <= 1 for z in third) and any(z.any() for z in third) and plane > MIN_PIXELS


def _measure_plane(size: float, up: UpAxis | None, *, has_image: bool, what: str) -> tuple[Normalization, list[str]]:
    pixels = size > 5
    notes = ["clips in the plane (x, y): z is 0"]
    if pixels:
        by = "half the height of the image" if has_image else what
        notes.append(f"{what} measures {size:.4g}: taken for pixels, scaled by {by}")
    direction: UpAxis = up if up in ("y", "-y") else "-y" if pixels else "y"
    if direction == "-y":
        notes.append("y points down, as in images; clips are turned upright")
    scaling: Scaling = ("image" if has_image else "torso") if pixels else "constant"
    return Normalization(scaling=scaling, up=direction), notes


def _unit(size: float, *, is_body: bool) -> tuple[float, str]:
    """Return the factor to metres, and the name of the unit, for a body size; normalized clips count as metres."""
    centimetres, millimetres = (5, 150) if is_body else (5, 20)
    if size >= millimetres:
        return 0.001, "millimetres"
    return (0.01, "centimetres") if size >= centimetres else (1.0, "metres")


def describe_removed(removed: Counter[str]) -> list[str]:
    """Return counts of what a normalization removed, as phrases, without zeros."""
    return [f"{count:,} {what}" for what, count in removed.items() if count]
