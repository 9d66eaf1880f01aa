"""Modalities, compared with implementations that loop over frames and over bones as listed in the literature."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fgst.config import MODALITIES
from fgst.data.modality import bones, motion, to_modality
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import NTU_25, NW_UCLA_20
from tests.data.helpers import reference_modality

both_skeletons = pytest.mark.parametrize("skeleton", [NTU_25, NW_UCLA_20], ids=lambda skeleton: skeleton.name)


def random_clips(skeleton: Skeleton) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 2, 5, skeleton.num_joints, 3))


@both_skeletons
def test_modalities_match_reference(skeleton: Skeleton) -> None:
    assert set(MODALITIES) == {"joint", "bone", "joint_motion", "bone_motion"}
    joints = random_clips(skeleton)
    for modality in MODALITIES:
        actual = to_modality(torch.from_numpy(joints), modality, skeleton).numpy()
        expected = reference_modality(joints, modality, skeleton)
        np.testing.assert_array_equal(actual, expected, err_msg=modality)


@both_skeletons
def test_only_bone_of_root_is_zero(skeleton: Skeleton) -> None:
    result = bones(torch.from_numpy(random_clips(skeleton)), skeleton).numpy()
    root = {"nw-ucla-20": 3, "ntu-25": 21}[skeleton.name]
    zero = [joint for joint in range(1, skeleton.num_joints + 1) if not result[..., joint - 1, :].any()]
    assert zero == [root]


def test_motion_of_last_frame_is_zero() -> None:
    result = motion(torch.from_numpy(random_clips(NTU_25)))
    assert not result[:, :, -1].any()
    assert result[:, :, :-1].abs().amin((2, 3, 4)).max() > 0


def test_motion_of_single_frame_is_zero() -> None:
    frame = torch.from_numpy(random_clips(NTU_25))[:, :, :1]
    assert motion(frame).shape == frame.shape
    assert not motion(frame).any()


def test_input_is_not_modified() -> None:
    joints = torch.from_numpy(random_clips(NW_UCLA_20))
    original = joints.clone()
    for modality in MODALITIES:
        to_modality(joints, modality, NW_UCLA_20)
    assert torch.equal(joints, original)


@pytest.mark.parametrize("modality", ["", "bones", "motion", "Joint"])
def test_unknown_modality_is_rejected(modality: str) -> None:
    with pytest.raises(ValueError, match=r"data\.modality .*joint, bone, joint_motion, bone_motion"):
        to_modality(torch.zeros(1, 1, 2, 20, 3), modality, NW_UCLA_20)
