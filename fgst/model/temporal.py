"""Attention over the frames of a joint: the FG-TFormer block (paper §3.4, Eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fgst.config import ModelConfig
from fgst.model.attention import ChannelNorm, attention_map, sine_encoding


class FGTFormer(nn.Module):
    """FG-TFormer block: global self-attention over frames whose values are dilated temporal convolutions.

    Head h has its own dilation d_h: V_h = TCN(X)_h with kernel k_t, head_h = (A_h V_h) W_h + V_h; the heads side by
    side go through W_O, norm and Leaky ReLU, and the shortcut is added (Eq. 5). Where the width grows, frames are
    halved: the convolution has stride 2, Q and K are taken at its frames, the shortcut is a linear at its frames.
    """

    encoding: Tensor

    def __init__(self, channels_in: int, channels: int, frames: int, config: ModelConfig) -> None:
        super().__init__()
        self.heads = len(config.dilations)
        self.stride = 1 if channels_in == channels else 2
        width = channels // self.heads
        self.query_key = nn.Linear(channels_in, 2 * channels)
        self.tcn = nn.ModuleList(
            nn.Conv2d(
                channels_in,
                width,
                (config.kernel_size, 1),
                stride=(self.stride, 1),
                padding=(dilation * (config.kernel_size - 1) // 2, 0),
                dilation=(dilation, 1),
            )
            for dilation in config.dilations
        )
        self.head_linear = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in config.dilations)
        self.out = nn.Linear(channels, channels)
        self.norm = ChannelNorm(channels, config.norm)
        self.activation = nn.LeakyReLU()
        self.dropout = nn.Dropout(config.dropout)
        self.shortcut = nn.Identity() if self.stride == 1 else nn.Linear(channels_in, channels)
        self.register_buffer("encoding", sine_encoding(frames, channels_in)[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B', T, N, C_in)`` → ``(B', ⌈T / stride⌉, N, C)``."""
        encoded = x + self.encoding[: x.shape[1]]  # (T, 1, C_in) for every joint
        kept = encoded[:, :: self.stride]
        B, T, N, _ = kept.shape
        query_key = self.query_key(kept).view(B, T, N, 2, self.heads, -1)
        queries, keys = query_key.permute(3, 0, 2, 4, 1, 5).unbind(0)  # (B', N, H, T, d)
        maps = attention_map(queries, keys)  # (B', N, H, T, T)
        images = encoded.permute(0, 3, 1, 2)  # (B', C_in, T, N) without a copy: what PyTorch calls channels last
        heads = []
        for h, (convolve, linear) in enumerate(zip(self.tcn, self.head_linear, strict=True)):
            values = convolve(images).permute(0, 2, 3, 1)  # (B', T, N, d)
            fused = (maps[:, :, h] @ values.transpose(1, 2)).transpose(1, 2)
            heads.append(linear(fused) + values)
        out = self.activation(self.norm(self.out(torch.cat(heads, dim=-1))))
        return self.dropout(out) + self.shortcut(x[:, :: self.stride])
