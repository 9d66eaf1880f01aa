"""Skeletons: joint names, bones, and partitions into body parts.

Indices are 0-based; the literature counts from 1. ``NTU_25`` and ``NW_UCLA_20`` are the two skeletons of the paper. Any
other skeleton can be defined the same way; each data set contains the description of its skeleton.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_JOINTS = 10_000  # the memory of attention grows with its square
Part = tuple[int, ...]
Partition = tuple[Part, ...]


@dataclass(frozen=True)
class Skeleton:
    """A skeleton of N joints.

    Attributes:
        name: identifies the skeleton in messages.
        joints: the N joint names, in the order of the data.
        parents: for each joint, the joint where its bone starts; the root is its own parent, so its bone is zero.
        centre: the joint that recipes move to the origin, usually the spine.
        partitions: partitions into body parts, each a tuple of parts, each a tuple of joint indices. The partition into
            N single joints is always available and need not be listed.

    Raises:
        ValueError: if names repeat, an index is out of range, bones form a ring, or a partition omits or repeats a
            joint.
    """

    name: str
    joints: tuple[str, ...]
    parents: tuple[int, ...]
    centre: int = 0
    partitions: tuple[Partition, ...] = ()

    def __post_init__(self) -> None:
        N = len(self.joints)
        if N > MAX_JOINTS:
            raise ValueError(f"skeleton {self.name}: has {N:,} joints; the limit is {MAX_JOINTS:,}")
        if N == 0 or len(set(self.joints)) != N:
            raise ValueError(f"skeleton {self.name}: joints must be one or more unique names")
        if len(self.parents) != N or not all(0 <= parent < N for parent in self.parents):
            raise ValueError(f"skeleton {self.name}: parents must be {N} joint indices from 0 to {N - 1}")
        if not 0 <= self.centre < N:
            raise ValueError(f"skeleton {self.name}: centre is {self.centre}, but joints are 0 to {N - 1}")
        self._check_bones()
        for partition in self.partitions:
            self._check_partition(partition)

    def _check_bones(self) -> None:
        """Check that the parents of each joint end at a root, which is its own parent."""
        ancestors = self.parents
        for _ in range(self.num_joints.bit_length()):  # the parents 2, 4, 8 … bones away
            ancestors = tuple(ancestors[joint] for joint in ancestors)
        for ancestor in ancestors:
            if self.parents[ancestor] != ancestor:
                raise ValueError(f"skeleton {self.name}: the bones of joint {self.joints[ancestor]!r} form a ring")

    def _check_partition(self, partition: Partition) -> None:
        members = sorted(joint for part in partition for joint in part)
        if members != list(range(len(self.joints))) or not all(partition):
            raise ValueError(
                f"skeleton {self.name}: a partition into {len(partition)} parts must contain each of "
                f"the {len(self.joints)} joints exactly once, and no empty part"
            )

    @property
    def num_joints(self) -> int:
        return len(self.joints)

    @property
    def known_parts(self) -> tuple[int, ...]:
        """The numbers of parts P that :meth:`partition` accepts, ascending."""
        return tuple(sorted({len(partition) for partition in self.partitions} | {self.num_joints}))

    def partition(self, parts: int | Sequence[Sequence[str]]) -> Partition:
        """Return a partition into body parts as joint indices.

        Args:
            parts: the number of parts P, or a custom partition by joint names.

        Raises:
            ValueError: if there is no such partition, or a name is not a joint of this skeleton.
        """
        if isinstance(parts, int):
            for partition in self.partitions:
                if len(partition) == parts:
                    return partition
            if parts == self.num_joints:
                return tuple((joint,) for joint in range(self.num_joints))
            known = ", ".join(map(str, self.known_parts))
            raise ValueError(f"no partition of skeleton {self.name} into {parts} parts; choose one of {known}")
        index = {joint: i for i, joint in enumerate(self.joints)}
        unknown = [joint for part in parts for joint in part if joint not in index]
        if unknown:
            raise ValueError(f"skeleton {self.name} has no joint {unknown[0]!r}; it has {', '.join(self.joints)}")
        partition = tuple(tuple(index[joint] for joint in part) for part in parts)
        self._check_partition(partition)
        return partition

    def to_dict(self) -> dict[str, Any]:
        """Return the skeleton as JSON values."""
        return {
            "name": self.name,
            "joints": list(self.joints),
            "parents": list(self.parents),
            "centre": self.centre,
            "partitions": [[list(part) for part in partition] for partition in self.partitions],
        }


def _nested_partitions(*fine: Sequence[int]) -> tuple[Partition, ...]:
    """Return partitions into 10, 6, 5, 2 and 1 parts, each merging parts of the previous one.

    Args:
        fine: ten parts of 1-based joints: head; torso; upper arm and hand, left then right; thigh and foot, left then
            right.
    """
    head, torso, upper_l, hand_l, upper_r, hand_r, thigh_l, foot_l, thigh_r, foot_r = (
        tuple(joint - 1 for joint in part) for part in fine
    )
    arms = (upper_l + hand_l, upper_r + hand_r)
    legs = (thigh_l + foot_l, thigh_r + foot_r)
    trunk = torso + head
    ten = (head, torso, upper_l, hand_l, upper_r, hand_r, thigh_l, foot_l, thigh_r, foot_r)
    upper_body, lower_body = trunk + arms[0] + arms[1], legs[0] + legs[1]
    return (
        ten,
        (head, torso, *arms, *legs),
        (trunk, *arms, *legs),
        (upper_body, lower_body),
        (upper_body + lower_body,),
    )


def _parents(*bones: tuple[int, int]) -> tuple[int, ...]:
    """Return the parents in joint order, given 1-based (child, parent) pairs."""
    return tuple(parent - 1 for _, parent in sorted(bones))


_LIMBS = (
    "left_shoulder left_elbow left_wrist left_hand right_shoulder right_elbow right_wrist right_hand "
    "left_hip left_knee left_ankle left_foot right_hip right_knee right_ankle right_foot"
).split()

NTU_25 = Skeleton(
    name="ntu-25",
    joints=(
        *"base_of_spine mid_spine neck head".split(),
        *_LIMBS,
        *"spine_at_shoulders left_hand_tip left_thumb right_hand_tip right_thumb".split(),
    ),
    parents=_parents(
        (1, 2), (2, 21), (3, 21), (4, 3), (5, 21), (6, 5), (7, 6), (8, 7), (9, 21), (10, 9), (11, 10), (12, 11),
        (13, 1), (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18), (20, 19), (21, 21), (22, 23), (23, 8),
        (24, 25), (25, 12),
    ),
    centre=1,
    partitions=_nested_partitions(
        (3, 4), (1, 2, 21), (5, 6), (7, 8, 22, 23), (9, 10), (11, 12, 24, 25), (13, 14), (15, 16), (17, 18), (19, 20)
    ),
)  # fmt: skip

NW_UCLA_20 = Skeleton(
    name="nw-ucla-20",
    joints=("hip_centre", "spine", "shoulder_centre", "head", *_LIMBS),
    parents=_parents(
        (1, 2), (2, 3), (3, 3), (4, 3), (5, 3), (6, 5), (7, 6), (8, 7), (9, 3), (10, 9), (11, 10), (12, 11),
        (13, 1), (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18), (20, 19),
    ),
    centre=1,
    partitions=_nested_partitions(
        (3, 4), (1, 2), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16), (17, 18), (19, 20)
    ),
)  # fmt: skip
