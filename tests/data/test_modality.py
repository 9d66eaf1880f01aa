"""Bones and motion compared with loops over frames and over the literature's bones, counted from 1."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fgst.config import MODALITIES
from fgst.data.modality import bones, motion, to_modality
from fgst.data.skeleton import NTU_25, NW_UCLA_20, Skeleton

BONES = {
    "nw-ucla-20": [
        (1, 2), (2, 3), (3, 3), (4, 3), (5, 3), (6, 5), (7, 6), (8, 7), (9, 3), (10, 9), (11, 10), (12, 11), (13, 1),
        (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18), (20, 19),
    ],
    "ntu-25": [
        (1, 2), (2, 21), (3, 21), (4, 3), (5, 21), (6, 5), (7, 6), (8, 7), (9, 21), (10, 9), (11, 10), (12, 11),
        (13, 1), (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18), (20, 19), (21, 21), (22, 23), (23, 8),
        (24, 25), (25, 12),
    ],
}  # fmt: skip

both = pytest.mark.parametrize("skeleton", [NTU_25, NW_UCLA_20], ids=lambda skeleton: skeleton.name)


def random_clips(skeleton: Skeleton) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 2, 5, skeleton.num_joints, 3))


def slow_bones(joints: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    out = np.zeros_like(joints)
    for child, parent in BONES[skeleton.name]:
        out[..., child - 1, :] = joints[..., child - 1, :] - joints[..., parent - 1, :]
    return out


def slow_motion(positions: np.ndarray) -> np.ndarray:
    out = np.zeros_like(positions)
    for t in range(positions.shape[2] - 1):
        out[:, :, t] = positions[:, :, t + 1] - positions[:, :, t]
    return out


@both
def test_modalities(skeleton: Skeleton) -> None:
    joints = random_clips(skeleton)
    expected = {
        "joint": joints,
        "bone": slow_bones(joints, skeleton),
        "joint_motion": slow_motion(joints),
        "bone_motion": slow_motion(slow_bones(joints, skeleton)),
    }
    assert set(MODALITIES) == set(expected)
    for modality in MODALITIES:
        actual = to_modality(torch.from_numpy(joints), modality, skeleton).numpy()
        np.testing.assert_array_equal(actual, expected[modality], err_msg=modality)


@both
def test_only_the_bone_of_the_root_is_zero(skeleton: Skeleton) -> None:
    result = bones(torch.from_numpy(random_clips(skeleton)), skeleton).numpy()
    root = {"nw-ucla-20": 3, "ntu-25": 21}[skeleton.name]
    zero = [joint for joint in range(1, skeleton.num_joints + 1) if not result[..., joint - 1, :].any()]
    assert zero == [root]


def test_motion_of_the_last_frame_is_zero() -> None:
    result = motion(torch.from_numpy(random_clips(NTU_25)))
    assert not result[:, :, -1].any()
    assert result[:, :, :-1].abs().amin((2, 3, 4)).max() > 0


def test_motion_of_a_single_frame_is_zero() -> None:
    frame = torch.from_numpy(random_clips(NTU_25))[:, :, :1]
    assert motion(frame).shape == frame.shape
    assert not motion(frame).any()


def test_input_is_not_modified() -> None:
    joints = torch.from_numpy(random_clips(NW_UCLA_20))
    before = joints.clone()
    for modality in MODALITIES:
        to_modality(joints, modality, NW_UCLA_20)
    assert torch.equal(joints, before)


@pytest.mark.parametrize("modality", ["", "bones", "motion", "Joint"])
def test_unknown_modality_is_rejected(modality: str) -> None:
    with pytest.raises(ValueError, match=r"data\.modality .*joint, bone, joint_motion, bone_motion"):
        to_modality(torch.zeros(1, 1, 2, 20, 3), modality, NW_UCLA_20)
