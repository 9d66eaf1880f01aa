"""The skeletons that ship: those of common cameras, pose estimators and data sets.

Joint orders are those of the public specifications, so that arrays of these sources are used unchanged. Partitions of a
body have P = 1, 2, 5, 6 and 10 parts, of a hand P = 1, 2, 6 and 10; each merges parts of the next finer one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from fgst.data.skeleton import Skeleton

_Parts = Sequence[Sequence[str]]  # joint names


def _skeleton(name: str, joints: str, bones: Sequence[str], *, centre: str, partitions: Sequence[_Parts]) -> Skeleton:
    """Build a skeleton from names.

    Args:
        name: name of the skeleton.
        joints: the joint names in the order of the data, separated by spaces.
        bones: chains of joints from parent to child; a chain of the left side also describes the right side.
        centre: the joint that recipes move to the origin.
        partitions: partitions into body parts.
    """
    names = joints.split()
    index = {joint: i for i, joint in enumerate(names)}
    parents = list(range(len(names)))
    for chain in [*bones, *map(_right, bones)]:
        for parent, child in pairwise(chain.split()):
            parents[index[child]] = index[parent]
    return Skeleton(
        name=name,
        joints=tuple(names),
        parents=tuple(parents),
        centre=index[centre],
        partitions=tuple(tuple(tuple(index[joint] for joint in part) for part in parts) for parts in partitions),
    )


def _right(names: str) -> str:
    """Return the names of the right side, given those of the left side."""
    return names.replace("left_", "right_")


def _body(*, head: str, torso: str, upper_arm: str, hand: str, thigh: str, foot: str) -> list[_Parts]:
    """Return partitions of a body into 10, 6, 5, 2 and 1 parts.

    Args:
        head: joint names, separated by spaces.
        torso: joint names.
        upper_arm: joint names without their side, from which the parts of the left and the right side are built. All
            limbs are described in this way.
        hand: the rest of an arm.
        thigh: joint names without their side.
        foot: the rest of a leg.
    """

    def sides(part: str) -> tuple[list[str], list[str]]:
        left = [f"left_{joint}" for joint in part.split()]
        return left, [_right(joint) for joint in left]

    (upper_l, upper_r), (hand_l, hand_r), (thigh_l, thigh_r), (foot_l, foot_r) = map(
        sides, (upper_arm, hand, thigh, foot)
    )
    heads, torsos = head.split(), torso.split()
    arms, legs = [upper_l + hand_l, upper_r + hand_r], [thigh_l + foot_l, thigh_r + foot_r]
    trunk = torsos + heads
    upper_body, lower_body = trunk + arms[0] + arms[1], legs[0] + legs[1]
    return [
        [heads, torsos, upper_l, hand_l, upper_r, hand_r, thigh_l, foot_l, thigh_r, foot_r],
        [heads, torsos, *arms, *legs],
        [trunk, *arms, *legs],
        [upper_body, lower_body],
        [upper_body + lower_body],
    ]


_KINECT_LIMBS = (
    "left_shoulder left_elbow left_wrist left_hand right_shoulder right_elbow right_wrist right_hand "
    "left_hip left_knee left_ankle left_foot right_hip right_knee right_ankle right_foot"
)

NTU_25 = _skeleton(
    "ntu-25",
    "base_of_spine mid_spine neck head "
    f"{_KINECT_LIMBS} "
    "spine_at_shoulders left_hand_tip left_thumb right_hand_tip right_thumb",
    [
        "spine_at_shoulders mid_spine base_of_spine",
        "spine_at_shoulders neck head",
        "spine_at_shoulders left_shoulder left_elbow left_wrist left_hand left_thumb left_hand_tip",
        "base_of_spine left_hip left_knee left_ankle left_foot",
    ],
    centre="mid_spine",
    partitions=_body(
        head="neck head",
        torso="base_of_spine mid_spine spine_at_shoulders",
        upper_arm="shoulder elbow",
        hand="wrist hand hand_tip thumb",
        thigh="hip knee",
        foot="ankle foot",
    ),
)
"""Kinect v2, in NTU RGB+D's names."""

