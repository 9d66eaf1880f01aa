"""The skeletons that ship: joints and bones of the public specifications, partitions, sides, and networks on each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

import pytest
import torch

from fgst.config import PRESETS
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import NW_UCLA_20, SKELETONS, find_skeleton, names_of
from fgst.integrity import json_digest
from fgst.model import FGSTFormer
from fgst.parsing import decode_json

all_skeletons = pytest.mark.parametrize("name", SKELETONS)
BODIES = [name for name in SKELETONS if name != "shrec-22"]

# The joints' names in the specifications: JointType (Kinect SDK 2.0), NUI_SKELETON_POSITION_INDEX (Kinect SDK 1.8), the
# categories of person_keypoints_val2017.json, poseParameters.cpp (OpenPose), PoseLandmark (MediaPipe), VideoPose3D and
# mmpose (Human3.6M), k4abt_joint_id_t (Azure Kinect) and the order in which public code reads SHREC'17.
JOINTS = {
    "ntu-25": "SpineBase SpineMid Neck Head ShoulderLeft ElbowLeft WristLeft HandLeft ShoulderRight ElbowRight "
    "WristRight HandRight HipLeft KneeLeft AnkleLeft FootLeft HipRight KneeRight AnkleRight FootRight SpineShoulder "
    "HandTipLeft ThumbLeft HandTipRight ThumbRight",
    "kinect-20": "HIP_CENTER SPINE SHOULDER_CENTER HEAD SHOULDER_LEFT ELBOW_LEFT WRIST_LEFT HAND_LEFT SHOULDER_RIGHT "
    "ELBOW_RIGHT WRIST_RIGHT HAND_RIGHT HIP_LEFT KNEE_LEFT ANKLE_LEFT FOOT_LEFT HIP_RIGHT KNEE_RIGHT ANKLE_RIGHT "
    "FOOT_RIGHT",
    "coco-17": "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow "
    "left_wrist right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle",
    "openpose-18": "Nose Neck RShoulder RElbow RWrist LShoulder LElbow LWrist RHip RKnee RAnkle LHip LKnee LAnkle REye "
    "LEye REar LEar",
    "body-25": "Nose Neck RShoulder RElbow RWrist LShoulder LElbow LWrist MidHip RHip RKnee RAnkle LHip LKnee LAnkle "
    "REye LEye REar LEar LBigToe LSmallToe LHeel RBigToe RSmallToe RHeel",
    "mediapipe-33": "NOSE LEFT_EYE_INNER LEFT_EYE LEFT_EYE_OUTER RIGHT_EYE_INNER RIGHT_EYE RIGHT_EYE_OUTER LEFT_EAR "
    "RIGHT_EAR MOUTH_LEFT MOUTH_RIGHT LEFT_SHOULDER RIGHT_SHOULDER LEFT_ELBOW RIGHT_ELBOW LEFT_WRIST RIGHT_WRIST "
    "LEFT_PINKY RIGHT_PINKY LEFT_INDEX RIGHT_INDEX LEFT_THUMB RIGHT_THUMB LEFT_HIP RIGHT_HIP LEFT_KNEE RIGHT_KNEE "
    "LEFT_ANKLE RIGHT_ANKLE LEFT_HEEL RIGHT_HEEL LEFT_FOOT_INDEX RIGHT_FOOT_INDEX",
    "h36m-17": "Hip RHip RKnee RFoot LHip LKnee LFoot Spine Thorax Neck Head LShoulder LElbow LWrist RShoulder RElbow "
    "RWrist",
    "azure-kinect-32": "PELVIS SPINE_NAVEL SPINE_CHEST NECK CLAVICLE_LEFT SHOULDER_LEFT ELBOW_LEFT WRIST_LEFT "
    "HAND_LEFT HANDTIP_LEFT THUMB_LEFT CLAVICLE_RIGHT SHOULDER_RIGHT ELBOW_RIGHT WRIST_RIGHT HAND_RIGHT HANDTIP_RIGHT "
    "THUMB_RIGHT HIP_LEFT KNEE_LEFT ANKLE_LEFT FOOT_LEFT HIP_RIGHT KNEE_RIGHT ANKLE_RIGHT FOOT_RIGHT HEAD NOSE "
    "EYE_LEFT EAR_LEFT EYE_RIGHT EAR_RIGHT",
    "shrec-22": "wrist palm thumb_base thumb_first_joint thumb_second_joint thumb_tip index_base index_first_joint "
    "index_second_joint index_tip middle_base middle_first_joint middle_second_joint middle_tip ring_base "
    "ring_first_joint ring_second_joint ring_tip pinky_base pinky_first_joint pinky_second_joint pinky_tip",
}
# Where a name differs by more than its spelling.
SYNONYMS = {
    "ntu-25": {"spine_base": "base_of_spine", "spine_mid": "mid_spine", "spine_shoulder": "spine_at_shoulders"},
    "kinect-20": {"hip_center": "hip_centre", "shoulder_center": "shoulder_centre"},
    "h36m-17": {"hip": "pelvis"},
    "azure-kinect-32": {"left_handtip": "left_hand_tip", "right_handtip": "right_hand_tip"},
}
# Connections of the specifications, joints counted from 0 (COCO: from 1, as in its file).
COCO_CONNECTIONS = [
    (16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8), (7, 9), (8, 10), (9, 11),
    (2, 3), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7),
]  # fmt: skip
CONNECTIONS = {
    "coco-17": [(first - 1, second - 1) for first, second in COCO_CONNECTIONS],
    "openpose-18": [
        (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
        (0, 14), (14, 16), (0, 15), (15, 17), (2, 16), (5, 17),
    ],
    "body-25": [
        (1, 8), (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (8, 9), (9, 10), (10, 11), (8, 12), (12, 13), (13, 14),
        (1, 0), (0, 15), (15, 17), (0, 16), (16, 18), (2, 17), (5, 18), (14, 19), (19, 20), (14, 21), (11, 22),
        (22, 23), (11, 24),
    ],
    "mediapipe-33": [
        (0, 1), (1, 2), (2, 3), (3, 7), (0, 4), (4, 5), (5, 6), (6, 8), (9, 10), (11, 12), (11, 13), (13, 15), (15, 17),
        (15, 19), (15, 21), (17, 19), (12, 14), (14, 16), (16, 18), (16, 20), (16, 22), (18, 20), (11, 23), (12, 24),
        (23, 24), (23, 25), (24, 26), (25, 27), (26, 28), (27, 29), (28, 30), (29, 31), (30, 32), (27, 31), (28, 32),
    ],
    "h36m-17": [
        (0, 1), (1, 2), (2, 3), (0, 4), (4, 5), (5, 6), (0, 7), (7, 8), (8, 9), (9, 10), (8, 11), (11, 12), (12, 13),
        (8, 14), (14, 15), (15, 16),
    ],
    "azure-kinect-32": [
        (0, 1), (1, 2), (2, 3), (2, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 9), (7, 10), (2, 11), (11, 12), (12, 13),
        (13, 14), (14, 15), (15, 16), (14, 17), (0, 18), (18, 19), (19, 20), (20, 21), (0, 22), (22, 23), (23, 24),
        (24, 25), (3, 26), (26, 27), (26, 28), (26, 29), (26, 30), (26, 31),
    ],
    "shrec-22": [(0, 1), *((1, base) for base in range(2, 22, 4)),
                 *((joint, joint + 1) for base in range(2, 22, 4) for joint in range(base, base + 3))],
}  # fmt: skip
# A skeleton is a tree: connections that would close rings are left out, and bones are added between separate groups.
LEFT_OUT = {
    "coco-17": {(2, 1), (5, 3), (6, 4), (6, 5), (12, 11)},
    "openpose-18": {(2, 16), (5, 17)},
    "body-25": {(2, 17), (5, 18)},
    "mediapipe-33": {(9, 10), (11, 12), (17, 19), (18, 20), (23, 24), (27, 31), (28, 32)},
}
ADDED = {"coco-17": {(5, 0), (6, 0)}, "mediapipe-33": {(9, 0), (10, 0), (11, 0), (12, 0)}}
# SHA-256 of the descriptions in existing data sets.
DIGESTS = {
    "ntu-25": "3f8d3d62d54453ef3431343fa529ffef7ed41091272e173f8021026c95847c7e",
    "kinect-20": "2375c6f64f978d9d2c43bdbbf03e5ae7c758b616efb466bab9e2f9fa9b306ca4",
}


def spelled(name: str, joint: str) -> str:
    """Return a specification's joint in this project's spelling: ``LBigToe`` and ``MOUTH_LEFT`` as ``left_…``."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=^[LR])(?=[A-Z][a-z])", "_", joint).lower()
    match = re.fullmatch(r"(?:(l|r|left|right)_)?(.*?)(?:_(left|right))?", words)
    assert match is not None
    side = {"l": "left", "r": "right"}.get(match[1], match[1]) or match[3]
    ours = f"{side}_{match[2]}" if side else match[2]
    ours = ours.replace("pinky", "little") if name == "shrec-22" else ours
    return SYNONYMS.get(name, {}).get(ours, ours)


