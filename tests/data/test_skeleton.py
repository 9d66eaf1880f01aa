"""Skeletons: those of the paper, compared with lists from the literature, and validation."""

from __future__ import annotations

from typing import Any

import pytest

from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import NTU_25, NW_UCLA_20

# (child, parent) and parts, joints counted from 1.
LIMB_BONES = [
    (6, 5), (7, 6), (8, 7), (10, 9), (11, 10), (12, 11), (13, 1), (14, 13), (15, 14), (16, 15), (17, 1), (18, 17),
    (19, 18), (20, 19),
]  # fmt: skip
BONES = {
    "nw-ucla-20": [(1, 2), (2, 3), (3, 3), (4, 3), (5, 3), (9, 3), *LIMB_BONES],
    "ntu-25": [
        (1, 2), (2, 21), (3, 21), (4, 3), (5, 21), (9, 21), (21, 21), (22, 23), (23, 8), (24, 25), (25, 12),
        *LIMB_BONES,
    ],
}  # fmt: skip
TEN_PARTS = {
    "nw-ucla-20": [{3, 4}, {1, 2}, {5, 6}, {7, 8}, {9, 10}, {11, 12}, {13, 14}, {15, 16}, {17, 18}, {19, 20}],
    "ntu-25": [
        {3, 4}, {1, 2, 21}, {5, 6}, {7, 8, 22, 23}, {9, 10}, {11, 12, 24, 25}, {13, 14}, {15, 16}, {17, 18}, {19, 20},
    ],
}  # fmt: skip
NAMES = {
    "nw-ucla-20": {1: "hip_centre", 2: "spine", 3: "shoulder_centre", 4: "head"},
    "ntu-25": {
        1: "base_of_spine", 2: "mid_spine", 3: "neck", 4: "head", 21: "spine_at_shoulders", 22: "left_hand_tip",
        23: "left_thumb", 24: "right_hand_tip", 25: "right_thumb",
    },
}  # fmt: skip

both_skeletons = pytest.mark.parametrize("skeleton", [NTU_25, NW_UCLA_20], ids=lambda skeleton: skeleton.name)


def parts_from_1(skeleton: Skeleton, parts: int) -> list[set[int]]:
    """Return a partition with joints counted from 1."""
    return [{joint + 1 for joint in part} for part in skeleton.partition(parts)]


@both_skeletons
def test_bones_match_literature(skeleton: Skeleton) -> None:
    bones = [(child + 1, parent + 1) for child, parent in enumerate(skeleton.parents)]
    assert bones == sorted(BONES[skeleton.name])


@both_skeletons
def test_joint_names_match_literature(skeleton: Skeleton) -> None:
    limbs = [
        (side, joint)
        for joints in (("shoulder", "elbow", "wrist", "hand"), ("hip", "knee", "ankle", "foot"))
        for side in ("left", "right")
        for joint in joints
    ]
    expected = NAMES[skeleton.name] | {5 + i: f"{side}_{joint}" for i, (side, joint) in enumerate(limbs)}
    assert dict(enumerate(skeleton.joints, 1)) == expected
    assert len(set(skeleton.joints)) == skeleton.num_joints


@both_skeletons
def test_centre_is_spine(skeleton: Skeleton) -> None:
    assert skeleton.centre == 1
    assert "spine" in skeleton.joints[skeleton.centre]


@both_skeletons
def test_ten_parts_match_literature(skeleton: Skeleton) -> None:
    assert parts_from_1(skeleton, 10) == TEN_PARTS[skeleton.name]


@both_skeletons
def test_five_parts_are_trunk_and_limbs(skeleton: Skeleton) -> None:
    head, torso, *halves = TEN_PARTS[skeleton.name]
    limbs = [halves[i] | halves[i + 1] for i in range(0, 8, 2)]
    assert parts_from_1(skeleton, 5) == [head | torso, *limbs]


@both_skeletons
def test_known_parts(skeleton: Skeleton) -> None:
    assert skeleton.known_parts == (1, 2, 5, 6, 10, skeleton.num_joints)


def test_custom_partition_preserves_order_of_names() -> None:
    skeleton = Skeleton("stick", ("hip", "neck", "head"), (0, 0, 1))
    assert skeleton.partition((("head", "hip"), ("neck",))) == ((2, 0), (1,))
    assert skeleton.partition([["neck", "head", "hip"]]) == ((1, 2, 0),)


def test_single_joints_are_partition_of_every_skeleton() -> None:
    skeleton = Skeleton("stick", ("hip", "neck", "head"), (0, 0, 1))
    assert skeleton.known_parts == (3,)
    assert skeleton.partition(3) == ((0,), (1,), (2,))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (7, "into 7 parts; choose one of 1, 2, 5, 6, 10, 20"),
        (0, "into 0 parts"),
        ((NW_UCLA_20.joints[:19],), "each of the 20 joints exactly once"),
        ((NW_UCLA_20.joints, NW_UCLA_20.joints[:1]), "each of the 20 joints exactly once"),
        ((NW_UCLA_20.joints, ()), "no empty part"),
        ((), "each of the 20 joints exactly once"),
        ((NW_UCLA_20.joints, ("tail",)), "no joint 'tail'"),
    ],
)
def test_invalid_partitions_are_rejected(parts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        NW_UCLA_20.partition(parts)
    assert "nw-ucla-20" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joints": (), "parents": ()}, "joints must be"),
        ({"joints": ("a", "b", "a")}, "joints must be"),
        ({"parents": (0, 0)}, "parents must be 3"),
        ({"parents": (0, 0, 3)}, "from 0 to 2"),
        ({"parents": (0, 0, -1)}, "from 0 to 2"),
        ({"centre": 3}, "centre is 3"),
        ({"centre": -1}, "centre is -1"),
        ({"partitions": (((0, 1),),)}, "each of the 3 joints exactly once"),
        ({"partitions": (((0, 1, 2), (2,)),)}, "each of the 3 joints exactly once"),
        ({"partitions": (((0, 1, 2), ()),)}, "no empty part"),
        ({"partitions": (((0, 1, 2),), ((0, 1), (-1,)))}, "each of the 3 joints exactly once"),
    ],
)
def test_invalid_skeletons_are_rejected(changes: dict[str, Any], message: str) -> None:
    valid: dict[str, Any] = {"name": "stick", "joints": ("a", "b", "c"), "parents": (0, 0, 1)}
    Skeleton(**valid)
    with pytest.raises(ValueError, match=message) as error:
        Skeleton(**(valid | changes))
    assert "skeleton stick" in str(error.value)
