"""The demo data set: generated motion, which needs no download and contains no recordings of people.

Ten generated subjects of different build perform up to twelve actions in the NTU-25 skeleton, in metres, y up, at 30
frames per second. An action determines the joints of one or two limbs, or of the trunk. Head, arms and legs that do
not take part move between twelve postures of this subject in this action: they tell the class of the subjects that
a network was trained with, and mislead about all others. In each recording some joints, drawn independently, are
tracked badly. Two cameras record each performance. The same arguments give the same files, and a larger data set begins
with the clips of a smaller one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fgst.data.dataset import ArrowDataset, Clip
from fgst.data.progress import tracked
from fgst.data.skeletons import NTU_25
from fgst.data.splits import Benchmark
from fgst.data.writer import check_output, write_dataset
from fgst.errors import InputError

SUBJECTS, CAMERAS = 10, 2
FRAMES = (40, 80)  # shortest and longest clip
RATE = 30.0  # frames per second
# One clip per camera of two training subjects (one can be held out for validation) and one test subject.
CLIPS_PER_CLASS = 6
BENCHMARKS = (
    Benchmark("x-sub", "subject", train=(1, 3, 5, 7, 9), test=(2, 4, 6, 8, 10)),
    Benchmark("x-view", "camera", train=(2,), test=(1,)),
)

# The body at rest: joint, parent joint, and offset from the parent in metres. x points to the person's left, y up and z
# forward, so a negative angle about x swings a hanging arm forward.
REST = (
    ("base_of_spine", "base_of_spine", (0.0, 0.0, 0.0)),
    ("mid_spine", "base_of_spine", (0.0, 0.3, 0.0)),
    ("spine_at_shoulders", "mid_spine", (0.0, 0.22, 0.0)),
    ("neck", "spine_at_shoulders", (0.0, 0.08, 0.0)),
    ("head", "neck", (0.0, 0.14, 0.02)),
    ("left_shoulder", "spine_at_shoulders", (0.17, -0.03, 0.0)),
    ("left_elbow", "left_shoulder", (0.03, -0.27, 0.0)),
    ("left_wrist", "left_elbow", (0.0, -0.24, 0.03)),
    ("left_hand", "left_wrist", (0.0, -0.08, 0.01)),
    ("left_hand_tip", "left_hand", (0.0, -0.08, 0.0)),
    ("left_thumb", "left_hand", (-0.01, -0.03, 0.05)),
    ("right_shoulder", "spine_at_shoulders", (-0.17, -0.03, 0.0)),
    ("right_elbow", "right_shoulder", (-0.03, -0.27, 0.0)),
    ("right_wrist", "right_elbow", (0.0, -0.24, 0.03)),
    ("right_hand", "right_wrist", (0.0, -0.08, 0.01)),
    ("right_hand_tip", "right_hand", (0.0, -0.08, 0.0)),
    ("right_thumb", "right_hand", (0.01, -0.03, 0.05)),
    ("left_hip", "base_of_spine", (0.08, -0.04, 0.0)),
    ("left_knee", "left_hip", (0.01, -0.4, 0.0)),
    ("left_ankle", "left_knee", (0.0, -0.39, -0.01)),
    ("left_foot", "left_ankle", (0.0, -0.06, 0.12)),
    ("right_hip", "base_of_spine", (-0.08, -0.04, 0.0)),
    ("right_knee", "right_hip", (-0.01, -0.4, 0.0)),
    ("right_ankle", "right_knee", (0.0, -0.39, -0.01)),
    ("right_foot", "right_ankle", (0.0, -0.06, 0.12)),
)
JOINT = {name: i for i, name in enumerate(NTU_25.joints)}
TREE = [(JOINT[joint], JOINT[parent]) for joint, parent, _ in REST[1:]]  # parents before children
OFFSETS = np.array([offset for _, _, offset in sorted(REST, key=lambda row: JOINT[row[0]])])  # (N, 3)
FEET = [JOINT[f"{side}_{joint}"] for side in ("left", "right") for joint in ("ankle", "foot")]
# Standard deviation of the sensor noise in metres: low for the trunk, higher for thin or fast body parts.
NOISE = np.full(len(JOINT), 0.008)
NOISE[[JOINT[f"{side}_{joint}"] for side in ("left", "right") for joint in ("wrist", "hand", "ankle", "foot")]] = 0.015
NOISE[[JOINT[f"{side}_{joint}"] for side in ("left", "right") for joint in ("hand_tip", "thumb")]] = 0.025
# Each joint but the centre is tracked badly in a recording with this probability, and then has this noise in metres.
LOST, LOST_NOISE = 0.2, 0.1
# Head, arms and legs by the joints that rotate them, with the standard deviation of random rotations in radians. One
# that does not take part in the action takes one of POSTURES, varied a little, for a number of POSTURE_FRAMES.
LIMBS = (
    (("neck",), 0.6),
    *((tuple(f"{side}_{joint}" for joint in ("shoulder", "elbow", "wrist")), 1.3) for side in ("left", "right")),
    *((tuple(f"{side}_{joint}" for joint in ("hip", "knee", "ankle")), 1.3) for side in ("left", "right")),
)
POSTURES, POSTURE_VARIATION = 12, 0.1  # number, and standard deviation in units of that between postures
POSTURE_FRAMES = (6, 15)  # shortest and longest


@dataclass(frozen=True)
class Move:
    """A periodic rotation of one joint about one of its axes, by ``rest + swing · sin(rate · phase + lag)`` radians."""

    joint: str
    axis: str
    rest: float
    swing: float
    rate: float = 1.0
    lag: float = 0.0


@dataclass(frozen=True)
class Action:
    """A class: its moves, their tempo in Hz, and the simultaneous moves of a second person, if there is one."""

    name: str
    tempo: float
    moves: tuple[Move, ...]
    partner: tuple[Move, ...] | None = None


_SHAKE = (Move("right_shoulder", "x", -0.6, 0.15), Move("right_elbow", "x", -0.8, 0.25))
_WAVE_LEFT = (Move("left_shoulder", "z", 1.0, 0.0), Move("left_elbow", "z", 1.5, 0.5))
_WAVE_RIGHT = (Move("right_shoulder", "z", -1.0, 0.0), Move("right_elbow", "z", -1.5, -0.5))


def _kick(side: str) -> tuple[Move, ...]:
    return Move(f"{side}_hip", "x", -0.9, -0.4), Move(f"{side}_knee", "x", 0.4, 0.3, lag=1.0)


ACTIONS = (
    Action("raise the left hand", 0.5, (Move("left_shoulder", "x", -1.9, 0.7), Move("left_elbow", "x", -0.2, 0.1))),
    Action(
        "push the other person",
        0.5,
        (
            Move("left_shoulder", "x", -0.7, -0.5),
            Move("right_shoulder", "x", -0.7, -0.5),
            Move("left_elbow", "x", -0.9, 0.7),
            Move("right_elbow", "x", -0.9, 0.7),
            Move("mid_spine", "x", 0.1, 0.1),
        ),
        partner=(Move("mid_spine", "x", -0.12, -0.15, lag=-0.6), Move("left_shoulder", "x", -0.2, 0.2)),
    ),
    Action("wave the right hand", 1.2, _WAVE_RIGHT),
    Action("kick with the right foot", 0.6, _kick("right")),
    Action("kick with the left foot", 0.6, _kick("left")),
    Action(
        "clap",
        1.1,
        (
            Move("left_shoulder", "x", -0.5, 0.0),
            Move("right_shoulder", "x", -0.5, 0.0),
            Move("left_elbow", "x", -1.2, 0.0),
            Move("right_elbow", "x", -1.2, 0.0),
            Move("left_elbow", "y", -0.4, 0.4),
            Move("right_elbow", "y", 0.4, -0.4),
        ),
    ),
    Action(
        "squat",
        0.35,
        (
            Move("left_hip", "x", -0.5, -0.5),
            Move("right_hip", "x", -0.5, -0.5),
            Move("left_knee", "x", 0.8, 0.8),
            Move("right_knee", "x", 0.8, 0.8),
            Move("mid_spine", "x", 0.15, 0.15),
        ),
    ),
    Action("wave both hands", 1.2, _WAVE_LEFT + _WAVE_RIGHT),
    Action("bow", 0.35, (Move("mid_spine", "x", 0.4, 0.4), Move("neck", "x", 0.1, 0.1))),
    Action(
        "march on the spot",
        0.8,
        (
            Move("left_hip", "x", -0.4, -0.4),
            Move("left_knee", "x", 0.5, 0.5),
            Move("right_hip", "x", -0.4, -0.4, lag=np.pi),
            Move("right_knee", "x", 0.5, 0.5, lag=np.pi),
        ),
    ),
    Action("twist the trunk", 0.6, (Move("mid_spine", "y", 0.0, 0.6),)),
    Action("shake hands", 1.0, _SHAKE, partner=_SHAKE),
)


def make_demo(
    out: str | os.PathLike[str],
    *,
    clips: int = 1200,
    classes: int = 8,
    seed: int = 0,
    overwrite: bool = False,
) -> ArrowDataset:
    """Generate the demo data set.

    Clips are ``(M, T, 25, 3)`` float32 in metres, relative to the mid spine of the first person's first frame.

    Args:
        out: the new directory.
        clips: number of clips over all classes, subjects and cameras.
        classes: number of classes, the first of :data:`ACTIONS`. The second class has two persons.
        seed: seed of all randomness.
        overwrite: replace an existing data set at ``out``.

    Raises:
        InputError: if ``out`` exists or an argument is out of range.
    """
    out = Path(out)
    if not 2 <= classes <= len(ACTIONS):
        raise InputError(f"--classes is {classes}; it must be from 2 to {len(ACTIONS)}")
    if clips < CLIPS_PER_CLASS * classes:
        raise InputError(
            f"--clips is {clips}; {classes} classes need at least {CLIPS_PER_CLASS * classes}, so that each split has "
            "clips of every class"
        )
    if seed < 0:
        raise InputError(f"--seed is {seed}; it must be 0 or more")
    check_output(out, overwrite=overwrite)
    with closing(tracked(demo_clips(clips, classes, seed), clips, "generating clips")) as generated:
        return write_dataset(
            out,
            generated,
            name="demo",
            skeleton=NTU_25,
            classes=[action.name for action in ACTIONS[:classes]],
            benchmarks=BENCHMARKS,
            recipe="ntu",
            source={"generated": True, "seed": seed},
            overwrite=overwrite,
        )


def demo_clips(clips: int, classes: int, seed: int) -> Iterator[Clip]:
    """Generate the clips of :func:`make_demo`.

    They come in pairs, one performance seen by both cameras; the class varies fastest, then the subject.
    """
    cameras = _cameras(seed)  # (CAMERAS, 3, 3)
    for number in range(-(-clips // CAMERAS)):
        turn, label = divmod(number, classes)
        subject = turn % SUBJECTS + 1
        rng = _generator(seed, "performance", number)
        persons = _performance(ACTIONS[label], subject, _postures(seed, label, subject), rng)  # (M, T, N, 3)
        for camera in range(min(CAMERAS, clips - CAMERAS * number)):
            sensor = _generator(seed, "sensor", CAMERAS * number + camera)
            lost = sensor.random((len(persons), 1, NTU_25.num_joints, 1)) < LOST
            lost[:, :, NTU_25.centre] = False
            noise = np.where(lost, LOST_NOISE, NOISE[:, None])  # (M, 1, N, 1), the same in all frames
            joints = persons @ cameras[camera].T + noise * sensor.standard_normal(persons.shape)
            joints -= joints[0, 0, NTU_25.centre]
            yield Clip(
                f"demo_a{label + 1:02d}_s{subject:02d}_r{turn // SUBJECTS + 1:03d}_v{camera + 1}",
                label,
                joints.astype(np.float32),
                subject=subject,
                camera=camera + 1,
                replication=turn // SUBJECTS + 1,
            )


def _generator(seed: int, purpose: str, number: int) -> np.random.Generator:
    """Return an independent generator for each item, so that adding clips does not change earlier ones."""
    purposes = ("subject", "performance", "sensor", "camera", "postures")
    return np.random.default_rng([seed, purposes.index(purpose), number])


def _postures(seed: int, label: int, subject: int) -> np.ndarray:
    """Return standard normal rotation vectors ``(2, POSTURES, N, 3)``: the postures of the limbs of the subject, and of
    its partner, that do not take part in the action.
    """
    rng = _generator(seed, "postures", label * (SUBJECTS + 1) + subject)
    return rng.standard_normal((2, POSTURES, NTU_25.num_joints, 3))


def _cameras(seed: int) -> np.ndarray:
    """Return rotations into camera coordinates, ``(2, 3, 3)``: one camera on each side of the scene, slightly above."""
    rng = _generator(seed, "camera", 0)
    yaw = rng.uniform(0.3, 0.6, CAMERAS) * (-1, 1)
    pitch = rng.uniform(0.0, 0.2, CAMERAS)
    zero = np.zeros(CAMERAS)
    return rotation_matrices(np.stack([pitch, zero, zero], -1)) @ rotation_matrices(np.stack([zero, yaw, zero], -1))


def _performance(action: Action, subject: int, postures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Generate the true positions in the scene, ``(M, T, N, 3)``; the first person faces roughly along z."""
    T = int(rng.integers(FRAMES[0], FRAMES[1] + 1))
    seconds = np.arange(T) / RATE
    tempo = action.tempo * rng.uniform(0.7, 1.3)
    phase = 2 * np.pi * tempo * seconds + rng.uniform(0, 2 * np.pi)
    # The action starts and ends inside the clip.
    begin, end = rng.uniform(0.0, 0.25) * seconds[-1], rng.uniform(0.75, 1.0) * seconds[-1]
    envelope = _smooth_step((seconds - begin) / 0.4) * _smooth_step((end - seconds) / 0.4)

    persons = [_person(action.moves, subject, postures[0], phase, envelope, seconds, rng)]
    if action.partner is not None:
        other = subject % SUBJECTS + 1
        body = _person(action.partner, other, postures[1], phase, envelope, seconds, rng)
        facing = rotation_matrices(np.array([0.0, np.pi + rng.normal(0, 0.15), 0.0]))
        persons.append(body @ facing.T + (rng.normal(0, 0.05), 0.0, rng.uniform(0.7, 1.0)))
    heading = rotation_matrices(np.array([0.0, rng.normal(0, 0.2), 0.0]))
    return np.stack(persons) @ heading.T