@all_skeletons
def test_joints_are_in_specified_order(name: str) -> None:
    assert list(SKELETONS[name].joints) == [spelled(name, joint) for joint in JOINTS[name].split()]
    assert name.endswith(f"-{SKELETONS[name].num_joints}")


@pytest.mark.parametrize("name", CONNECTIONS)
def test_bones_are_specified_connections(name: str) -> None:
    def unordered(pairs: Iterable[tuple[int, int]]) -> set[frozenset[int]]:
        return {frozenset(pair) for pair in pairs}

    bones = unordered((joint, parent) for joint, parent in enumerate(SKELETONS[name].parents) if joint != parent)
    connections = unordered(CONNECTIONS[name])
    assert connections - bones == unordered(LEFT_OUT.get(name, ()))
    assert bones - connections == unordered(ADDED.get(name, ()))


@all_skeletons
def test_all_joints_descend_from_single_root(name: str) -> None:
    skeleton = SKELETONS[name]
    roots = {joint for joint, parent in enumerate(skeleton.parents) if joint == parent}
    assert len(roots) == 1
    for joint in range(skeleton.num_joints):
        for _ in range(skeleton.num_joints):
            joint = skeleton.parents[joint]
        assert joint in roots


@pytest.mark.parametrize("name", DIGESTS)
def test_descriptions_in_existing_data_sets_are_unchanged(name: str) -> None:
    assert json_digest(SKELETONS[name].to_dict()) == DIGESTS[name]


