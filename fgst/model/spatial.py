"""Attention over the joints of a frame: Basic-SFormer and joint-part cross-attention (§3.1, §3.3).

In stage 2 a feature tensor contains one group of tokens, the focal joints or the parts. With shared branches it
contains both groups, concatenated: they pass through the same weights and are separated only in the attention.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fgst.config import ModelConfig
from fgst.model.attention import SpatialProjections, attention_map


def make_projections(channels: int, config: ModelConfig) -> SpatialProjections:
    """Return the projections of a spatial block with ``channels`` channels."""
    width = config.spatial_head_width(channels)
    return SpatialProjections(channels, config.spatial_heads, width, config.norm, config.dropout)


class BasicSFormer(nn.Module):
    """Basic-SFormer block (Fig. 3a): in each frame, every token attends to all tokens of its group.

    The map of a group of n tokens is softmax(Q Kᵀ / √d) + A_g. The global map A_g ``(H, n, n)`` is learned, shared by
    all frames and clips, and initialized to 1/n. W_O with a residual and the FFN follow.

    Args:
        channels: C.
        groups: number of tokens of each group.
        config: heads, norm and dropout; without ``global_map`` there is no A_g.
    """

    def __init__(self, channels: int, groups: tuple[int, ...], config: ModelConfig) -> None:
        super().__init__()
        self.groups = groups
        self.projections = make_projections(channels, config)
        sizes = groups if config.global_map else ()
        self.global_maps = nn.ParameterList(torch.full((config.spatial_heads, n, n), 1 / n) for n in sizes)

    def forward(self, x: Tensor, encoding: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """Apply the block.

        Args:
            x: ``(B', T, N, C)``; N counts the tokens of all groups.
            encoding: position encoding of the tokens, ``(N, C)`` or ``(B', T, N, C)``.
            maps: list to which the map of each group is appended, A_g included, ``(B', T, H, n, n)``.

        Returns:
            ``(B', T, N, C)``.
        """
        qkv = self.projections.project(x, encoding)
        attended = []
        groups = [qkv] if len(self.groups) == 1 else qkv.split(self.groups, dim=3)
        for number, tokens in enumerate(groups):
            queries, keys, values = tokens.unbind(0)  # (B'·T, H, n, d) each
            group_map = attention_map(queries, keys)
            if len(self.global_maps):
                group_map = group_map + self.global_maps[number].to(queries.dtype)
            attended.append(group_map @ values)
            if maps is not None:
                maps.append(group_map.unflatten(0, x.shape[:2]))
        return self.projections.finish(x, attended[0] if len(attended) == 1 else torch.cat(attended, dim=2))


class JointPartCrossAttention(nn.Module):
    """JP-CA sub-block (Fig. 3b, Eq. 4), in both directions from the same inputs.

    The joints query the parts, A_jp = softmax(Q_J K_Pᵀ / √d) with values V_P, and the parts query the joints,
    A_pj = softmax(Q_P K_Jᵀ / √d) with values V_J. Eq. 4 has no global map.

    Args:
        channels: C.
        groups: K and P.
        config: heads, norm and dropout.
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
        """Apply the block.

        Args:
            branches: joints ``(B', T, K, C)`` and parts ``(B', T, P, C)``, or both concatenated in one tensor.
            encodings: position encoding of each branch's tokens.
            maps: list to which A_jp ``(B', T, H, K, P)`` and A_pj ``(B', T, H, P, K)`` are appended.

        Returns:
            The updated branches, in the same shapes.
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
