"""Skeletons: joint names, bones, and partitions into body parts.

Indices are 0-based; the literature counts from 1. :mod:`fgst.data.skeletons` has those of common sources. Any other
skeleton can be defined the same way; each data set contains the description of its skeleton.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_JOINTS = 10_000  # the memory of attention grows with its square
Part = tuple[int, ...]
Partition = tuple[Part, ...]
_OPPOSITE = {"left": "right", "right": "left"}


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
    def sides(self) -> tuple[str, ...]:
        """The side of each joint, ``"left"``, ``"right"`` or ``""``, from the prefix ``left_`` or ``right_``."""
        return tuple(next((side for side in _OPPOSITE if joint.startswith(f"{side}_")), "") for joint in self.joints)

    @property
    def mirror(self) -> tuple[int, ...]:
        """For each joint the same joint of the other side; itself if it has no side or no counterpart."""
        index = {joint: i for i, joint in enumerate(self.joints)}
        return tuple(
            index.get(f"{_OPPOSITE[side]}{joint.removeprefix(side)}", i) if side else i
            for i, (joint, side) in enumerate(zip(self.joints, self.sides, strict=True))
        )

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