# Kinect v1. Data sets contain the name of the data set that this skeleton was first used for; it is part of their
# digests.
NW_UCLA_20 = _skeleton(
    "nw-ucla-20",
    f"hip_centre spine shoulder_centre head {_KINECT_LIMBS}",
    [
        "shoulder_centre spine hip_centre",
        "shoulder_centre head",
        "shoulder_centre left_shoulder left_elbow left_wrist left_hand",
        "hip_centre left_hip left_knee left_ankle left_foot",
    ],
    centre="spine",
    partitions=_body(
        head="shoulder_centre head",
        torso="hip_centre spine",
        upper_arm="shoulder elbow",
        hand="wrist hand",
        thigh="hip knee",
        foot="ankle foot",
    ),
)
"""Kinect v1, as in Northwestern-UCLA."""

# COCO has no joint of the trunk: the nose is the root and the centre, as in other networks for these keypoints, and
# shoulders and hips form the torso.
COCO_17 = _skeleton(
    "coco-17",
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle",
    [
        "nose left_eye left_ear",
        "nose left_shoulder left_elbow left_wrist",
        "left_shoulder left_hip left_knee left_ankle",
    ],
    centre="nose",
    partitions=_body(
        head="nose left_eye right_eye left_ear right_ear",
        torso="left_shoulder right_shoulder left_hip right_hip",
        upper_arm="elbow",
        hand="wrist",
        thigh="knee",
        foot="ankle",
    ),
)
"""COCO keypoints: pyskl, mmpose, YOLO and others."""

# The neck is the centre of both OpenPose models: unlike the hips, it is visible in pictures of the upper body.
_OPENPOSE_HEAD = "nose right_eye left_eye right_ear left_ear"
OPENPOSE_18 = _skeleton(
    "openpose-18",
    "nose neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist right_hip right_knee "
    "right_ankle left_hip left_knee left_ankle right_eye left_eye right_ear left_ear",
    [
        "neck nose left_eye left_ear",
        "neck left_shoulder left_elbow left_wrist",
        "neck left_hip left_knee left_ankle",
    ],
    centre="neck",
    partitions=_body(
        head=_OPENPOSE_HEAD,
        torso="neck",
        upper_arm="shoulder elbow",
        hand="wrist",
        thigh="hip knee",
        foot="ankle",
    ),
)
"""OpenPose's COCO model, as in Kinetics-skeleton."""

BODY_25 = _skeleton(
    "body-25",
    "nose neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist mid_hip right_hip right_knee "
    "right_ankle left_hip left_knee left_ankle right_eye left_eye right_ear left_ear left_big_toe left_small_toe "
    "left_heel right_big_toe right_small_toe right_heel",
    [
        "neck mid_hip",
        "neck nose left_eye left_ear",
        "neck left_shoulder left_elbow left_wrist",
        "mid_hip left_hip left_knee left_ankle left_heel",
        "left_ankle left_big_toe left_small_toe",
    ],
    centre="neck",
    partitions=_body(
        head=_OPENPOSE_HEAD,
        torso="neck mid_hip",
        upper_arm="shoulder elbow",
        hand="wrist",
        thigh="hip knee",
        foot="ankle big_toe small_toe heel",
    ),
)
"""OpenPose's default model, BODY_25."""

# As in COCO, no joint belongs to the trunk alone.
MEDIAPIPE_33 = _skeleton(
    "mediapipe-33",
    "nose left_eye_inner left_eye left_eye_outer right_eye_inner right_eye right_eye_outer left_ear right_ear "
    "left_mouth right_mouth left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_pinky "
    "right_pinky left_index right_index left_thumb right_thumb left_hip right_hip left_knee right_knee left_ankle "
    "right_ankle left_heel right_heel left_foot_index right_foot_index",
    [
        "nose left_eye_inner left_eye left_eye_outer left_ear",
        "nose left_mouth",
        "nose left_shoulder left_elbow left_wrist left_index",
        "left_wrist left_pinky",
        "left_wrist left_thumb",
        "left_shoulder left_hip left_knee left_ankle left_heel left_foot_index",
    ],
    centre="nose",
    partitions=_body(
        head="nose left_eye_inner left_eye left_eye_outer right_eye_inner right_eye right_eye_outer left_ear right_ear "
        "left_mouth right_mouth",
        torso="left_shoulder right_shoulder left_hip right_hip",
        upper_arm="elbow",
        hand="wrist pinky index thumb",
        thigh="knee",
        foot="ankle heel foot_index",
    ),
)
"""MediaPipe Pose (BlazePose)."""