@all_skeletons
def test_known_parts(name: str) -> None:
    parts = (1, 2, 5, 6, 10) if name in BODIES else (1, 2, 6, 10)
    assert SKELETONS[name].known_parts == (*parts, SKELETONS[name].num_joints)


@pytest.mark.parametrize("name", BODIES)
def test_ten_parts_are_head_torso_and_halves_of_limbs(name: str) -> None:
    """The joint that each part is named after is in it; this fixes the parts' order, too."""
    skeleton = SKELETONS[name]
    head, torso, *limbs = [[skeleton.joints[joint] for joint in part] for part in skeleton.partition(10)]
    assert {"head", "nose"} & set(head)
    assert {"spine", "mid_spine", "spine_navel", "neck", "left_shoulder"} & set(torso)
    ends = [("elbow", "wrist"), ("knee", "foot" if name == "h36m-17" else "ankle")]
    expected = [f"{side}_{joint}" for limb in ends for side in ("left", "right") for joint in limb]
    assert [joint in part for joint, part in zip(expected, limbs, strict=True)] == [True] * 8


def test_parts_of_hand_are_palm_and_fingers() -> None:
    skeleton = SKELETONS["shrec-22"]
    palm, *fingers = [{skeleton.joints[joint].split("_")[0] for joint in part} for part in skeleton.partition(6)]
    assert palm == {"wrist", "palm"}
    assert fingers == [{"thumb"}, {"index"}, {"middle"}, {"ring"}, {"little"}]


