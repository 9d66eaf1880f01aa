"""What the blocks share: position encoding, normalisation, scaled dot-product attention maps (Eq. 1).

Axes: B' clips times persons · T frames · N joints (or K focal joints, or P parts) · C channels · H heads ·
d width of a head. Features are (B', T, N, C), channels last.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sine_encoding(positions: int, channels: int) -> Tensor:
    """Sine and cosine position encoding of [41], ``(positions, channels)``: sines on even channels, cosines on odd."""
    position = torch.arange(positions, dtype=torch.float64)[:, None]
    rate = torch.exp(torch.arange(0, channels, 2, dtype=torch.float64) * (-math.log(10_000.0) / channels))
    encoding = torch.zeros(positions, channels, dtype=torch.float64)
    encoding[:, 0::2] = torch.sin(position * rate)
    encoding[:, 1::2] = torch.cos(position * rate)[:, : channels // 2]
    return encoding.to(torch.get_default_dtype())


class ChannelNorm(nn.Module):
    """Normalises ``(…, C)`` by channel over all else ("batch"), or each feature vector by itself ("layer")."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm1d(channels) if kind == "batch" else nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.norm, nn.LayerNorm):
            return self.norm(x)
        return self.norm(x.reshape(-1, x.shape[-1])).view(x.shape)


def attention_map(queries: Tensor, keys: Tensor) -> Tensor:
    """Eq. 1 without the values: softmax(Q Kᵀ / √d), ``(…, n, d)`` and ``(…, m, d)`` → ``(…, n, m)``."""
    return torch.softmax(queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5, dim=-1)


class FeedForward(nn.Module):
    """The FFN of the paper's blocks: one linear layer, norm, Leaky ReLU, residual. ``(…, C)`` → ``(…, C)``."""

    def __init__(self, channels: int, norm: str, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)
        self.norm = ChannelNorm(channels, norm)
        self.activation = nn.LeakyReLU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.activation(self.norm(self.linear(x))))


class HeadsOut(nn.Module):
    """The end of a multi-head attention: heads side by side, W_O, norm. ``(B'·T, H, N, d)`` → ``(B', T, N, C)``."""

    def __init__(self, heads: int, head_width: int, channels: int, norm: str, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(heads * head_width, channels)
        self.norm = ChannelNorm(channels, norm)
        self.dropout = nn.Dropout(dropout)

    def forward(self, heads: Tensor, batch: int) -> Tensor:
        rows, H, N, d = heads.shape
        concatenated = heads.transpose(1, 2).reshape(batch, rows // batch, N, H * d)
        return self.dropout(self.norm(self.linear(concatenated)))


def split_heads(x: Tensor, pieces: int, heads: int) -> tuple[Tensor, ...]:
    """``(B', T, N, pieces·H·d)`` → ``pieces`` tensors ``(B'·T, H, N, d)``."""
    B, T, N, width = x.shape
    return x.view(B * T, N, pieces, heads, width // (pieces * heads)).permute(2, 0, 3, 1, 4).unbind(0)
