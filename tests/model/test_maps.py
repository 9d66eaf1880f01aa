"""What the network looked at comes back on request: the right values, in the right place, and only then."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fgst.config import ModelConfig
from fgst.data.skeleton import NW_UCLA_20
from fgst.model import AttentionMaps, FGSTFormer
from tests.model.test_variants import NO_CROSS, NO_PARTS, SMALL, clips_of

B, M, T, N, H, K, P = 3, 2, 9, 20, 3, 6, 10


def network(**changes: Any) -> FGSTFormer:
    torch.manual_seed(0)
    settings = SMALL | {"channels": (8, 16, 16, 32), "stage1_layers": 2, "stage2_layers": 2} | changes
    return FGSTFormer(ModelConfig(**settings), NW_UCLA_20, 4, frames=T).eval()


def look(model: FGSTFormer, clips: Tensor) -> AttentionMaps:
    with torch.no_grad():
        scores, maps = model(clips, return_maps=True)
        assert torch.equal(scores, model(clips))
    return maps


def shapes(values: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in values]


@pytest.mark.parametrize("shared", [False, True])
def test_shapes(shared: bool) -> None:
    """Layer 2 of stage 1 halves 9 frames to 5, layer 2 of stage 2 those to 3."""
    maps = look(network(shared_branches=shared), clips_of(B, M, T, N))
    assert maps.stride == 2
    assert maps.focal_joints is not None
    assert maps.focal_scores is not None
    assert maps.focal_joints.shape == (B, M, 5, K)
    assert maps.focal_scores.shape == (B, M, 5, N)
    assert shapes(maps.spatial) == [(B, M, 9, H, N, N), (B, M, 9, H, N, N)]
    assert shapes(maps.temporal) == [(B, M, N, 2, 9, 9), (B, M, N, 2, 5, 5)]
    assert shapes(maps.joint_spatial) == [(B, M, 5, H, K, K)] * 2
    assert shapes(maps.part_spatial) == [(B, M, 5, H, P, P)] * 2
    assert shapes(maps.part_to_joint) == [(B, M, 5, H, K, P)] * 2
    assert shapes(maps.joint_to_part) == [(B, M, 5, H, P, K)] * 2
    assert shapes(maps.joint_temporal) == [(B, M, K, 2, 5, 5), (B, M, K, 2, 3, 3)]
    assert shapes(maps.part_temporal) == [(B, M, P, 2, 5, 5), (B, M, P, 2, 3, 3)]


def test_rows_are_shares_of_attention_and_absent_persons_are_zero() -> None:
    clips = clips_of(B, M, T, N)  # the last clip's second person is absent
    maps = look(network(), clips)
    assert maps.person_mask.tolist() == [[True, True], [True, True], [True, False]]
    for values in (*maps.temporal, *maps.joint_temporal, *maps.part_temporal, *maps.part_to_joint, *maps.joint_to_part):
        torch.testing.assert_close(values[maps.person_mask].sum(-1), torch.ones_like(values[maps.person_mask][..., 0]))
        assert not values[~maps.person_mask].any()
    for values in (*maps.spatial, *maps.joint_spatial, *maps.part_spatial):  # A_g adds rows of 1 as it starts
        torch.testing.assert_close(
            values[maps.person_mask].sum(-1), torch.full_like(values[maps.person_mask][..., 0], 2)
        )


def test_focal_joints_are_those_of_the_highest_scores() -> None:
    maps = look(network(), clips_of(B, M, T, N))
    assert maps.focal_joints is not None
    assert maps.focal_scores is not None
    expected = maps.focal_scores.topk(K, dim=-1).indices.sort(dim=-1).values
    assert torch.equal(maps.focal_joints[maps.person_mask], expected[maps.person_mask])


def test_a_person_s_maps_are_those_of_the_person_alone() -> None:
    model, clips = network(), clips_of(B, M, T, N)
    maps, alone = look(model, clips), look(model, clips[1:2, 1:2])
    for name in ("spatial", "temporal", "joint_spatial", "part_to_joint", "joint_to_part", "part_temporal"):
        for together, single in zip(getattr(maps, name), getattr(alone, name), strict=True):
            torch.testing.assert_close(together[1, 1], single[0, 0])


def test_a_single_frame_keeps_its_axis() -> None:
    maps = look(network(), clips_of(B, M, 1, N))
    assert maps.part_to_joint[0].shape == (B, M, 1, H, K, P)


@pytest.mark.parametrize(
    ("changes", "empty"),
    [
        (NO_CROSS, {"part_to_joint", "joint_to_part"}),
        (NO_PARTS, {"part_to_joint", "joint_to_part", "part_spatial", "part_temporal"}),
        ({"temporal": "convolution"}, {"temporal", "joint_temporal", "part_temporal"}),
        ({"temporal": "attention"}, set()),
        ({"shared_branches": True, "temporal": "convolution"}, {"temporal", "joint_temporal", "part_temporal"}),
    ],
)
def test_a_block_that_is_not_there_has_no_maps(changes: dict[str, Any], empty: set[str]) -> None:
    maps = look(network(**changes), clips_of(B, M, T, N))
    lists = {name for name, value in vars(maps).items() if isinstance(value, list)}
    assert {name for name in lists if not getattr(maps, name)} == empty


def test_without_selection_there_are_no_focal_joints() -> None:
    maps = look(network(focal_selection=False), clips_of(B, M, T, N))
    assert maps.focal_joints is None
    assert maps.focal_scores is None
    assert maps.part_to_joint[0].shape == (B, M, 5, H, N, P)


def test_maps_carry_no_gradient_and_a_training_step_goes_on() -> None:
    model = network().train()
    scores, maps = model(clips_of(B, M, T, N), return_maps=True)
    assert not maps.part_to_joint[0].requires_grad
    scores.sum().backward()


def test_presence_can_be_told() -> None:
    """Somebody who does not move has no motion, but is there; and what lies in an absent person's place counts not."""
    model, clips = network(), clips_of(B, M, T, N)
    told = torch.tensor([[True, False], [True, True], [True, True]])
    with torch.no_grad():
        scores = model(clips, told)
        torch.testing.assert_close(scores[0], model(clips[:1, :1])[0])
        torch.testing.assert_close(scores[1], model(clips)[1])
        assert (scores[2] - model(clips)[2]).abs().max() > 1e-6  # a motionless person takes part
        with pytest.raises(ValueError, match=r"person_mask is \(3, 1\)"):
            model(clips, told[:, :1])
    assert told.tolist()[0] == [True, False]  # not changed
