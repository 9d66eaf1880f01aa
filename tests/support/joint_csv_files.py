"""CSV files of joints in the layouts of common recorders, for persons ``(M, T, N, 3)`` of generated motion."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

# MediaPipe's names, in its order.
MEDIAPIPE = (
    "NOSE LEFT_EYE_INNER LEFT_EYE LEFT_EYE_OUTER RIGHT_EYE_INNER RIGHT_EYE RIGHT_EYE_OUTER LEFT_EAR RIGHT_EAR "
    "MOUTH_LEFT MOUTH_RIGHT LEFT_SHOULDER RIGHT_SHOULDER LEFT_ELBOW RIGHT_ELBOW LEFT_WRIST RIGHT_WRIST LEFT_PINKY "
    "RIGHT_PINKY LEFT_INDEX RIGHT_INDEX LEFT_THUMB RIGHT_THUMB LEFT_HIP RIGHT_HIP LEFT_KNEE RIGHT_KNEE LEFT_ANKLE "
    "RIGHT_ANKLE LEFT_HEEL RIGHT_HEEL LEFT_FOOT_INDEX RIGHT_FOOT_INDEX"
).split()
KINECT_V1 = (
    "HipCenter Spine ShoulderCenter Head ShoulderLeft ElbowLeft WristLeft HandLeft ShoulderRight ElbowRight "
    "WristRight HandRight HipLeft KneeLeft AnkleLeft FootLeft HipRight KneeRight AnkleRight FootRight"
).split()
KINECT_V2 = (
    "SpineBase SpineMid Neck Head ShoulderLeft ElbowLeft WristLeft HandLeft ShoulderRight ElbowRight WristRight "
    "HandRight HipLeft KneeLeft AnkleLeft FootLeft HipRight KneeRight AnkleRight FootRight SpineShoulder "
    "HandTipLeft ThumbLeft HandTipRight ThumbRight"
).split()
AZURE = (
    "PELVIS SPINE_NAVEL SPINE_CHEST NECK CLAVICLE_LEFT SHOULDER_LEFT ELBOW_LEFT WRIST_LEFT HAND_LEFT HANDTIP_LEFT "
    "THUMB_LEFT CLAVICLE_RIGHT SHOULDER_RIGHT ELBOW_RIGHT WRIST_RIGHT HAND_RIGHT HANDTIP_RIGHT THUMB_RIGHT "
    "HIP_LEFT KNEE_LEFT ANKLE_LEFT FOOT_LEFT HIP_RIGHT KNEE_RIGHT ANKLE_RIGHT FOOT_RIGHT HEAD NOSE EYE_LEFT "
    "EAR_LEFT EYE_RIGHT EAR_RIGHT"
).split()


def number(value: float) -> str:
    return f"{value:.7g}"


def rounded(joints: np.ndarray) -> np.ndarray:
    """Return the joints as the files have them."""
    return np.array([float(number(value)) for value in joints.reshape(-1)]).reshape(joints.shape)


def wide(
    joints: np.ndarray,
    cell: Callable[[int, str], str],
    *,
    axes: Sequence[str] = ("x", "y", "z", "v"),
    leading: Sequence[str] = ("frame",),
    unseen: str = "",
    delimiter: str = ",",
) -> bytes:
    """Write one person ``(1, T, N, 3)`` with a line per frame.

    Args:
        joints: the person; a zero joint is not seen.
        cell: the name of a column, by joint and axis.
        axes: the axes; a fourth is the visibility.
        leading: columns before the coordinates; all have the frame's number.
        unseen: the cells of a joint that is not seen.
        delimiter: between cells.
    """
    lines = [[*leading, *(cell(i, axis) for i in range(joints.shape[2]) for axis in axes)]]
    for t, frame in enumerate(joints[0]):
        cells = [str(t)] * len(leading)
        for joint in frame:
            values = [*map(number, joint[:3]), "0.9"][: len(axes)]
            cells += values if joint.any() else [unseen] * len(axes)
        lines.append(cells)
    return "\n".join(delimiter.join(line) for line in lines).encode() + b"\n"


def long(
    joints: np.ndarray,
    names: Sequence[str],
    *,
    header: str = "frame,landmark,x,y,z,visibility",
    person: bool = False,
    first_frame: int = 0,
) -> bytes:
    """Write persons ``(M, T, N, 3)`` with a line per joint; lines of joints that are not seen are left out."""
    lines = [header]
    for t in range(joints.shape[1]):
        for m, pose in enumerate(joints[:, t]):
            for name, joint in zip(names, pose, strict=True):
                if joint.any():
                    cells = [str(t + first_frame), *([f"p{m}"] if person else []), name, *map(number, joint), "0.9"]
                    lines.append(",".join(cells))
    return "\n".join(lines).encode() + b"\n"


def blocks(
    joints: np.ndarray,
    names: Sequence[str],
    *,
    header: str = "Joint,x,y,z,state",
    repeated: bool = False,
    between: Callable[[int], str | None] = lambda t: None,
    states: Sequence[str] = ("0", "1", "2"),
    delimiter: str = ",",
    decimal: str = ".",
) -> bytes:
    """Write one person ``(1, T, N, 3)`` like a Kinect recorder: a block of joints for each frame.

    Args:
        joints: the person; a zero joint is written at a made-up position, with the state "not tracked".
        names: of the joints.
        header: the header; "" for none.
        repeated: write the header before each block.
        between: a line before the block of frame t; ``None`` for none.
        states: not tracked, inferred, tracked.
        delimiter: between cells.
        decimal: the decimal point.
    """
    lines = [header] if header and not repeated else []
    for t, frame in enumerate(joints[0]):
        if (line := between(t)) is not None:
            lines.append(line)
        if repeated:
            lines.append(header)
        for i, (name, joint) in enumerate(zip(names, frame, strict=True)):
            tracked = joint.any()
            values = [number(value).replace(".", decimal) for value in (joint if tracked else (0.1, 0.2, 0.3))]
            lines.append(delimiter.join([name, *values, states[0] if not tracked else states[1 + i % 2]]))
    return "\n".join(line.replace(",", delimiter) if line == header else line for line in lines).encode() + b"\n"
