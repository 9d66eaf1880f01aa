"""Attention over the joints of a frame: Basic-SFormer and joint-part cross-attention (paper §3.1, §3.3).

In stage 2 a tensor of features holds one group of tokens, the focal joints or the parts, or, with shared branches,
both one after the other: then both go through the same weights, and only the attention keeps them apart.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fgst.config import ModelConfig
from fgst.model.attention import SpatialProjections, attention_map


def make_projections(channels: int, config: ModelConfig) -> SpatialProjections:
    """Projections of a spatial block of that width."""
    width = config.width_of_head(channels)
    return SpatialProjections(channels, config.spatial_heads, width, config.norm, config.dropout)


class BasicSFormer(nn.Module):
    """Basic-SFormer block (Fig. 3a): in each frame, every token attends to every token of its group.

    map = softmax(Q Kᵀ / √d) + A_g with a learned global map A_g ``(H, n, n)`` for each group of n tokens, the same for
    all frames and clips, 1/n at the start; then W_O and a residual, then the FFN.
    """

    def __init__(self, channels: int, groups: tuple[int, ...], config: ModelConfig) -> None:
        super().__init__()
        self.groups = groups
        self.projections = make_projections(channels, config)
        self.global_maps = nn.ParameterList(torch.full((config.spatial_heads, n, n), 1 / n) for n in groups)

    def forward(self, x: Tensor, encoding: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """A block's pass.

        Args:
            x: ``(B', T, N, C)``, N the tokens of all groups.
            encoding: of the tokens, ``(N, C)`` or ``(B', T, N, C)``.
            maps: gets the map of each group, A_g included, ``(B', T, H, n, n)``, if it is given.

        Returns:
            ``(B', T, N, C)``.
        """
        qkv = self.projections.project(x, encoding)
        attended = []
        groups = [qkv] if len(self.groups) == 1 else qkv.split(self.groups, dim=3)
        for tokens, global_map in zip(groups, self.global_maps, strict=True):
            queries, keys, values = tokens.unbind(0)  # (B'·T, H, n, d) each
            group_map = attention_map(queries, keys) + global_map.to(queries.dtype)
            attended.append(group_map @ values)
            if maps is not None:
                maps.append(group_map.unflatten(0, x.shape[:2]))
        return self.projections.finish(x, attended[0] if len(attended) == 1 else torch.cat(attended, dim=2))


class JointPartCrossAttention(nn.Module):
    """JP-CA sub-block (Fig. 3b, Eq. 4), both ways from the same inputs.

    Joints query the keys and values of the parts, parts query those of the joints. Eq. 4 has no global map: these
    maps come from the clip alone.
    """

    def __init__(self, channels: int, groups: tuple[int, int], config: ModelConfig) -> None:
        super().__init__()
        self.groups = groups
        self.projections = nn.ModuleList(
            make_projections(channels, config) for _ in range(1 if config.shared_branches else 2)
        )

    def forward(
        self, branches: list[Tensor], encodings: list[Tensor], maps: list[Tensor] | None = None
    ) -> list[Tensor]:
        """A block's pass.

        Args:
            branches: joints ``(B', T, K, C)`` and parts ``(B', T, P, C)``, or one tensor of both.
            encodings: of the tokens of each.
            maps: gets A_jp ``(B', T, H, K, P)`` and then A_pj ``(B', T, H, P, K)``.

        Returns:
            ``branches`` in their shapes.
        """
        sides = cast(list[SpatialProjections], list(self.projections))
        projected = [side.project(x, e) for side, x, e in zip(sides, branches, encodings, strict=True)]
        joints, parts = projected[0].split(self.groups, dim=3) if len(projected) == 1 else projected
        joint_queries, joint_keys, joint_values = joints.unbind(0)
        part_queries, part_keys, part_values = parts.unbind(0)
        part_to_joint = attention_map(joint_queries, part_keys)
        joint_to_part = attention_map(part_queries, joint_keys)
        if maps is not None:
            maps.extend(attention.unflatten(0, branches[0].shape[:2]) for attention in (part_to_joint, joint_to_part))
        attended = [part_to_joint @ part_values, joint_to_part @ joint_values]
        if len(branches) == 1:
            attended = [torch.cat(attended, dim=2)]
        return [side.finish(x, a) for side, x, a in zip(sides, branches, attended, strict=True)]