# The centre is the spine: where positions are relative to the pelvis, as is usual for Human3.6M, the pelvis is always
# zero, which means "not seen" in a data set.
H36M_17 = _skeleton(
    "h36m-17",
    "pelvis right_hip right_knee right_foot left_hip left_knee left_foot spine thorax neck head left_shoulder "
    "left_elbow left_wrist right_shoulder right_elbow right_wrist",
    [
        "pelvis spine thorax neck head",
        "thorax left_shoulder left_elbow left_wrist",
        "pelvis left_hip left_knee left_foot",
    ],
    centre="spine",
    partitions=_body(
        head="neck head",
        torso="pelvis spine thorax",
        upper_arm="shoulder elbow",
        hand="wrist",
        thigh="hip knee",
        foot="foot",
    ),
)
"""Human3.6M's 17 joints, as in VideoPose3D and most code that lifts poses to three dimensions."""

AZURE_KINECT_32 = _skeleton(
    "azure-kinect-32",
    "pelvis spine_navel spine_chest neck left_clavicle left_shoulder left_elbow left_wrist left_hand left_hand_tip "
    "left_thumb right_clavicle right_shoulder right_elbow right_wrist right_hand right_hand_tip right_thumb left_hip "
    "left_knee left_ankle left_foot right_hip right_knee right_ankle right_foot head nose left_eye left_ear right_eye "
    "right_ear",
    [
        "pelvis spine_navel spine_chest neck head nose",
        "head left_eye",
        "head left_ear",
        "spine_chest left_clavicle left_shoulder left_elbow left_wrist left_hand left_hand_tip",
        "left_wrist left_thumb",
        "pelvis left_hip left_knee left_ankle left_foot",
    ],
    centre="spine_navel",
    partitions=_body(
        head="neck head nose left_eye left_ear right_eye right_ear",
        torso="pelvis spine_navel spine_chest",
        upper_arm="clavicle shoulder elbow",
        hand="wrist hand hand_tip thumb",
        thigh="hip knee",
        foot="ankle foot",
    ),
)
"""Azure Kinect's body tracking."""

_PALM = ["wrist", "palm"]
_THUMB, *_LONG_FINGERS = (
    [f"{finger}_{joint}" for joint in ("base", "first_joint", "second_joint", "tip")]
    for finger in ("thumb", "index", "middle", "ring", "little")
)
_LONG_FINGER_JOINTS = [joint for finger in _LONG_FINGERS for joint in finger]
SHREC_22 = _skeleton(
    "shrec-22",
    " ".join(_PALM + _THUMB + _LONG_FINGER_JOINTS),
    ["palm wrist", *(" ".join(["palm", *finger]) for finger in (_THUMB, *_LONG_FINGERS))],
    centre="palm",
    partitions=[
        # The four long fingers are halved; the thumb has a phalanx less.
        [_PALM, _THUMB, *(half for finger in _LONG_FINGERS for half in (finger[:2], finger[2:]))],
        [_PALM, _THUMB, *_LONG_FINGERS],
        [_PALM + _THUMB, _LONG_FINGER_JOINTS],
        [_PALM + _THUMB + _LONG_FINGER_JOINTS],
    ],
)
"""A hand with 22 joints (Intel RealSense), as in the SHREC'17 track and DHG-14/28."""

SKELETONS: dict[str, Skeleton] = {
    "ntu-25": NTU_25,
    "kinect-20": NW_UCLA_20,
    "coco-17": COCO_17,
    "openpose-18": OPENPOSE_18,
    "body-25": BODY_25,
    "mediapipe-33": MEDIAPIPE_33,
    "h36m-17": H36M_17,
    "azure-kinect-32": AZURE_KINECT_32,
    "shrec-22": SHREC_22,
}
"""The skeletons by the name that commands take; :func:`find_skeleton` also knows the names in data sets."""


def find_skeleton(name: str) -> Skeleton | None:
    """Return a skeleton that ships by its key in :data:`SKELETONS` or by its own name, ``None`` if there is none."""
    return next((skeleton for key, skeleton in SKELETONS.items() if name in (key, skeleton.name)), None)


def names_of(num_joints: int) -> list[str]:
    """Return the names of the skeletons that ship and have this number of joints."""
    return [name for name, skeleton in SKELETONS.items() if skeleton.num_joints == num_joints]