def _person(
    moves: Sequence[Move],
    subject: int,
    postures: np.ndarray,
    phase: np.ndarray,
    envelope: np.ndarray,
    seconds: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Generate one person's positions, ``(T, N, 3)``: the moves on top of the person's posture and sway, and the
    ``postures`` ``(POSTURES, N, 3)`` of the limbs that do not take part.
    """
    N = NTU_25.num_joints
    # A subject's build does not depend on the data set's seed.
    build = _generator(0, "subject", subject)
    bones = OFFSETS * build.uniform(0.82, 1.12) * build.normal(1.0, 0.05, (N, 1))  # (N, 3)
    posture = build.normal(0, 0.05, (N, 3))
    vigour = build.uniform(0.85, 1.15) * rng.uniform(0.8, 1.1)

    sway = rng.normal(0, 0.03, (N, 3)) * np.sin(
        2 * np.pi * rng.uniform(0.1, 0.5, (N, 3)) * seconds[:, None, None] + rng.uniform(0, 2 * np.pi, (N, 3))
    )
    turns = posture + rng.normal(0, 0.05, (N, 3)) + sway  # rotation vectors (T, N, 3)
    for move in moves:
        angle = move.rest + move.swing * np.sin(move.rate * phase + move.lag)
        turns[:, JOINT[move.joint], "xyz".index(move.axis)] += vigour * envelope * angle

    # The lower foot is on the floor, apart from the legs' random postures: these would move the whole body.
    floor = forward_kinematics(rotation_matrices(turns), bones)[:, FEET, 1].min(axis=1, keepdims=True)
    taking_part = {move.joint for move in moves}
    for limb, spread in LIMBS:
        if taking_part.isdisjoint(limb):
            joints = [JOINT[joint] for joint in limb]
            turns[:, joints] += spread * _alternate(postures[:, joints], len(seconds), rng)

    positions = forward_kinematics(rotation_matrices(turns), bones)
    positions[..., 1] -= floor
    drift = rng.normal(0, 0.02, (2, 3)) * (1, 0, 1)
    path = drift[0] * np.sin(2 * np.pi * 0.2 * seconds)[:, None] + drift[1] * seconds[:, None]  # (T, 3)
    return positions + path[:, None]


def _alternate(postures: np.ndarray, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Return one of the postures ``(POSTURES, joints, 3)`` at a time, each varied a little, ``(frames, joints, 3)``."""
    durations = rng.integers(POSTURE_FRAMES[0], POSTURE_FRAMES[1] + 1, frames)  # more than enough
    chosen = postures[rng.integers(0, len(postures), frames)]
    chosen = chosen + POSTURE_VARIATION * rng.standard_normal(chosen.shape)
    return np.repeat(chosen, durations, axis=0)[:frames]


def forward_kinematics(rotations: np.ndarray, bones: np.ndarray) -> np.ndarray:
    """Compute joint positions from joint rotations.

    Args:
        rotations: ``(T, N, 3, 3)``, of each joint relative to its parent.
        bones: ``(N, 3)``, the offset of each joint from its parent at rest.

    Returns:
        ``(T, N, 3)``, relative to the root.
    """
    absolute = rotations.copy()
    positions = np.zeros(rotations.shape[:3])
    for joint, parent in TREE:
        positions[:, joint] = positions[:, parent] + absolute[:, parent] @ bones[joint]
        absolute[:, joint] = absolute[:, parent] @ rotations[:, joint]
    return positions


def rotation_matrices(vectors: np.ndarray) -> np.ndarray:
    """Convert rotation vectors ``(…, 3)`` in radians to matrices ``(…, 3, 3)`` by Rodrigues' formula."""
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*vectors.shape[:-1], 3, 3)
    # sin(a)/a and (1 - cos(a))/a², also at a = 0
    first, second = np.sinc(angle / np.pi), 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.eye(3) + first * cross + second * (cross @ cross)


def _smooth_step(x: np.ndarray) -> np.ndarray:
    """Return 0 below 0, 1 above 1, and a smooth transition between."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3 - 2 * x)
