"""Attention over the joints of a frame: Basic-SFormer, joint-part cross-attention, FG-SFormer (paper §3.1, §3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fgst.config import ModelConfig
from fgst.model.attention import FeedForward, HeadsOut, attention_map, split_heads


class BasicSFormer(nn.Module):
    """Basic-SFormer block (Fig. 3a): in each frame, every token attends to every token.

    map = softmax(Q Kᵀ / √d) + A_g with a learned global map A_g ``(H, N, N)``, the same for all frames and clips,
    1/N at the start; then W_O and a residual, then the FFN.
    """

    def __init__(self, channels: int, tokens: int, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.spatial_heads
        width = config.width_of_head(channels)
        self.qkv = nn.Linear(channels, 3 * self.heads * width)
        self.global_map = nn.Parameter(torch.full((self.heads, tokens, tokens), 1 / tokens))
        self.out = HeadsOut(self.heads, width, channels, config.norm, config.dropout)
        self.ffn = FeedForward(channels, config.norm, config.dropout)

    def forward(self, x: Tensor, encoding: Tensor) -> Tensor:
        """``x`` is ``(B', T, N, C)``; ``encoding`` of the tokens ``(N, C)`` or ``(B', T, N, C)``."""
        queries, keys, values = split_heads(self.qkv(x + encoding), 3, self.heads)
        maps = attention_map(queries, keys) + self.global_map  # (B'·T, H, N, N)
        return self.ffn(x + self.out(maps @ values, x.shape[0]))


class JointPartCrossAttention(nn.Module):
    """JP-CA sub-block (Fig. 3b, Eq. 4), both ways from the same inputs.

    Joints query the keys and values of the parts, parts query those of the joints. Eq. 4 has no global map: these
    maps come from the clip alone.
    """

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.spatial_heads
        width = config.width_of_head(channels)
        self.joint_qkv = nn.Linear(channels, 3 * self.heads * width)
        self.part_qkv = nn.Linear(channels, 3 * self.heads * width)
        self.joint_out = HeadsOut(self.heads, width, channels, config.norm, config.dropout)
        self.part_out = HeadsOut(self.heads, width, channels, config.norm, config.dropout)
        self.joint_ffn = FeedForward(channels, config.norm, config.dropout)
        self.part_ffn = FeedForward(channels, config.norm, config.dropout)

    def forward(
        self, joints: Tensor, parts: Tensor, joint_encoding: Tensor, part_encoding: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``joints`` is ``(B', T, K, C)``, ``parts`` ``(B', T, P, C)``; both come back in their shapes."""
        joint_q, joint_k, joint_v = split_heads(self.joint_qkv(joints + joint_encoding), 3, self.heads)
        part_q, part_k, part_v = split_heads(self.part_qkv(parts + part_encoding), 3, self.heads)
        to_joints = attention_map(joint_q, part_k) @ part_v  # A_jp V_P, (B'·T, H, K, d)
        to_parts = attention_map(part_q, joint_k) @ joint_v  # A_pj V_J, (B'·T, H, P, d)
        batch = joints.shape[0]
        return (
            self.joint_ffn(joints + self.joint_out(to_joints, batch)),
            self.part_ffn(parts + self.part_out(to_parts, batch)),
        )


class FGSFormer(nn.Module):
    """FG-SFormer block of stage 2: a Basic-SFormer in each branch, then JP-CA between them (paper §3.3)."""

    def __init__(self, channels: int, focal_joints: int, parts: int, config: ModelConfig) -> None:
        super().__init__()
        self.joints = BasicSFormer(channels, focal_joints, config)
        self.parts = BasicSFormer(channels, parts, config)
        self.cross = JointPartCrossAttention(channels, config)

    def forward(
        self, joints: Tensor, parts: Tensor, joint_encoding: Tensor, part_encoding: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``joints`` is ``(B', T, K, C)``, ``parts`` ``(B', T, P, C)``; both come back in their shapes."""
        joints = self.joints(joints, joint_encoding)
        parts = self.parts(parts, part_encoding)
        return self.cross(joints, parts, joint_encoding, part_encoding)