@all_skeletons
def test_partitions_are_nested(name: str) -> None:
    """Every part of a coarser partition is a union of parts of the finer one."""
    skeleton = SKELETONS[name]
    for coarse, fine in zip(skeleton.known_parts, skeleton.known_parts[1:], strict=False):
        finer = [set(part) for part in skeleton.partition(fine)]
        assert len(finer) == fine
        for part in map(set, skeleton.partition(coarse)):
            assert set().union(*(small for small in finer if small <= part)) == part


@pytest.mark.parametrize("name", BODIES)
def test_left_and_right_are_symmetric(name: str) -> None:
    skeleton, mirror = SKELETONS[name], SKELETONS[name].mirror
    for joint, parent in enumerate(skeleton.parents):
        assert skeleton.parents[mirror[joint]] == mirror[parent]
    assert mirror[skeleton.centre] == skeleton.centre
    for parts in skeleton.known_parts:
        partition = {frozenset(part) for part in skeleton.partition(parts)}
        assert {frozenset(mirror[joint] for joint in part) for part in partition} == partition


@pytest.mark.parametrize("name", BODIES)
def test_mirrored_parts_have_same_joint_order(name: str) -> None:
    """One linear layer embeds all parts, so that an elbow must have the same position in the left and right arm."""
    skeleton = SKELETONS[name]
    for parts in (5, 6, 10):
        partition = skeleton.partition(parts)
        left = [part for part in partition if {skeleton.sides[joint] for joint in part} == {"left"}]
        assert len(left) == (2 if parts < 10 else 4)
        for part in left:
            assert tuple(skeleton.mirror[joint] for joint in part) in partition


@all_skeletons
def test_mirror_exchanges_sides(name: str) -> None:
    skeleton = SKELETONS[name]
    assert tuple(skeleton.mirror[joint] for joint in skeleton.mirror) == tuple(range(skeleton.num_joints))
    opposite = {"left": "right", "right": "left", "": ""}
    assert [skeleton.sides[joint] for joint in skeleton.mirror] == [opposite[side] for side in skeleton.sides]
    pairs = [joint for joint in JOINTS[name].split() if spelled(name, joint).startswith("left_")]
    assert skeleton.sides.count("left") == len(pairs)
    assert sum(partner != joint for joint, partner in enumerate(skeleton.mirror)) == 2 * len(pairs)


def test_joint_without_counterpart_is_its_own_mirror() -> None:
    skeleton = Skeleton("one-armed", ("chest", "right_hand", "left_foot", "right_foot", "lefty"), (0, 0, 0, 0, 0))
    assert skeleton.mirror == (0, 1, 3, 2, 4)
    assert skeleton.sides == ("", "right", "left", "right", "")


@all_skeletons
def test_json_round_trip(name: str) -> None:
    assert decode_json(json.dumps(SKELETONS[name].to_dict()).encode(), Skeleton) == SKELETONS[name]


def test_skeletons_are_found_by_both_names() -> None:
    for name, skeleton in SKELETONS.items():
        assert find_skeleton(name) is find_skeleton(skeleton.name) is skeleton
    assert find_skeleton("kinect-20") is find_skeleton("nw-ucla-20") is NW_UCLA_20
    assert find_skeleton("kinect-21") is None
    assert names_of(25) == ["ntu-25", "body-25"]
    assert names_of(3) == []


@all_skeletons
def test_networks_run_on_every_partition(name: str) -> None:
    skeleton = SKELETONS[name]
    joints = torch.randn(2, 1, 6, skeleton.num_joints, 3, generator=torch.Generator().manual_seed(0))
    for parts in skeleton.known_parts:
        for focal in (1, skeleton.num_joints):
            config = PRESETS["tiny"].with_values({"model.focal_joints": focal, "model.parts": parts}).model
            config.check_skeleton(skeleton)
            model = FGSTFormer(config, skeleton, 4, frames=6).eval()
            with torch.no_grad():
                scores = model(joints)
            assert scores.shape == (2, 4)
            assert scores.isfinite().all()
