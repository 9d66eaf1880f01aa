"""Attention maps: shapes, values, absent persons, and scores that do not depend on returning them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fgst.config import ModelConfig
from fgst.data.skeletons import NW_UCLA_20
from fgst.model import AttentionMaps, FGSTFormer
from tests.model.small_networks import EVALUATION_ROUNDINGS, NO_CROSS, NO_PARTS, SMALL, clips_of
from tests.support.numerics import assert_close

B, M, T, N, H, K, P = 3, 2, 9, 20, 3, 6, 10


def network(**changes: Any) -> FGSTFormer:
    torch.manual_seed(0)
    settings = SMALL | {"channels": (8, 16, 16, 32), "stage1_layers": 2, "stage2_layers": 2} | changes
    return FGSTFormer(ModelConfig(**settings), NW_UCLA_20, 4, frames=T).eval()


def maps_of(model: FGSTFormer, clips: Tensor) -> AttentionMaps:
    """Return the maps and check that the scores have the same bits as without them."""
    with torch.no_grad():
        scores, maps = model(clips, return_maps=True)
        assert torch.equal(scores, model(clips))
    return maps


def shapes(values: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in values]


@pytest.mark.parametrize("shared", [False, True])
def test_map_shapes(shared: bool) -> None:
    """Layer 2 of stage 1 halves 9 frames to 5, and layer 2 of stage 2 halves these to 3."""
    maps = maps_of(network(shared_branches=shared), clips_of(B, M, T, N))
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


def test_map_rows_sum_to_one_and_absent_persons_are_zero() -> None:
    clips = clips_of(B, M, T, N)  # the last clip's second person is absent
    maps = maps_of(network(), clips)
    assert maps.person_mask.tolist() == [[True, True], [True, True], [True, False]]
    for values in (*maps.temporal, *maps.joint_temporal, *maps.part_temporal, *maps.part_to_joint, *maps.joint_to_part):
        rows = values[maps.person_mask].sum(-1)
        assert_close(rows, torch.ones_like(rows), terms=4 * N)
        assert not values[~maps.person_mask].any()
    for values in (*maps.spatial, *maps.joint_spatial, *maps.part_spatial):
        # The rows of an untrained global map sum to 1, too.
        rows = values[maps.person_mask].sum(-1)
        assert_close(rows, torch.full_like(rows, 2), terms=4 * N)


def test_focal_joints_have_the_highest_scores() -> None:
    maps = maps_of(network(), clips_of(B, M, T, N))
    assert maps.focal_joints is not None
    assert maps.focal_scores is not None
    expected = maps.focal_scores.topk(K, dim=-1).indices.sort(dim=-1).values
    assert torch.equal(maps.focal_joints[maps.person_mask], expected[maps.person_mask])


def test_maps_of_a_person_are_independent_of_others() -> None:
    model, clips = network(), clips_of(B, M, T, N)
    maps, single_maps = maps_of(model, clips), maps_of(model, clips[1:2, 1:2])
    for name in ("spatial", "temporal", "joint_spatial", "part_to_joint", "joint_to_part", "part_temporal"):
        for together, single in zip(getattr(maps, name), getattr(single_maps, name), strict=True):
            assert_close(together[1, 1], single[0, 0], terms=EVALUATION_ROUNDINGS)


def test_maps_of_single_frame_have_frame_axis() -> None:
    maps = maps_of(network(), clips_of(B, M, 1, N))
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
def test_disabled_blocks_have_no_maps(changes: dict[str, Any], empty: set[str]) -> None:
    maps = maps_of(network(**changes), clips_of(B, M, T, N))
    lists = {name for name, value in vars(maps).items() if isinstance(value, list)}
    assert {name for name in lists if not getattr(maps, name)} == empty


def test_maps_without_focal_selection() -> None:
    maps = maps_of(network(focal_selection=False), clips_of(B, M, T, N))
    assert maps.focal_joints is None
    assert maps.focal_scores is None
    assert maps.part_to_joint[0].shape == (B, M, 5, H, N, P)


def test_maps_are_detached_and_scores_are_differentiable() -> None:
    model = network().train()
    scores, maps = model(clips_of(B, M, T, N), return_maps=True)
    assert not maps.part_to_joint[0].requires_grad
    scores.sum().backward()


def test_person_mask_overrides_zeros() -> None:
    """A present person may be zero, and values of absent persons are ignored."""
    model, clips = network(), clips_of(B, M, T, N)
    person_mask = torch.tensor([[True, False], [True, True], [True, True]])
    with torch.no_grad():
        scores = model(clips, person_mask)
        assert_close(scores[0], model(clips[:1, :1])[0], terms=EVALUATION_ROUNDINGS)
        assert_close(scores[1], model(clips)[1], terms=EVALUATION_ROUNDINGS)
        assert (scores[2] - model(clips)[2]).abs().max() > 1e-6  # the second person is zero, but present
        with pytest.raises(ValueError, match=r"person_mask is \(3, 1\)"):
            model(clips, person_mask[:, :1])
    assert person_mask.tolist()[0] == [True, False]  # unchanged
